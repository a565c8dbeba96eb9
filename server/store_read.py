"""What can be asked of the store: any thread may, and each answer is of one moment."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, func, select

from coppice.domain import BlobRef, ClientId, TaskKind
from coppice.errors import UnknownRun, UnknownTask
from server.database import Database
from server.records import (
    ClientRecord,
    EvaluationRecord,
    EventRecord,
    LedgerRow,
    RoundRecord,
    RoundState,
    RunRecord,
    RunState,
    TaskRecord,
    UpdateRecord,
)
from server.store_rows import (
    blob_of,
    client_of,
    ledger_row_of,
    of_round,
    round_of,
    run_of,
    task_of,
    the_round,
    update_of,
)
from server.tables import (
    clients,
    evaluations,
    events,
    payload_specs,
    quarantine,
    rounds,
    runs,
    tasks,
    updates,
)

#: Refused updates whose bytes are kept, of the open run: a device could send any number.
QUARANTINED = 16

_UNFINISHED = (RunState.QUEUED, RunState.RUNNING)

_RUN = select(runs).where(runs.c.run_id == bindparam("of_run"))
_ROUND = select(rounds).where(of_round(rounds))
# Tasks get their numbers in plan order.
_TASKS = select(tasks, payload_specs.c.spec).join(payload_specs).order_by(tasks.c.task_id)
_TASKS_OF_ROUND = _TASKS.where(of_round(tasks))
_UPDATES = select(
    updates,
    tasks.c.client_id,
    tasks.c.offered_at,
    tasks.c.masks_digest,
    tasks.c.masks_size_bytes,
).join(tasks)
_UPDATES_OF_ROUND = _UPDATES.where(of_round(tasks), tasks.c.kind == bindparam("of_kind")).order_by(
    tasks.c.position
)
_UPDATE = _UPDATES.where(updates.c.task_id == bindparam("of_task"))


class StoreReader:
    """What can be asked; `server.store.Store` adds what can be done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- runs ------------------------------------------------------------------------------

    def run(self, run_id: int) -> RunRecord:
        """One run; UnknownRun when there is none of this number."""
        with self._database.read() as connection:
            return self._run(connection, run_id)

    def run_of_key(self, key: str) -> RunRecord | None:
        """The run that a `RunRecord.key` names; None when it is another store's."""
        try:
            record = self.run(int(key.partition("-")[0]))
        except UnknownRun:
            return None
        return record if record.key == key else None

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        with self._database.read() as connection:
            return [run_of(row) for row in connection.execute(select(runs).order_by(runs.c.run_id))]

    def open_run(self) -> RunRecord | None:
        """The run that is running."""
        return self._first_run(RunState.RUNNING)

    def next_run(self) -> RunRecord | None:
        """The run that has been queued for longest."""
        return self._first_run(RunState.QUEUED)

    def rounds(self, run_id: int, after: int = 0, limit: int | None = None) -> list[RoundRecord]:
        """The first `limit` rounds (or all) of a run with a number above `after`, in order."""
        query = (
            select(rounds)
            .where(rounds.c.run_id == run_id, rounds.c.round_number > after)
            .order_by(rounds.c.round_number)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [round_of(row) for row in connection.execute(query)]

    def round(self, run_id: int, round_number: int) -> RoundRecord | None:
        """One round, or None when it was never opened."""
        with self._database.read() as connection:
            return self._round(connection, run_id, round_number)

    def round_state(self, run_id: int, round_number: int) -> BlobRef | None:
        """The state after a round that is over; a sweep may have removed the blob of an old one.

        After round 0 means before the first; it is known until the first round is over.
        """
        with self._database.read() as connection:
            run = self._run(connection, run_id)
            if round_number == run.round_number:
                return run.state_blob
            query = select(rounds.c.state_digest, rounds.c.state_size_bytes)
            row = connection.execute(
                query.where(of_round(rounds)), the_round(run_id, round_number)
            ).one_or_none()
            return None if row is None else blob_of(*row)

    def committed_round(self, run_id: int) -> int:
        """The last round of a run that gave a new state; 0 when there was none."""
        query = select(func.max(rounds.c.round_number)).where(
            rounds.c.run_id == run_id, rounds.c.state == RoundState.COMMITTED
        )
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def evaluations(self, run_id: int, after: int = 0) -> list[EvaluationRecord]:
        """What was measured after the rounds above `after`, in their order."""
        query = (
            select(evaluations)
            .where(evaluations.c.run_id == run_id, evaluations.c.round_number > after)
            .order_by(evaluations.c.round_number, evaluations.c.place)
        )
        with self._database.read() as connection:
            return [
                EvaluationRecord(row.run_id, row.round_number, row.place, row.metrics, row.others)
                for row in connection.execute(query)
            ]

    # ---- tasks and updates -----------------------------------------------------------------

    def task(self, task_id: int) -> TaskRecord:
        """One task; UnknownTask when there is none of this number."""
        query = _TASKS.where(tasks.c.task_id == task_id)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise UnknownTask(f"there is no task {task_id}")
        return task_of(row)

    def tasks(
        self, run_id: int, round_number: int, kind: TaskKind = TaskKind.TRAIN
    ) -> list[TaskRecord]:
        """The tasks of one kind of a round, in plan order."""
        with self._database.read() as connection:
            found = self._tasks_of_round(connection, run_id, round_number)
        return [task for task in found if task.kind is kind]

    def open_tasks(self, run_id: int) -> list[TaskRecord]:
        """The tasks of a run that still take an update, in plan order."""
        query = _TASKS.where(tasks.c.run_id == run_id, tasks.c.closed.is_(False))
        with self._database.read() as connection:
            return [task_of(row) for row in connection.execute(query)]

    def update(self, task_id: int) -> UpdateRecord | None:
        """What was answered to a task."""
        with self._database.read() as connection:
            return self._update(connection, task_id)

    def updates(
        self, run_id: int, round_number: int, kind: TaskKind = TaskKind.TRAIN
    ) -> list[UpdateRecord]:
        """What was answered to a round's tasks of one kind, in plan order."""
        with self._database.read() as connection:
            return self._updates_of_round(connection, run_id, round_number, kind)

    def ledger(self, run_id: int) -> list[LedgerRow]:
        """What became of each task of a run, in plan order."""
        query = (
            select(
                tasks,
                updates.c.digest,
                updates.c.num_examples,
                updates.c.counted,
                quarantine.c.refusal_id,
            )
            .select_from(tasks)
            .outerjoin(updates, updates.c.task_id == tasks.c.task_id)
            .outerjoin(quarantine, quarantine.c.task_id == tasks.c.task_id)
            .where(tasks.c.run_id == run_id)
            .order_by(tasks.c.round_number, tasks.c.task_id)
        )
        with self._database.read() as connection:
            return [ledger_row_of(row) for row in connection.execute(query)]

    # ---- clients and the log ---------------------------------------------------------------

    def client(self, client_id: ClientId) -> ClientRecord | None:
        """One client, joined now or ever."""
        with self._database.read() as connection:
            return self._client(connection, client_id)

    def clients(self) -> list[ClientRecord]:
        """Every client that ever joined, by name."""
        query = select(clients).order_by(clients.c.client_id)
        with self._database.read() as connection:
            return [client_of(row) for row in connection.execute(query)]

    def events(
        self, run_id: int | None, after: int = 0, limit: int = 1000, *, newest: bool = False
    ) -> list[EventRecord]:
        """Lines after line `after` of a run's log, in order; of the whole log for None.

        Of more than `limit` lines these are the first, or the last with `newest`.
        """
        query = select(events).where(events.c.event_id > after)
        if run_id is not None:
            query = query.where(events.c.run_id == run_id)
        order = events.c.event_id.desc() if newest else events.c.event_id
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(order).limit(limit)).all()
        return [EventRecord(**row._mapping) for row in (reversed(rows) if newest else rows)]

    # ---- blobs -----------------------------------------------------------------------------

    def live_blobs(self) -> set[str]:
        """Digests of the blobs that must stay.

        The last and the best state of every run, the warm start of a run that is not over, and
        payload, masks and update of every task that is not closed or whose round is not, and the
        newest refused updates of the open run. What an evaluation on the server still needs is its
        caller's to add.
        """
        wanted = select(tasks.c.payload_digest, tasks.c.masks_digest, updates.c.digest)
        wanted = wanted.select_from(tasks)
        wanted = wanted.outerjoin(updates)
        # Two queries, each by an index: a run has many tasks and few of these.
        open_tasks = wanted.where(tasks.c.closed.is_(False))
        open_rounds = wanted.join(
            runs,
            and_(runs.c.run_id == tasks.c.run_id, runs.c.round_number + 1 == tasks.c.round_number),
        ).where(runs.c.state == RunState.RUNNING)
        unfinished = select(runs.c.spec).where(runs.c.state.in_(_UNFINISHED))
        refused = select(quarantine.c.digest).join(runs, runs.c.run_id == quarantine.c.run_id)
        refused = refused.where(runs.c.state == RunState.RUNNING)
        refused = refused.order_by(quarantine.c.refusal_id.desc()).limit(QUARANTINED)
        with self._database.read() as connection:
            found = [
                *connection.execute(refused),
                *connection.execute(select(runs.c.state_digest, runs.c.best_digest)),
                *connection.execute(open_tasks),
                *connection.execute(open_rounds),
            ]
            starts = [spec.warm_start for spec in connection.scalars(unfinished)]
        live = {digest for row in found for digest in row if digest is not None}
        return live | {start.digest for start in starts if start is not None}

    # ---- the same inside a transaction -----------------------------------------------------

    def _run(self, connection: Connection, run_id: int) -> RunRecord:
        row = connection.execute(_RUN, {"of_run": run_id}).one_or_none()
        if row is None:
            raise UnknownRun(f"there is no run {run_id}; `fedserver run list` shows all runs")
        return run_of(row)

    def _first_run(self, state: RunState) -> RunRecord | None:
        query = select(runs).where(runs.c.state == state).order_by(runs.c.run_id).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else run_of(row)

    def _round(self, connection: Connection, run_id: int, round_number: int) -> RoundRecord | None:
        row = connection.execute(_ROUND, the_round(run_id, round_number)).one_or_none()
        return None if row is None else round_of(row)

    def _tasks_of_round(
        self, connection: Connection, run_id: int, round_number: int
    ) -> list[TaskRecord]:
        rows = connection.execute(_TASKS_OF_ROUND, the_round(run_id, round_number))
        return [task_of(row) for row in rows]

    def _updates_of_round(
        self, connection: Connection, run_id: int, round_number: int, kind: TaskKind
    ) -> list[UpdateRecord]:
        values = the_round(run_id, round_number) | {"of_kind": kind}
        return [update_of(row) for row in connection.execute(_UPDATES_OF_ROUND, values)]

    def _update(self, connection: Connection, task_id: int) -> UpdateRecord | None:
        row = connection.execute(_UPDATE, {"of_task": task_id}).one_or_none()
        return None if row is None else update_of(row)

    def _client(self, connection: Connection, client_id: ClientId) -> ClientRecord | None:
        query = select(clients).where(clients.c.client_id == client_id)
        row = connection.execute(query).one_or_none()
        return None if row is None else client_of(row)
