"""The sign of life, from a second thread: it carries progress and learns what is still wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from coppice.errors import CoppiceError, ServerBusy
from coppice.wire import coordination_pb2 as pb
from edge_client.connection import Connection
from edge_client.meter import Meter, resident_bytes
from edge_client.stop import Stopped

SHORTEST_SECONDS = 0.05
LONGEST_SECONDS = 60.0
_JOIN_SECONDS = 2.0
#: However busy a server is: after longer ones it may take this device for lost.
_LONGEST_SILENCE_SECONDS = 8.0


class Heartbeat:
    """Beats from `start` to `stop`; what fails in it, the main loop notices by itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: From one beat to the next.
        self.interval_seconds = LONGEST_SECONDS
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        #: The task being worked on, and its meter. Replaced as one, so no lock is needed.
        self._work: tuple[int, Meter] | None = None
        #: How long a busy server wants to hear nothing.
        self._asked_seconds = 0.0

    @property
    def pause_seconds(self) -> float:
        """Until the next beat."""
        return max(self.interval_seconds, self._asked_seconds)

    def start(self, interval_seconds: float) -> None:
        """Beat this often from now on; also after a server said otherwise."""
        self.interval_seconds = min(max(interval_seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    @contextmanager
    def working_on(self, task_id: int, meter: Meter) -> Iterator[None]:
        """Meanwhile the beats are about this task."""
        self._work = (task_id, meter)
        try:
            yield
        finally:
            self._work = None

    def end(self) -> None:
        """Begin no other beat."""
        self._ended.set()

    def join(self) -> None:
        """Wait for the thread, which a closed connection lets go."""
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while not self._ended.wait(self.pause_seconds):
            self._connection.progress.check()
            self._beat()

    def _beat(self) -> None:
        work, fetched = self._work, self._connection.progress.fetched
        if work is None:
            request = pb.HeartbeatRequest(resident_bytes=resident_bytes(), fetched=fetched)
        else:
            task_id, meter = work
            request = pb.HeartbeatRequest(
                task_id=task_id,
                steps_done=meter.steps_done,
                resident_bytes=meter.sample_bytes(),
                fetched=fetched,
            )
        try:
            reply = self._connection.heartbeat(request)
        except ServerBusy as error:
            self._asked_seconds = min(error.retry_seconds, _LONGEST_SILENCE_SECONDS)
            return
        except (CoppiceError, Stopped):
            return
        self._asked_seconds = 0.0
        if work is not None and reply is not None and not reply.wanted:
            work[1].abandon()
