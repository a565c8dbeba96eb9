"""What the store does for what devices measured of their rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from coppice.domain import ClientId, RoundReport, TaskKind
from coppice.wire.header import largest_size_bytes
from server import tables
from server.records import NewEvent, ReportRecord, TimedTask
from server.store_rows import report_of, timed_of
from server.store_tasks import StoreTasks
from server.tables import payload_specs, reports, tasks, updates

_ANSWERED = (
    select(tables.updates.c.task_id)
    .join(tables.tasks)
    .where(
        tables.tasks.c.run_id == bindparam("of_run"),
        tables.tasks.c.round_number == bindparam("of_round"),
        tables.tasks.c.client_id == bindparam("of_client"),
        tables.tasks.c.kind == TaskKind.TRAIN,
    )
)
_KNOWN = select(reports.c.report_id).where(
    reports.c.run_id == bindparam("of_run"),
    reports.c.round_number == bindparam("of_round"),
    reports.c.client_id == bindparam("of_client"),
)
_INSERT = insert(reports)
_UPDATE = update(reports).where(reports.c.report_id == bindparam("of_report"))
_NEWEST = select(reports).where(
    reports.c.report_id.in_(select(func.max(reports.c.report_id)).group_by(reports.c.client_id))
)


class StoreReports(StoreTasks):
    """Reports of rounds, written and read."""

    def store_report(
        self,
        run_id: int,
        client_id: ClientId,
        report: RoundReport,
        now: float,
        events: Sequence[NewEvent] = (),
    ) -> ReportRecord | None:
        """Keep the newest report of a client on a round of a run.

        Returns None, and keeps nothing, when it sent no update to train in that round.
        """
        key = {"of_run": run_id, "of_round": report.round_number, "of_client": client_id}
        with self._write() as connection:
            if connection.execute(_ANSWERED, key).first() is None:
                return None
            report_id = connection.scalar(_KNOWN, key)
            if report_id is None:
                values = {
                    "run_id": run_id,
                    "round_number": report.round_number,
                    "client_id": client_id,
                    "report": report,
                    "received_at": now,
                }
                made: Any = connection.execute(_INSERT, values).inserted_primary_key
                report_id = made[0]
            else:
                values = {"of_report": report_id, "report": report, "received_at": now}
                connection.execute(_UPDATE, values)
            self._append(connection, events, now)
        return ReportRecord(int(report_id), run_id, client_id, report, now)

    def timed_tasks(self, run_id: int, most: int) -> list[TimedTask]:
        """How long the last answered tasks of each client took, so many of each kind, in order."""
        place = func.row_number().over(
            partition_by=(tasks.c.client_id, tasks.c.kind), order_by=tasks.c.task_id.desc()
        )
        numbered = (
            select(tasks, updates.c.received_at, updates.c.steps, place.label("place"))
            .join(updates)
            .where(tasks.c.run_id == run_id)
            .subquery()
        )
        newest = select(numbered).where(numbered.c.place <= most).order_by(numbered.c.task_id)
        specs = select(payload_specs).where(
            payload_specs.c.spec_digest.in_(
                select(tasks.c.spec_digest).where(tasks.c.run_id == run_id)
            )
        )
        with self._database.read() as connection:
            up_bytes = {
                row.spec_digest: largest_size_bytes(row.spec) for row in connection.execute(specs)
            }
            return [timed_of(row, up_bytes) for row in connection.execute(newest)]

    def reports(
        self, run_id: int, after: int = 0, limit: int = 1000, *, newest: bool = False
    ) -> list[ReportRecord]:
        """Reports of a run after report `after`, in the order of their rounds at each device.

        Of more than `limit` these are the first, or the last with `newest`.
        """
        query = select(reports).where(reports.c.run_id == run_id, reports.c.report_id > after)
        order = reports.c.report_id.desc() if newest else reports.c.report_id
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(order).limit(limit)).all()
        return [report_of(row) for row in (reversed(rows) if newest else rows)]

    def newest_reports(self) -> list[ReportRecord]:
        """The last report of each client, of whichever run."""
        with self._database.read() as connection:
            return [report_of(row) for row in connection.execute(_NEWEST)]
