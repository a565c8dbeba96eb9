"""The life of a run as a state machine: events in, instructions out; no I/O, no clock, no tensors.

OPENING ─▶ GATHERING ─▶ PLANNING ─▶ REPORTING ─▶ AGGREGATING ─┬─▶ PLANNING ─▶ EVALUATING ─┐
   ▲       cohort there,            all answered,             │   when clients    all    │
   │       or deadline              or deadline               │   evaluate      answered │
   │       and quorum               and quorum                │                          ▼
   ├────────────────────────────────── FailRound without ─────┴────────────────────── FOLDING
   │                                   quorum                                            │
   └──────────────────────────── next round ─────────────────────────────────────────────┤
                                                          last round, or target reached  ▼
                                                                ENDED ◀── EndRun ── CLOSING

Between two rounds, JUDGING waits for evaluations on the server when too many are under way.

An event that does not belong to the present phase or round changes nothing: it came late.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from coppice.domain import ClientId, RunSpec, TaskKind
from coppice.protection import needed_updates
from server.records import RunState
from server.round_events import (
    Aggregate,
    ClientArrived,
    ClientGone,
    DeadlinePassed,
    EndRun,
    EvaluationDone,
    Event,
    FailRound,
    FoldEvaluation,
    Instruction,
    OpenRound,
    Phase,
    PlanTasks,
    RoundCommitted,
    RoundOpened,
    SetDeadline,
    StopRequested,
    TaskDropped,
    TasksCommitted,
    UpdateStored,
)
from server.selection import cohort_wanted, ranked

#: Evaluations on the server that may be under way when a round begins: each holds a whole state on
#: the disk, and rounds may be faster for ever.
MAX_EVALUATING = 2

#: How long the end of a run waits for evaluations that are still under way.
CLOSING_SECONDS = 3600.0


@dataclass
class RoundMachine:
    """One run. `handle` is the only way in; `start` or a `resume…` comes first."""

    spec: RunSpec
    #: The round that is open, or that was the last.
    round_number: int = 0
    phase: Phase = Phase.OPENING
    #: Clients that are ready for the run and neither left nor lost.
    known: set[ClientId] = field(default_factory=set)
    #: Those of them that wait for a task right now.
    present: set[ClientId] = field(default_factory=set)
    #: Clients whose answer is still to come.
    awaited: set[ClientId] = field(default_factory=set)
    #: Clients that have answered.
    reported: list[ClientId] = field(default_factory=list)
    #: Last round whose state is committed, 0 before the first; equal to `round_number` while
    #: clients evaluate it.
    committed: int = 0
    #: Rounds whose evaluation on the server is not done.
    evaluating: set[int] = field(default_factory=set)
    #: The gathering has waited its full time for a cohort that the fleet is too small for; it
    #: does not do so again in every round.
    patience_spent: bool = False
    #: The one client that the open round is for; None for a round of a cohort.
    reserved_for: ClientId | None = None
    #: Clients that the open round gave a task.
    planned: int = 0
    #: Of those, who gave it back, and whose update was refused when it came.
    declined: int = 0
    refused: int = 0

    # ---- beginnings ----

    def start(self, last_round: int = 0) -> list[Instruction]:
        """Begin with the round after `last_round`, the last one that is over."""
        self.round_number = last_round
        return self._next_round()

    def resume_reporting(
        self,
        round_number: int,
        awaited: Iterable[ClientId],
        reported: Iterable[ClientId],
        seconds: float,
        kind: TaskKind,
        refused: int = 0,
    ) -> list[Instruction]:
        """Go on with a round whose tasks were stored before the server stopped."""
        self.round_number = round_number
        if kind is TaskKind.EVALUATE:
            self.committed = round_number
        self.phase = self._answering
        self.awaited, self.reported = set(awaited), list(reported)
        self.planned = len(self.awaited) + len(self.reported) + refused
        self.refused = refused
        return [
            SetDeadline(round_number, self.phase, max(seconds, 0.0)),
            *self._close_if_complete(),
        ]

    def resume_closed(
        self, round_number: int, reported: Iterable[ClientId], planned: int, refused: int = 0
    ) -> list[Instruction]:
        """Go on with a round whose tasks, so many, were closed before the server stopped."""
        self.round_number = round_number
        self.reported, self.planned, self.refused = list(reported), planned, refused
        return self._close()

    # ---- events ----

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done now."""
        if self.phase is Phase.ENDED:
            return []
        match event:
            case RoundOpened(round_number) if self._is(Phase.OPENING, round_number):
                return self._gather(event)
            case ClientArrived(client_id):
                self.known.add(client_id)
                # One that still owes an answer came before the server remembered its task.
                if client_id not in self.awaited:
                    self.present.add(client_id)
                return self._plan_if_gathered()
            case ClientGone(client_id):
                return self._lose(client_id)
            case TasksCommitted(round_number) if self._is(Phase.PLANNING, round_number):
                return self._await(event.clients, event.seconds)
            case UpdateStored(round_number, client_id) if self._is(self._answering, round_number):
                return self._report(client_id)
            case TaskDropped(round_number, client_id) if round_number == self.round_number:
                self.declined += event.is_declined and client_id in self.awaited
                self.refused += event.is_refused and client_id in self.awaited
                self.awaited.discard(client_id)
                return self._close_if_complete()
            case RoundCommitted(round_number, pending) if self._is(Phase.AGGREGATING, round_number):
                if pending:
                    self.evaluating.add(round_number)
                return self._after_commit()
            case EvaluationDone():
                return self._evaluated(event)
            case DeadlinePassed(round_number, phase) if self._is(phase, round_number):
                return self._deadline()
            case StopRequested():
                return self._end(RunState.STOPPED, "stopped by an operator")
        return []

    # ---- steps ----

    def _is(self, phase: Phase, round_number: int) -> bool:
        return self.phase is phase and self.round_number == round_number

    @property
    def _answering(self) -> Phase:
        """The phase in which answers to the open tasks come in."""
        return Phase.EVALUATING if self.committed == self.round_number else Phase.REPORTING

    def _next_round(self) -> list[Instruction]:
        if self.round_number >= self.spec.stop.rounds:
            return self._finish()
        if len(self.evaluating) > MAX_EVALUATING:
            self.phase = Phase.JUDGING
            return []
        self.round_number += 1
        self.phase = Phase.OPENING
        self.awaited, self.reported = set(), []
        return [OpenRound(self.round_number)]

    def _gather(self, opened: RoundOpened) -> list[Instruction]:
        self.phase = Phase.GATHERING
        self.reserved_for = opened.reserved_for
        if opened.has_terms:
            self.present.clear()
        return [
            SetDeadline(self.round_number, self.phase, self.spec.cohort.gather_seconds),
            *self._plan_if_gathered(),
        ]

    def _plan_if_gathered(self) -> list[Instruction]:
        if self.phase is not Phase.GATHERING:
            return []
        if self.reserved_for is not None:
            there = self.reserved_for in self.present
            return self._plan(TaskKind.TRAIN, [self.reserved_for]) if there else []
        cohort = self.spec.cohort
        if len(self.known) >= cohort.size:
            self.patience_spent = False
        elif not (self.patience_spent and len(self.known) >= cohort.needed):
            return []
        if len(self.present) < min(cohort.planned, len(self.known)):
            # To rank everybody at each arrival would cost the square of the fleet.
            return []
        wanted = cohort_wanted(self.spec, self.round_number, self.known)
        return self._plan(TaskKind.TRAIN, wanted) if self.present.issuperset(wanted) else []

    def _plan(self, kind: TaskKind, cohort: Iterable[ClientId]) -> list[Instruction]:
        self.phase = Phase.PLANNING
        return [PlanTasks(self.round_number, kind, tuple(cohort))]

    def _await(self, clients: tuple[ClientId, ...], seconds: float | None) -> list[Instruction]:
        self.awaited, self.reported = set(clients), []
        self.planned, self.declined, self.refused = len(clients), 0, 0
        self.present -= self.awaited
        self.phase = self._answering
        if not clients and self.phase is Phase.EVALUATING:
            return self._next_round()
        if not clients:
            return self._rest("nobody was given a task")
        longest = self.spec.cohort.deadline_seconds
        return [
            SetDeadline(self.round_number, self.phase, longest if seconds is None else seconds),
            *self._close_if_complete(),
        ]

    def _report(self, client_id: ClientId) -> list[Instruction]:
        # A client that was given up may still answer while the round is open.
        if client_id not in self.reported:
            self.awaited.discard(client_id)
            self.reported.append(client_id)
        return self._close_if_complete()

    def _lose(self, client_id: ClientId) -> list[Instruction]:
        self.known.discard(client_id)
        self.present.discard(client_id)
        if client_id in self.awaited:
            self.awaited.remove(client_id)
            return self._close_if_complete()
        return self._plan_if_gathered()

    def _close_if_complete(self) -> list[Instruction]:
        enough = len(self.reported) >= self.spec.cohort.size
        match self.phase:
            case Phase.REPORTING if enough or not self.awaited:
                return self._close()
            case Phase.EVALUATING if not self.awaited:
                return self._fold_evaluation()
        return []

    def _close(self) -> list[Instruction]:
        # A method may give fewer clients a task than a quorum has.
        needed = needed_updates(self.spec.cohort.needed, self.planned, self.refused)
        if len(self.reported) >= needed:
            self.phase = Phase.AGGREGATING
            return [Aggregate(self.round_number)]
        if self.declined == self.planned:
            return self._rest("no device had the memory for its task")
        reason = f"{len(self.reported)} updates came, {needed} are needed"
        if self.refused:
            reason += f"; {self.refused} more were refused"
        return [FailRound(self.round_number, reason), *self._next_round()]

    def _rest(self, reason: str) -> list[Instruction]:
        self.phase = Phase.RESTING
        rest = SetDeadline(self.round_number, self.phase, self.spec.cohort.gather_seconds)
        return [FailRound(self.round_number, reason), rest]

    def _fold_evaluation(self) -> list[Instruction]:
        self.phase = Phase.FOLDING
        return [FoldEvaluation(self.round_number)]

    def _after_commit(self) -> list[Instruction]:
        self.committed = self.round_number
        # What one client says of a model that it made alone is no judgement of the run's.
        due = self.planned >= self.spec.cohort.needed and self.spec.evaluation_due(
            self.round_number
        )
        cohort = [client_id for client_id in self.reported if client_id in self.known]
        if due and self.spec.evaluation.on_clients and cohort:
            return self._plan(TaskKind.EVALUATE, cohort)
        return self._next_round()

    def _evaluated(self, event: EvaluationDone) -> list[Instruction]:
        if event.where == "server":
            self.evaluating.discard(event.round_number)
        if event.target_reached:
            return self._end(
                RunState.FINISHED, f"the target was reached in round {event.round_number}"
            )
        if event.where == "clients" and self._is(Phase.FOLDING, event.round_number):
            return self._next_round()
        if self.phase is Phase.JUDGING:
            return self._next_round()
        if self.phase is Phase.CLOSING and not self.evaluating:
            return self._finish()
        return []

    def _deadline(self) -> list[Instruction]:
        match self.phase:
            case Phase.GATHERING:
                return self._gathered_late()
            case Phase.REPORTING:
                return self._close()
            case Phase.EVALUATING:
                return self._fold_evaluation()
            case Phase.RESTING:
                return self._next_round()
            case Phase.CLOSING:
                return self._end(RunState.FINISHED, "the last evaluation did not end in time")
        return []

    def _gathered_late(self) -> list[Instruction]:
        if self.reserved_for is not None:
            return [SetDeadline(self.round_number, self.phase, self.spec.cohort.gather_seconds)]
        self.patience_spent = True
        if len(self.present) >= self.spec.cohort.needed:
            order = ranked(self.spec, self.round_number, self.present)
            return self._plan(TaskKind.TRAIN, order[: self.spec.cohort.planned])
        return [SetDeadline(self.round_number, self.phase, self.spec.cohort.gather_seconds)]

    def _finish(self) -> list[Instruction]:
        rounds, needed = self.spec.stop.rounds, self.spec.cohort.needed
        if not self.committed:
            reason = f"none of the {rounds} rounds got the {needed} updates that it needs"
            return self._end(RunState.FAILED, reason)
        if not self.evaluating:
            return self._end(RunState.FINISHED, f"all {rounds} rounds are done")
        self.phase = Phase.CLOSING
        return [SetDeadline(self.round_number, self.phase, CLOSING_SECONDS)]

    def _end(self, state: RunState, reason: str) -> list[Instruction]:
        self.phase = Phase.ENDED
        return [EndRun(state, reason)]
