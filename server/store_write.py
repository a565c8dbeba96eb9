"""The right to write to the store: the lease, and transactions that only its holder may make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, delete, insert, select, update

from coppice.errors import StoreLeased
from server import tables
from server.access_records import AuditEntry, Line
from server.database import Database
from server.lease import Lease, LeaseOwner
from server.records import NewEvent
from server.store_read import StoreReader

# Databases that take more than one writer at a time need the lock; SQLite has one writer.
_LEASE = select(tables.lease).with_for_update()
_INSERT_EVENT = insert(tables.events)
_INSERT_AUDIT = insert(tables.audit)


class StoreWriter(StoreReader):
    """Writes under a lease, where one was taken, and keeps the logs."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._owner: LeaseOwner | None = None

    def take_lease(self, owner: LeaseOwner, now: float) -> None:
        """From now on only `owner` may write; StoreLeased while another live server may."""
        with self._database.write() as connection:
            held = _lease(connection)
            if held is not None and not held.is_free_for(owner, now):
                raise StoreLeased(
                    f"another server (pid {held.owner.pid} on host {held.owner.host}) uses this "
                    "store; stop it or use another store"
                )
            connection.execute(delete(tables.lease))
            connection.execute(
                insert(tables.lease).values(
                    lease_id=1,
                    token=owner.token,
                    host=owner.host,
                    process_table=owner.process_table,
                    pid=owner.pid,
                    process_started_at=owner.process_started_at,
                    renewed_at=now,
                )
            )
        self._owner = owner

    def renew_lease(self, owner: LeaseOwner, now: float) -> None:
        """Say that `owner` still lives; StoreLeased when it does not hold the lease any more."""
        with self._database.write() as connection:
            _require_lease(connection, owner)
            connection.execute(update(tables.lease).values(renewed_at=now))

    def release_lease(self, owner: LeaseOwner) -> None:
        """Give the lease back, if `owner` still has it."""
        with self._database.write() as connection:
            connection.execute(delete(tables.lease).where(tables.lease.c.token == owner.token))
        self._owner = None

    def append(self, events: Sequence[Line], now: float) -> None:
        """Add lines to the log, and to the audit log."""
        with self._write() as connection:
            self._append(connection, events, now)

    @contextlib.contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that changes nothing when another server took the store over.

        A server that was suspended for longer than its lease does not know that it lost it.
        """
        with self._database.write() as connection:
            if self._owner is not None:
                _require_lease(connection, self._owner)
            yield connection

    def _append(self, connection: Connection, events: Sequence[Line], now: float) -> None:
        for statement, kind in ((_INSERT_EVENT, NewEvent), (_INSERT_AUDIT, AuditEntry)):
            rows = [{"at": now, **vars(event)} for event in events if isinstance(event, kind)]
            if rows:
                connection.execute(statement, rows)


def _lease(connection: Connection) -> Lease | None:
    row = connection.execute(_LEASE).one_or_none()
    if row is None:
        return None
    return Lease(
        LeaseOwner(row.host, row.process_table, row.pid, row.process_started_at, row.token),
        row.renewed_at,
    )


def _require_lease(connection: Connection, owner: LeaseOwner) -> None:
    held = _lease(connection)
    if held is None or held.owner.token != owner.token:
        taker = (
            f"pid {held.owner.pid} on host {held.owner.host}" if held else "one that ended since"
        )
        raise StoreLeased(
            f"another server ({taker}) took this store over after {owner.host} was silent for too "
            "long; start again once it has ended"
        )
