"""Rows of the tables as the records that the store hands out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, and_, bindparam

from coppice.domain import BlobRef, ClientId, TaskKind
from coppice.protection import Finding
from server.records import (
    ClientRecord,
    LedgerRow,
    RefusalRecord,
    ReportRecord,
    RoundRecord,
    RoundState,
    RunRecord,
    RunState,
    TaskRecord,
    TimedTask,
    UpdateRecord,
    Work,
)


def of_round(table: Table) -> ColumnElement[bool]:
    """The condition that a row of a table belongs to the round that `the_round` names.

    The statements on the path of a round are built once and given their values at each execution:
    to build one costs more than to carry it out.
    """
    return and_(
        table.c.run_id == bindparam("of_run"), table.c.round_number == bindparam("of_round")
    )


def the_round(run_id: int, round_number: int) -> dict[str, int]:
    """The values for `of_round`."""
    return {"of_run": run_id, "of_round": round_number}


def blob_of(digest: str | None, size_bytes: int | None) -> BlobRef | None:
    """The blob that two columns name, if they do."""
    return None if digest is None or size_bytes is None else BlobRef(digest, size_bytes)


def run_of(row: Row[Any]) -> RunRecord:
    """A row of `runs`."""
    return RunRecord(
        run_id=row.run_id,
        spec=row.spec,
        state=RunState(row.state),
        reason=row.reason,
        submitted_at=row.submitted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        round_number=row.round_number,
        state_blob=blob_of(row.state_digest, row.state_size_bytes),
        best_round=row.best_round,
        best_value=row.best_value,
        best_blob=blob_of(row.best_digest, row.best_size_bytes),
    )


def round_of(row: Row[Any]) -> RoundRecord:
    """A row of `rounds`."""
    return RoundRecord(
        run_id=row.run_id,
        round_number=row.round_number,
        state=RoundState(row.state),
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        num_updates=row.num_updates,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
        metrics=row.metrics,
    )


def task_of(row: Row[Any]) -> TaskRecord:
    """A row of `tasks` with its spec."""
    return TaskRecord(
        task_id=row.task_id,
        run_id=row.run_id,
        round_number=row.round_number,
        client_id=ClientId(row.client_id),
        kind=TaskKind(row.kind),
        position=row.position,
        payload=BlobRef(row.payload_digest, row.payload_size_bytes),
        masks=blob_of(row.masks_digest, row.masks_size_bytes),
        settings=row.settings,
        expects=row.spec,
        base=row.base_digest,
        deadline_at=row.deadline_at,
        closed=row.closed,
        most_examples=row.most_examples,
        most_steps=row.most_steps,
    )


def update_of(row: Row[Any]) -> UpdateRecord:
    """A row of `updates` with its task's client."""
    return UpdateRecord(
        task_id=row.task_id,
        client_id=ClientId(row.client_id),
        blob=BlobRef(row.digest, row.size_bytes),
        num_examples=row.num_examples,
        steps=row.steps,
        metrics=row.metrics,
        masks=blob_of(row.masks_digest, row.masks_size_bytes),
        offered_at=row.offered_at,
        received_at=row.received_at,
        counted=row.counted,
    )


def client_of(row: Row[Any]) -> ClientRecord:
    """A row of `clients`."""
    return ClientRecord(
        client_id=ClientId(row.client_id),
        device_id=row.device_id,
        labels=row.labels,
        capability=row.capability,
        app_digest=row.app_digest,
        software=row.software,
        joined_at=row.joined_at,
        left_at=row.left_at,
        left_reason=row.left_reason,
        refusals=row.refusals,
    )


def refusal_of(row: Row[Any]) -> RefusalRecord:
    """A row of `quarantine`."""
    return RefusalRecord(
        refusal_id=row.refusal_id,
        run_id=row.run_id,
        round_number=row.round_number,
        task_id=row.task_id,
        client_id=ClientId(row.client_id),
        finding=Finding(row.rule, row.reason, row.evidence),
        blob=BlobRef(row.digest, row.size_bytes),
        refused_at=row.refused_at,
    )


def report_of(row: Row[Any]) -> ReportRecord:
    """A row of `reports`."""
    return ReportRecord(
        report_id=row.report_id,
        run_id=row.run_id,
        client_id=ClientId(row.client_id),
        report=row.report,
        received_at=row.received_at,
    )


def timed_of(row: Row[Any], up_bytes: Mapping[str, int]) -> TimedTask:
    """A row of `tasks` with its answer; `up_bytes` is by the digest of its spec."""
    steps = row.steps if row.most_steps is None else row.most_steps
    work = Work(
        down_bytes=row.payload_size_bytes + (row.masks_size_bytes or 0),
        steps=steps if row.kind == TaskKind.TRAIN else None,
        up_bytes=up_bytes[row.spec_digest],
    )
    seconds = row.received_at - row.offered_at
    return TimedTask(TaskKind(row.kind), ClientId(row.client_id), seconds, work)


def ledger_row_of(row: Row[Any]) -> LedgerRow:
    """A row of `tasks` with what `updates` and `quarantine` have of it."""
    return LedgerRow(
        run_id=row.run_id,
        round_number=row.round_number,
        task_id=row.task_id,
        client_id=ClientId(row.client_id),
        kind=TaskKind(row.kind),
        base=row.base_digest,
        outcome=_outcome(row),
        num_examples=row.num_examples,
        digest=row.digest,
    )


def _outcome(row: Row[Any]) -> str:
    if row.refusal_id is not None:
        return "refused"
    if row.digest is None:
        return "missing"
    if row.counted:
        return "counted"
    # What answers another kind of task is never part of a state: to be received is all it can be.
    return "uncounted" if row.closed and row.kind == TaskKind.TRAIN else "received"
