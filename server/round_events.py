"""What goes into the round machine (events) and what comes out of it (instructions)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from coppice.domain import ClientId, TaskKind
from server.records import RunState


class Phase(StrEnum):
    """What the run is waiting for."""

    OPENING = "opening"
    GATHERING = "gathering"
    PLANNING = "planning"
    REPORTING = "reporting"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    #: The devices' evaluations are being averaged.
    FOLDING = "folding"
    #: Nobody could do a task: the next round waits a while, or all would be over at once.
    RESTING = "resting"
    #: The next round waits until the server has caught up with its evaluations.
    JUDGING = "judging"
    #: All rounds are done, evaluations of the last ones are not.
    CLOSING = "closing"
    ENDED = "ended"


# ---- events ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundOpened:
    """The round is stored."""

    round_number: int
    #: Whether clients choose before they are planned: those that wait have to come again.
    has_terms: bool
    #: The one client that the round is for; None for a round of a cohort.
    reserved_for: ClientId | None = None


@dataclass(frozen=True)
class ClientArrived:
    """A client is ready for this run and waits for a task."""

    client_id: ClientId


@dataclass(frozen=True)
class ClientGone:
    """A client said goodbye, or has been silent for too long."""

    client_id: ClientId


@dataclass(frozen=True)
class TasksCommitted:
    """The plan's tasks are stored; exactly these clients have one."""

    round_number: int
    clients: tuple[ClientId, ...]
    #: What they have for it, as is stored with the tasks (`server.deadlines`); None: the longest
    #: that the run allows.
    seconds: float | None = None


@dataclass(frozen=True)
class UpdateStored:
    """A client's answer to its task is stored."""

    round_number: int
    client_id: ClientId


@dataclass(frozen=True)
class TaskDropped:
    """A client's answer does not fit its task, or it gave the task back.

    Offered again it would come to the same.
    """

    round_number: int
    client_id: ClientId
    #: Whether the client gave it back.
    is_declined: bool = False
    #: Whether it was answered by an update that was refused.
    is_refused: bool = False


@dataclass(frozen=True)
class RoundCommitted:
    """The next state is stored."""

    round_number: int
    #: Whether an evaluation on the server was started, so that EvaluationDone will come.
    server_evaluates: bool


@dataclass(frozen=True)
class EvaluationDone:
    """An evaluation is stored, or has failed."""

    round_number: int
    where: str
    target_reached: bool


@dataclass(frozen=True)
class DeadlinePassed:
    """The time that SetDeadline gave is over."""

    round_number: int
    phase: Phase


@dataclass(frozen=True)
class StopRequested:
    """An operator wants the run to end."""


Event = (
    RoundOpened
    | ClientArrived
    | ClientGone
    | TasksCommitted
    | UpdateStored
    | TaskDropped
    | RoundCommitted
    | EvaluationDone
    | DeadlinePassed
    | StopRequested
)


# ---- instructions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenRound:
    """Store the round, make its terms, send RoundOpened."""

    round_number: int


@dataclass(frozen=True)
class SetDeadline:
    """Send DeadlinePassed after so long; replaces the deadline before."""

    round_number: int
    phase: Phase
    seconds: float


@dataclass(frozen=True)
class PlanTasks:
    """Plan for these clients, store the tasks, send TasksCommitted."""

    round_number: int
    kind: TaskKind
    cohort: tuple[ClientId, ...]


@dataclass(frozen=True)
class Aggregate:
    """Close the tasks, fold what is stored, commit, send RoundCommitted."""

    round_number: int


@dataclass(frozen=True)
class FailRound:
    """Close the round; the state stays as it was."""

    round_number: int
    reason: str


@dataclass(frozen=True)
class FoldEvaluation:
    """Close the evaluation's tasks, average what is stored, send EvaluationDone."""

    round_number: int


@dataclass(frozen=True)
class EndRun:
    """Store the end. Nothing comes after it."""

    state: RunState
    reason: str


Instruction = OpenRound | SetDeadline | PlanTasks | Aggregate | FailRound | FoldEvaluation | EndRun
