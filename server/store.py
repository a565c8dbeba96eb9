"""The one door to the database: a method that writes is one transaction, on disk when it returns.

`server.tables` says what is kept. A `Store` is also all that it inherits: what can be asked
(`store_read`), who may write, and the log (`store_write`), clients (`store_clients`), tasks and
their updates (`store_tasks`), what devices measured (`store_reports`), which updates were refused
(`store_quarantine`), who was let in (`store_members`), who may use the page, and the audit log
(`store_access`). Writing is for one thread, reading for any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from coppice.domain import BlobRef, Metrics, RunSpec, TaskKind
from coppice.errors import StoreUnusable
from coppice.protection import Finding
from server import tables
from server.access_records import Line
from server.database import Database
from server.records import NewEvent, RoundState, RunState
from server.store_access import StoreAccess
from server.store_quarantine import add_refusal
from server.store_rows import of_round, the_round
from server.store_tasks import close_tasks, set_round

#: Where a model was evaluated, when devices did it on their held-out parts.
ON_CLIENTS = "clients"

_INSERT_ROUND = insert(tables.rounds)
_SET_RUN = update(tables.runs).where(tables.runs.c.run_id == bindparam("of_run"))
_COUNT = (
    update(tables.updates)
    .where(tables.updates.c.task_id == bindparam("of_task"))
    .values(counted=True)
)
_CLOSE_ROUND = update(tables.tasks).where(of_round(tables.tasks)).values(closed=True)
_CLOSE_RUN = (
    update(tables.tasks).where(tables.tasks.c.run_id == bindparam("of_run")).values(closed=True)
)


class Store(StoreAccess):
    """Runs, rounds, tasks, updates, reports, clients, members and the log.

    A method raises StoreUnusable or DiskFull when the database does not work or does not allow
    what is asked, and StoreLeased when another server took the store over; nothing is changed then.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        """Nothing is opened before the first call; see `server.database.Database`."""
        super().__init__(Database(url, durable=durable))

    def migrate(self) -> None:
        """Make the tables, or bring them to this version's state, if the database is sound."""
        self._database.migrate()

    def close(self) -> None:
        """Close every connection; the lease stays as it is."""
        self._database.close()

    # ---- runs and rounds -----------------------------------------------------------------------

    def submit_run(self, spec: RunSpec, now: float, events: Sequence[Line] = ()) -> int:
        """Queue a run; returns its number."""
        with self._write() as connection:
            result = connection.execute(
                insert(tables.runs).values(
                    spec=spec,
                    state=RunState.QUEUED,
                    reason="",
                    submitted_at=now,
                    round_number=0,
                )
            )
            key: Any = result.inserted_primary_key
            self._append(connection, events, now)
        return int(key[0])

    def start_run(
        self, run_id: int, state: BlobRef, now: float, events: Sequence[NewEvent] = ()
    ) -> None:
        """A queued run is running, from this state."""
        with self._write() as connection:
            run = self._run(connection, run_id)
            if run.state is not RunState.QUEUED:
                raise StoreUnusable(f"run {run_id} cannot start: it is {run.state}")
            _set_run(connection, run_id, state=RunState.RUNNING, started_at=now, **_state(state))
            self._append(connection, events, now)

    def open_round(
        self, run_id: int, round_number: int, now: float, events: Sequence[NewEvent] = ()
    ) -> None:
        """Open the round after the last one; an open round stays as it is."""
        with self._write() as connection:
            known = self._round(connection, run_id, round_number)
            if known is not None and known.state is RoundState.OPEN:
                return
            run = self._run(connection, run_id)
            if run.state is not RunState.RUNNING or round_number != run.round_number + 1:
                raise StoreUnusable(
                    f"round {round_number} of run {run_id} cannot open: the run is {run.state} "
                    f"and round {run.round_number} was its last"
                )
            connection.execute(
                _INSERT_ROUND,
                {
                    "run_id": run_id,
                    "round_number": round_number,
                    "state": RoundState.OPEN,
                    "opened_at": now,
                    "num_updates": 0,
                    "bytes_down": 0,
                    "bytes_up": 0,
                    "metrics": {},
                },
            )
            self._append(connection, events, now)

    def commit_round(
        self,
        run_id: int,
        round_number: int,
        state: BlobRef,
        metrics: Metrics,
        counted: Sequence[int],
        now: float,
        events: Sequence[NewEvent] = (),
        *,
        refused: Mapping[int, Finding] | None = None,
    ) -> None:
        """The round is over and this is the new state.

        Args:
            counted: The tasks whose updates the state has in it; each counts once, ever.
            refused: Those whose updates were refused, and why.
        """
        refused = refused or {}
        with self._write() as connection:
            self._require_open(connection, run_id, round_number)
            updates = self._updates_of_round(connection, run_id, round_number, TaskKind.TRAIN)
            stored = {record.task_id: record.blob for record in updates}
            if sorted(counted) != sorted(stored.keys() & counted) or refused.keys() & counted:
                raise StoreUnusable(
                    f"round {round_number} of run {run_id} cannot be committed: it counts an "
                    "update twice, or one that is refused or not stored for this round"
                )
            if refused:
                for task in self._tasks_of_round(connection, run_id, round_number):
                    if task.task_id in refused:
                        blob, finding = stored[task.task_id], refused[task.task_id]
                        add_refusal(connection, task, blob, finding, now)
            if counted:
                connection.execute(_COUNT, [{"of_task": task_id} for task_id in counted])
            close_tasks(connection, run_id, round_number, TaskKind.TRAIN)
            set_round(
                connection,
                run_id,
                round_number,
                state=RoundState.COMMITTED,
                closed_at=now,
                num_updates=len(counted),
                metrics=metrics,
                **_state(state),
            )
            _set_run(connection, run_id, round_number=round_number, **_state(state))
            self._append(connection, events, now)

    def fail_round(
        self, run_id: int, round_number: int, now: float, events: Sequence[NewEvent] = ()
    ) -> None:
        """The round is over and the state stays as it was."""
        with self._write() as connection:
            self._require_open(connection, run_id, round_number)
            self._fail_round(connection, run_id, round_number, now)
            self._append(connection, events, now)

    def record_evaluation(
        self,
        run_id: int,
        round_number: int,
        where: str,
        metrics: Metrics,
        best: tuple[float, BlobRef] | None = None,
        others: Mapping[str, Metrics] | None = None,
        *,
        now: float,
        events: Sequence[NewEvent] = (),
    ) -> None:
        """What the model after a round is worth; the first record of a place stays.

        Args:
            where: "server" or "clients"; the latter closes the round's tasks of kind evaluate.
            best: Value and state, when the model is the run's best so far.
            others: What the other models of the round's state are worth, by name.
        """
        key = {"run_id": run_id, "round_number": round_number, "place": where}
        with self._write() as connection:
            if connection.execute(select(tables.evaluations).filter_by(**key)).first() is not None:
                return
            connection.execute(
                insert(tables.evaluations).values(
                    **key, metrics=metrics, others=others or {}, evaluated_at=now
                )
            )
            if where == ON_CLIENTS:
                close_tasks(connection, run_id, round_number, TaskKind.EVALUATE)
            if best is not None:
                value, state = best
                _set_run(
                    connection,
                    run_id,
                    best_round=round_number,
                    best_value=value,
                    best_digest=state.digest,
                    best_size_bytes=state.size_bytes,
                )
            self._append(connection, events, now)

    def end_run(
        self,
        run_id: int,
        state: RunState,
        reason: str,
        now: float,
        events: Sequence[NewEvent] = (),
    ) -> None:
        """The run is over, its open round failed, its tasks closed; the first end stays."""
        with self._write() as connection:
            run = self._run(connection, run_id)
            if run.state not in (RunState.QUEUED, RunState.RUNNING):
                return
            opened = self._round(connection, run_id, run.round_number + 1)
            if opened is not None:
                self._fail_round(connection, run_id, opened.round_number, now)
            connection.execute(_CLOSE_RUN, {"of_run": run_id})
            _set_run(connection, run_id, state=state, reason=reason, ended_at=now)
            self._append(connection, events, now)

    # ---- the same inside a transaction ---------------------------------------------------------

    def _require_open(self, connection: Connection, run_id: int, round_number: int) -> None:
        found = self._round(connection, run_id, round_number)
        if found is None or found.state is not RoundState.OPEN:
            state = "never opened" if found is None else found.state
            raise StoreUnusable(f"round {round_number} of run {run_id} is not open: it is {state}")

    def _fail_round(
        self, connection: Connection, run_id: int, round_number: int, now: float
    ) -> None:
        state = self._run(connection, run_id).state_blob
        connection.execute(_CLOSE_ROUND, the_round(run_id, round_number))
        set_round(
            connection,
            run_id,
            round_number,
            state=RoundState.FAILED,
            closed_at=now,
            **_state(state),
        )
        _set_run(connection, run_id, round_number=round_number)


def _state(blob: BlobRef | None) -> dict[str, Any]:
    return {
        "state_digest": blob and blob.digest,
        "state_size_bytes": blob and blob.size_bytes,
    }


def _set_run(connection: Connection, run_id: int, **values: Any) -> None:
    connection.execute(_SET_RUN, {"of_run": run_id} | values)
