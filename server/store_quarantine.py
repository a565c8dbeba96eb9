"""What the store does for updates that were refused."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, func, insert, select

from coppice.domain import BlobRef, ClientId
from coppice.protection import Finding
from server.records import NewEvent, RefusalRecord, RoundState, TaskRecord
from server.store_clients import count_refusal
from server.store_reports import StoreReports
from server.store_rows import of_round, refusal_of, the_round
from server.tables import quarantine, rounds, runs

_INSERT = insert(quarantine)
_OF_TASK = select(quarantine).where(quarantine.c.task_id == bindparam("of_task"))
_OF_ROUND = select(quarantine.c.task_id).where(of_round(quarantine))
_STRIKES = (
    select(quarantine.c.client_id, func.count())
    .join(
        rounds,
        (rounds.c.run_id == quarantine.c.run_id)
        & (rounds.c.round_number == quarantine.c.round_number),
    )
    .where(quarantine.c.run_id == bindparam("of_run"), rounds.c.state == RoundState.COMMITTED)
    .group_by(quarantine.c.client_id)
)


class StoreQuarantine(StoreReports):
    """Refused updates, written and read."""

    def refuse_update(
        self,
        task: TaskRecord,
        blob: BlobRef,
        finding: Finding,
        now: float,
        events: Sequence[NewEvent] = (),
    ) -> None:
        """Note that the answer to a task was refused when it came; the first word on it stays."""
        with self._write() as connection:
            # Both may come at once, from a device that answers twice.
            if self._refusal(connection, task.task_id) or self._update(connection, task.task_id):
                return
            add_refusal(connection, task, blob, finding, now)
            self._append(connection, events, now)

    def refusal(self, task_id: int) -> RefusalRecord | None:
        """Why the answer to a task was refused; None when it was not."""
        with self._database.read() as connection:
            return self._refusal(connection, task_id)

    def refusals(
        self,
        run_id: int,
        after: int = 0,
        limit: int = 1000,
        *,
        newest: bool = False,
        client_id: ClientId | None = None,
    ) -> list[RefusalRecord]:
        """Refused updates of a run, or of one client in it, after refusal `after`, in order.

        Of more than `limit` these are the first, or the last with `newest`.
        """
        query = select(quarantine).where(
            quarantine.c.run_id == run_id, quarantine.c.refusal_id > after
        )
        if client_id is not None:
            query = query.where(quarantine.c.client_id == client_id)
        order = quarantine.c.refusal_id.desc() if newest else quarantine.c.refusal_id
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(order).limit(limit)).all()
        return [refusal_of(row) for row in (reversed(rows) if newest else rows)]

    def refused_tasks(self, run_id: int, round_number: int) -> set[int]:
        """The tasks of a round whose answers were refused."""
        with self._database.read() as connection:
            found = connection.scalars(_OF_ROUND, the_round(run_id, round_number))
            return set(found)

    def strikes(self, run_id: int) -> dict[ClientId, int]:
        """How many updates of each client were refused in rounds of a run that were committed.

        In rounds that failed, the others' were no better.
        """
        with self._database.read() as connection:
            rows = connection.execute(_STRIKES, {"of_run": run_id}).all()
        return {ClientId(client_id): count for client_id, count in rows}

    def refused_clients(self) -> set[ClientId]:
        """Who has had an update refused in a run that is not over."""
        query = (
            select(quarantine.c.client_id)
            .distinct()
            .join(runs, runs.c.run_id == quarantine.c.run_id)
            .where(runs.c.ended_at.is_(None))
        )
        with self._database.read() as connection:
            return {ClientId(name) for name in connection.scalars(query)}

    def _refusal(self, connection: Connection, task_id: int) -> RefusalRecord | None:
        row = connection.execute(_OF_TASK, {"of_task": task_id}).one_or_none()
        return None if row is None else refusal_of(row)


def add_refusal(
    connection: Connection, task: TaskRecord, blob: BlobRef, finding: Finding, now: float
) -> None:
    """Insert a row of `quarantine`, and count it against the client."""
    connection.execute(
        _INSERT,
        {
            "task_id": task.task_id,
            "run_id": task.run_id,
            "round_number": task.round_number,
            "client_id": task.client_id,
            "rule": finding.rule,
            "reason": finding.reason,
            "evidence": finding.evidence,
            "digest": blob.digest,
            "size_bytes": blob.size_bytes,
            "refused_at": now,
        },
    )
    count_refusal(connection, task.client_id)
