"""How long a round may take: by how long its clients have taken so far. Pure; reads no clock.

Each client of a plan is given what its last tasks of this kind usually took, the newest of them at
least, and some spreads more. A task that asks for more than those did is given as many times as
much. The round's deadline is the longest of these: a slow device that is in the plan is waited for
as long as it needs, whatever the others take. Who has not been measured gets the longest deadline,
and who missed one gets twice what it had: a device that became slow catches up with its deadline
within a few rounds.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from coppice.cohort import CohortSpec
from coppice.domain import ClientId, TaskKind
from server.records import TimedTask, Work

#: So many of a client's last tasks of a kind are considered.
KEPT = 8
#: The median of the distances from the median, times this, is the standard deviation of a normal
#: distribution; a single outlier hardly moves it.
_MAD_SCALE = 1.4826
#: No spread is smaller than this share: few tasks tell little of it.
_SMALLEST_SPREAD = 0.25


class Deadlines:
    """What tasks of a run have taken, and the deadlines that follow."""

    def __init__(self, cohort: CohortSpec) -> None:
        self._cohort = cohort
        self._timed: dict[tuple[TaskKind, ClientId], deque[tuple[float, Work]]] = {}
        #: Seconds that a client's last task took at least, where no answer came.
        self._missed: dict[tuple[TaskKind, ClientId], float] = {}
        self._open: tuple[TaskKind, Mapping[ClientId, Work]] | None = None

    def load(self, timed: Iterable[TimedTask]) -> None:
        """Take up what the store knows, each client's oldest first."""
        for task in timed:
            self._add(task.kind, task.client_id, task.seconds, task.work)

    def planned(self, kind: TaskKind, works: Mapping[ClientId, Work]) -> float:
        """These clients get a task; returns the seconds that they have for it."""
        self._open = (kind, works)
        cohort = self._cohort
        if cohort.deadline == "fixed" or not works:
            return cohort.deadline_seconds
        needed = max(self._needed(kind, client_id, work) for client_id, work in works.items())
        return min(cohort.deadline_seconds, max(cohort.deadline_shortest_seconds, needed))

    def closed(self, answered: Mapping[ClientId, float], seconds: float) -> None:
        """The tasks are closed after so long; `answered` took so many seconds."""
        if self._open is None:
            # Planned before the server started.
            return
        kind, works = self._open
        self._open = None
        for client_id, work in works.items():
            if client_id in answered:
                self._missed.pop((kind, client_id), None)
                self._add(kind, client_id, answered[client_id], work)
            else:
                self._missed[kind, client_id] = seconds

    def _add(self, kind: TaskKind, client_id: ClientId, seconds: float, work: Work) -> None:
        # The clock may have been set back meanwhile.
        if seconds > 0:
            timed = self._timed.setdefault((kind, client_id), deque(maxlen=KEPT))
            timed.append((seconds, work))

    def _needed(self, kind: TaskKind, client_id: ClientId, work: Work) -> float:
        timed = self._timed.get((kind, client_id))
        if not timed:
            return self._cohort.deadline_seconds
        took = [seconds * work.times(done) for seconds, done in timed]
        missed = 2 * self._missed.get((kind, client_id), 0.0)
        return max(missed, usual_seconds(took, self._cohort.deadline_spreads))


def usual_seconds(took: Sequence[float], spreads: float) -> float:
    """What a client needs whose tasks took so long, the newest last, and some spreads more."""
    middle = statistics.median(took)
    typical = max(middle, took[-1])
    spread = _MAD_SCALE * statistics.median(abs(seconds - middle) for seconds in took)
    return typical + spreads * max(spread, _SMALLEST_SPREAD * typical)
