"""What the store does for clients: who joined under which name, who left, who was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, update

from coppice.domain import ClientId
from coppice.errors import NameTaken, NotJoined
from server import tables
from server.records import ClientRecord, NewEvent
from server.store_write import StoreWriter


class StoreClients(StoreWriter):
    """The writing half for clients; each method is one transaction."""

    def join_client(
        self, client: ClientRecord, now: float, events: Sequence[NewEvent] = ()
    ) -> None:
        """A client is here, for the first time or again; its refusals are not forgotten.

        NameTaken when another device has the name.
        """
        with self._write() as connection:
            known = self._client(connection, client.client_id)
            if known is None:
                connection.execute(insert(tables.clients).values(**vars(client)))
            elif known.device_id != client.device_id:
                raise NameTaken(
                    f"another device has the name {client.client_id!r}; join under another name"
                )
            else:
                back = replace(client, left_at=None, left_reason="", refusals=known.refusals)
                _set_client(connection, client.client_id, vars(back))
            self._append(connection, events, now)

    def leave_client(
        self, client_id: ClientId, reason: str, now: float, events: Sequence[NewEvent] = ()
    ) -> None:
        """A client said goodbye; NotJoined when it never joined."""
        with self._write() as connection:
            if not _set_client(connection, client_id, {"left_at": now, "left_reason": reason}):
                raise NotJoined
            self._append(connection, events, now)

    def count_refusal(
        self, client_id: ClientId, now: float, events: Sequence[NewEvent] = ()
    ) -> None:
        """Something of a client was refused; of a stranger only the log knows."""
        with self._write() as connection:
            count_refusal(connection, client_id)
            self._append(connection, events, now)


def count_refusal(connection: Connection, client_id: ClientId) -> None:
    """One more of a client, if it is known."""
    _set_client(connection, client_id, {"refusals": tables.clients.c.refusals + 1})


def _set_client(connection: Connection, client_id: ClientId, values: Mapping[str, Any]) -> bool:
    here = tables.clients.c.client_id == client_id
    return connection.execute(update(tables.clients).where(here).values(values)).rowcount > 0
