"""What the store hands out: a frozen dataclass a table. Times are seconds since the epoch, UTC."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from coppice.domain import BlobRef, Capability, ClientId, Metrics, RoundReport, RunSpec, TaskKind
from coppice.protection import Finding
from coppice.tensors import PayloadSpec


class RunState(StrEnum):
    """Life of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class RoundState(StrEnum):
    """Life of a round, as far as the store knows it."""

    OPEN = "open"
    COMMITTED = "committed"
    #: Fewer updates than the quorum: the model stayed as it was.
    FAILED = "failed"


@dataclass(frozen=True)
class RunRecord:
    """One training, and how far it is."""

    run_id: int
    spec: RunSpec
    state: RunState
    #: Why it ended, or what it waits for, for people.
    reason: str
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    #: Last round that is over, committed or failed; 0 before the first.
    round_number: int
    #: The state after that round; None before the run was started.
    state_blob: BlobRef | None
    #: Round whose model did best by the evaluation's metric, its value and its state.
    best_round: int | None
    best_value: float | None
    best_blob: BlobRef | None

    @property
    def key(self) -> str:
        """Names this run among those of all servers: another one's run 1 began at another time."""
        mark = hashlib.sha256(repr(self.submitted_at).encode()).hexdigest()[:16]
        return f"{self.run_id}-{mark}"


@dataclass(frozen=True)
class RoundRecord:
    """One round of a run."""

    run_id: int
    round_number: int
    state: RoundState
    opened_at: float
    closed_at: float | None
    #: Number of updates folded.
    num_updates: int
    bytes_down: int
    bytes_up: int
    metrics: Metrics


@dataclass(frozen=True)
class EvaluationRecord:
    """What the model after a round was worth."""

    run_id: int
    round_number: int
    #: "server" or "clients".
    where: str
    metrics: Metrics
    #: The same of the state's other models (`ServerHalf.models`) by name, on the server only.
    others: Mapping[str, Metrics]


@dataclass(frozen=True)
class ClientRecord:
    """A device that has joined, now or earlier."""

    client_id: ClientId
    device_id: str
    labels: Mapping[str, str]
    capability: Capability
    #: SHA-256 of the client's app module; empty without one.
    app_digest: str
    software: str
    joined_at: float
    left_at: float | None
    left_reason: str
    #: Messages and updates of this client that were refused, ever.
    refusals: int


@dataclass(frozen=True)
class Work:
    """How much a task asks of a client."""

    #: To fetch.
    down_bytes: int = 0
    #: Local steps, at most; None where that is not known, or there are none.
    steps: int | None = None
    #: To send, at most.
    up_bytes: int = 0

    def times(self, other: Work) -> float:
        """How many times as long as the other this may take; 1 at least.

        A step takes as long as there are weights, and so do the bytes to fetch.
        """
        steps = _times(self.steps, other.steps) * _times(self.down_bytes, other.down_bytes)
        return max(steps, _times(self.up_bytes, other.up_bytes))


def _times(count: int | None, other: int | None) -> float:
    return max(1.0, count / other) if count and other else 1.0


@dataclass(frozen=True)
class TimedTask:
    """How long an answered task took, from its offer to its answer."""

    kind: TaskKind
    client_id: ClientId
    seconds: float
    work: Work


@dataclass(frozen=True)
class NewTask:
    """A task as the plan made it, before the store gave it a number."""

    client_id: ClientId
    kind: TaskKind
    payload: BlobRef
    #: The masks that the payload's sparse tensors are on; None when it has none.
    masks: BlobRef | None
    settings: Mapping[str, Any]
    expects: PayloadSpec
    #: Examples and local steps that its update may claim; None where nothing is known of them.
    most_examples: int | None = None
    most_steps: int | None = None
    #: Of no use once the deadline is known, so the store does not keep it.
    work: Work = Work()


@dataclass(frozen=True)
class TaskRecord:
    """What a client was asked to do."""

    task_id: int
    run_id: int
    round_number: int
    client_id: ClientId
    kind: TaskKind
    #: Place in the plan, from 0; updates are folded in this order.
    position: int
    payload: BlobRef
    #: The masks that the payload's sparse tensors are on; None when it has none.
    masks: BlobRef | None
    settings: Mapping[str, Any]
    expects: PayloadSpec
    #: Digest of the state that the task was planned from.
    base: str
    deadline_at: float
    #: No update is taken any more.
    closed: bool
    #: Examples and local steps that its update may claim; None where nothing is known of them.
    most_examples: int | None = None
    most_steps: int | None = None


@dataclass(frozen=True)
class UpdateRecord:
    """A stored answer to a task."""

    task_id: int
    client_id: ClientId
    blob: BlobRef
    num_examples: int
    steps: int
    metrics: Metrics
    #: The masks of its task.
    masks: BlobRef | None
    #: When its task was stored, and when it was.
    offered_at: float
    received_at: float
    #: Whether it is part of a committed state. One update counts at most once.
    counted: bool


@dataclass(frozen=True)
class Stored:
    """What a receipt says."""

    client_id: ClientId
    run_key: str
    task_id: int
    #: Digest of the state that the task was planned from.
    base: str
    #: Digest of the update.
    digest: str
    #: Seconds since the epoch.
    stored_at: int


@dataclass(frozen=True)
class RefusalRecord:
    """An update that was refused."""

    #: Grows with each refusal.
    refusal_id: int
    run_id: int
    round_number: int
    task_id: int
    client_id: ClientId
    finding: Finding
    #: What came, or was announced; the bytes of the newest ones stay while the run is open.
    blob: BlobRef
    refused_at: float


@dataclass(frozen=True)
class ReportRecord:
    """What a round took on a device."""

    report_id: int
    run_id: int
    client_id: ClientId
    report: RoundReport
    received_at: float


@dataclass(frozen=True)
class LedgerRow:
    """What became of one task."""

    run_id: int
    round_number: int
    task_id: int
    client_id: ClientId
    kind: TaskKind
    base: str
    #: "counted", "received" (stored, round not closed yet), "uncounted" (its round closed
    #: without it), "refused" or "missing".
    outcome: str
    num_examples: int | None
    digest: str | None


@dataclass(frozen=True)
class EventRecord:
    """One line of a run's log."""

    event_id: int
    at: float
    #: Past participle: "round_committed", "client_joined", "update_refused" …
    kind: str
    text: str
    run_id: int | None = None
    round_number: int | None = None
    client_id: ClientId | None = None


@dataclass(frozen=True)
class NewEvent:
    """A line for the log, before it has a number and a time."""

    kind: str
    #: One printable line, whatever a device has put into it.
    text: str
    run_id: int | None = None
    round_number: int | None = None
    client_id: ClientId | None = None

    def __post_init__(self) -> None:
        shown = "".join(char if char.isprintable() else " " for char in self.text)
        object.__setattr__(self, "text", shown)


@dataclass(frozen=True)
class LiveClient:
    """What the server knows of a client only from its signs of life."""

    client_id: ClientId
    #: "idle" (a poll is pending), "working", "suspect", "lost" or "left".
    presence: str
    seconds_silent: float
    task_id: int | None = None
    steps_done: int = 0
    resident_bytes: int = 0
    #: "fetching", "at work" or "uploading", as far as the server has seen; "unheard" for a task
    #: from before the server started, and empty without a task.
    activity: str = ""
    #: Of what it fetches or uploads, how much has gone: 0 to 1.
    share: float | None = None


@dataclass(frozen=True)
class AwaitedClient:
    """A client that a round waits for."""

    client_id: ClientId
    #: What it is doing, for people: "71 % uploaded".
    doing: str
    #: As in `LiveClient`; None for a client that gave no sign of life yet.
    live: LiveClient | None


@dataclass(frozen=True)
class Wait:
    """What a run waits for."""

    #: In one sentence for people, without the time: "1 of 8: pi-03, 71 % uploaded". Empty when it
    #: does not wait but is at work itself.
    text: str = ""
    #: Seconds since the epoch; None for a wait that goes on until what it is for comes.
    until: float | None = None
    #: What happens then, or what has to come; empty where there is nothing to say.
    then: str = ""
    clients: tuple[AwaitedClient, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The present moment, for people; none of it is needed after a restart."""

    run_id: int | None
    round_number: int
    #: A phase of `server.rounds`, "idle" when no run is open.
    phase: str
    #: What the round waits for.
    wait: Wait
    clients: Mapping[ClientId, LiveClient] = field(default_factory=dict)
    #: Messages and updates refused since the server started.
    refusals: int = 0
