"""Signs of life: which clients are there, and what they are doing, as far as they have told.

None of this outlives the process; after a restart clients tell again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from coppice.domain import Capability, ClientId
from server.records import LiveClient

#: A client that was silent for so long is called suspect.
SUSPECT_SECONDS = 10.0

#: How often devices are asked for a sign of life: three of them fit in SUSPECT_SECONDS.
HEARTBEAT_SECONDS = 3.0


@dataclass
class _Seen:
    at: float
    polls: int = 0
    left: bool = False
    task_id: int | None = None
    steps_done: int = 0
    resident_bytes: int = 0
    activity: str = ""
    share: float | None = None
    capability: Capability | None = None


class Presence:
    """What is known of each client since the server started."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[ClientId, _Seen] = {}

    def saw(self, client_id: ClientId) -> None:
        """A call or a byte came from this client."""
        seen = self._seen.setdefault(client_id, _Seen(self._clock()))
        seen.at = self._clock()
        seen.left = False

    def told(self, client_id: ClientId, capability: Capability) -> None:
        """The client said what it has now."""
        self.saw(client_id)
        self._seen[client_id].capability = capability

    def capability(self, client_id: ClientId) -> Capability | None:
        """What the client has, as it said last; None when it said nothing yet."""
        seen = self._seen.get(client_id)
        return None if seen is None else seen.capability

    @contextmanager
    def polling(self, client_id: ClientId) -> Iterator[None]:
        """The client waits for work meanwhile, which needs no further sign of life."""
        self.saw(client_id)
        seen = self._seen[client_id]
        seen.polls += 1
        seen.task_id = None
        seen.activity, seen.share = "", None
        try:
            yield
        finally:
            seen.polls -= 1
            seen.at = self._clock()

    def expected(self, client_id: ClientId, task_id: int) -> None:
        """The client has a task from before the server started: its silence begins now."""
        self._has_task(client_id, task_id, "unheard")

    def offered(self, client_id: ClientId, task_id: int) -> None:
        """The client was given a task."""
        self._has_task(client_id, task_id, "fetching")

    def _has_task(self, client_id: ClientId, task_id: int, activity: str) -> None:
        self.saw(client_id)
        seen = self._seen[client_id]
        seen.task_id, seen.steps_done = task_id, 0
        seen.activity, seen.share = activity, None

    def working(
        self,
        client_id: ClientId,
        task_id: int | None,
        steps_done: int = 0,
        resident_bytes: int = 0,
        fetched: float | None = None,
    ) -> None:
        """The client told what it is working on, and how far it is with it.

        `fetched` is the share that it has of what it is fetching; None when that is nothing.
        """
        self.saw(client_id)
        seen = self._seen[client_id]
        seen.task_id, seen.steps_done, seen.resident_bytes = task_id, steps_done, resident_bytes
        if fetched is not None:
            seen.activity, seen.share = "fetching", fetched
        elif task_id is None:
            seen.activity, seen.share = "", None
        elif seen.activity != "uploading":
            seen.activity, seen.share = "at work", None

    def fetching(self, client_id: ClientId) -> None:
        """Bytes are on their way to the client; how many have arrived only it can tell."""
        self.saw(client_id)
        seen = self._seen[client_id]
        if seen.activity != "fetching":
            seen.activity, seen.share = "fetching", None

    def uploading(self, client_id: ClientId, share: float) -> None:
        """So much of the client's update has come."""
        self.saw(client_id)
        seen = self._seen[client_id]
        seen.activity, seen.share = "uploading", share

    def left(self, client_id: ClientId) -> None:
        """The client said goodbye."""
        self.saw(client_id)
        self._seen[client_id].left = True

    def silent_for(self, client_id: ClientId) -> float:
        """Seconds since the last sign of life; infinite for a client that never gave one."""
        seen = self._seen.get(client_id)
        if seen is None:
            return float("inf")
        return 0.0 if seen.polls else self._clock() - seen.at

    def snapshot(self, lost_after_seconds: float) -> dict[ClientId, LiveClient]:
        """Everyone seen since the start; who is silent for `lost_after_seconds` is lost."""
        return {
            client_id: self._live(client_id, seen, lost_after_seconds)
            for client_id, seen in self._seen.items()
        }

    def _live(self, client_id: ClientId, seen: _Seen, lost_after_seconds: float) -> LiveClient:
        silent = self.silent_for(client_id)
        live = LiveClient(
            client_id,
            "idle",
            silent,
            seen.task_id,
            seen.steps_done,
            seen.resident_bytes,
            seen.activity,
            seen.share,
        )
        if seen.left:
            return replace(live, presence="left")
        if silent >= lost_after_seconds:
            return replace(live, presence="lost")
        if silent >= SUSPECT_SECONDS:
            return replace(live, presence="suspect")
        return replace(live, presence="working" if seen.task_id else "idle")
