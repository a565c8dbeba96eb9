"""Calls that were refused: all are counted, each kind of a client's is logged once."""

from __future__ import annotations

from coppice.domain import ClientId
from coppice.errors import CoppiceError, ServerBusy, UpdateRefused
from server.records import NewEvent
from server.resources import Resources

#: So many kinds of one client's are logged; one that makes up more cannot fill the disk.
_MAX_KINDS = 100


class Refusals:
    """Since the server started; the store keeps each known client's total."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        #: Kinds by client; those of strangers, by whatever names, are one client's.
        self._logged: dict[ClientId | None, set[str]] = {}
        self.count = 0

    async def add(self, client_id: ClientId | None, error: CoppiceError, *, known: bool) -> None:
        """Count one; `known` tells whether the client has joined."""
        self.count += 1
        store, write = self._resources.store, self._resources.write
        name = type(error).__name__
        # A stranger may call itself anything: its name makes no kinds of its own.
        culprit, kind = (client_id, f"{name}: {error}"[:200]) if known else (None, name)
        if is_busy := isinstance(error, ServerBusy):
            # Not the device's fault; and to count these would make a busy server busier.
            culprit, kind = None, f"{name}: {error}"
        logged = self._logged.setdefault(culprit, set())
        events = []
        # A refused update has a line of its own, and is counted with it.
        if isinstance(error, UpdateRefused):
            return
        if kind not in logged and len(logged) < _MAX_KINDS:
            logged.add(kind)
            text = f"refused {client_id or 'a caller without a name'}: {error}"
            events = [NewEvent("call_refused", text[:500], client_id=culprit)]
        if known and not is_busy:
            await write(store.count_refusal, client_id, events=events)
        elif events:
            await write(store.append, events=events)
