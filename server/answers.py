"""What a device brings with a poll, and what it can be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coppice.domain import BlobRef, Capability, ClientId, RoundReport
from server.records import NewTask, RunRecord, TaskRecord


@dataclass(frozen=True)
class CheckIn:
    """What a poll says of its device."""

    client_id: ClientId
    #: Key of the run that the device is ready for; empty for none.
    run_key: str
    #: Size of its training part under that run.
    num_examples: int
    capability: Capability
    #: SHA-256 of its app module; empty without one.
    app_digest: str
    #: The answer to the terms of a round, with the round's number.
    choice: tuple[int, Mapping[str, Any]] | None
    #: What its last round of that run took.
    report: RoundReport | None = None
    #: The task that it was offered and cannot do; 0 for none.
    declined_task_id: int = 0
    #: The newest of its refused updates in that run that it was told of; 0 for none.
    refusal_seen: int = 0


@dataclass(frozen=True)
class OpenRun:
    """Get ready for this run."""

    record: RunRecord


@dataclass(frozen=True)
class OpenTerms:
    """Choose, then poll again."""

    round_number: int
    payload: BlobRef


@dataclass(frozen=True)
class EndedRun:
    """The run that the device is ready for is over."""

    record: RunRecord
    #: The model to keep, as a task of kind KEEP; None when there is none for this client.
    keep: NewTask | None


#: None when there is nothing yet.
Answer = OpenRun | OpenTerms | TaskRecord | EndedRun | None


def blobs_of(task: NewTask | TaskRecord) -> set[str]:
    """Digests of the blobs that a task offers."""
    return {ref.digest for ref in (task.payload, task.masks) if ref is not None}
