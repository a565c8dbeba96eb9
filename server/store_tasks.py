"""What the store does for tasks: plans are committed, updates are stored, tasks are closed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from coppice.domain import BlobRef, ClientId, Metrics, TaskKind
from coppice.errors import RoundClosed, UnknownTask, UpdateRefused
from coppice.tensors import PayloadSpec
from server import tables
from server.records import NewEvent, NewTask, TaskRecord, UpdateRecord
from server.store_clients import StoreClients
from server.store_rows import blob_of, of_round, the_round

_ANSWERED = (
    select(
        tables.tasks,
        tables.updates.c.task_id.label("answered"),
        tables.quarantine.c.reason.label("refused"),
    )
    .select_from(tables.tasks)
    .outerjoin(tables.updates, tables.updates.c.task_id == tables.tasks.c.task_id)
    .outerjoin(tables.quarantine, tables.quarantine.c.task_id == tables.tasks.c.task_id)
    .where(tables.tasks.c.task_id == bindparam("of_task"))
)
_INSERT_TASK = insert(tables.tasks)
_INSERT_UPDATE = insert(tables.updates)
_SET_ROUND = update(tables.rounds).where(of_round(tables.rounds))
_ADD_BYTES = _SET_ROUND.values(
    bytes_down=tables.rounds.c.bytes_down + bindparam("more_down"),
    bytes_up=tables.rounds.c.bytes_up + bindparam("more_up"),
)
_CLOSE_TASKS = (
    update(tables.tasks)
    .where(of_round(tables.tasks), tables.tasks.c.kind == bindparam("of_kind"))
    .values(closed=True)
)
_OPEN_TASKS = (
    update(tables.tasks)
    .where(of_round(tables.tasks), tables.tasks.c.kind == bindparam("of_kind"))
    .values(
        closed=False,
        deadline_at=tables.tasks.c.deadline_at - tables.tasks.c.offered_at + bindparam("begun_at"),
    )
)
_FORGET_UPDATE = delete(tables.updates).where(tables.updates.c.task_id == bindparam("of_task"))
_SPEC = select(tables.payload_specs.c.spec_digest).where(
    tables.payload_specs.c.spec_digest == bindparam("of_digest")
)


class StoreTasks(StoreClients):
    """The writing half for tasks; each method is one transaction."""

    def commit_tasks(
        self,
        run_id: int,
        round_number: int,
        base: str,
        deadline_at: float,
        tasks: Sequence[NewTask],
        now: float,
        events: Sequence[NewEvent] = (),
    ) -> list[TaskRecord]:
        """Store a round's plan of one or more kinds of task, once for each kind.

        Args:
            base: Digest of the state that the tasks were planned from.
            deadline_at: Seconds since the epoch.
            tasks: In plan order; a client has at most one of a kind.
        """
        with self._write() as connection:
            # Tasks that expect the same thing usually share the object.
            expects = {id(task.expects): task.expects for task in tasks}
            specs = {key: _store_spec(connection, spec) for key, spec in expects.items()}
            if tasks:
                connection.execute(
                    _INSERT_TASK,
                    [
                        {
                            "run_id": run_id,
                            "round_number": round_number,
                            "kind": task.kind,
                            "client_id": task.client_id,
                            "position": position,
                            "payload_digest": task.payload.digest,
                            "payload_size_bytes": task.payload.size_bytes,
                            "masks_digest": task.masks.digest if task.masks else None,
                            "masks_size_bytes": task.masks.size_bytes if task.masks else None,
                            "settings": task.settings,
                            "spec_digest": specs[id(task.expects)],
                            "base_digest": base,
                            "offered_at": now,
                            "deadline_at": deadline_at,
                            "closed": False,
                            "most_examples": task.most_examples,
                            "most_steps": task.most_steps,
                        }
                        for position, task in enumerate(tasks)
                    ],
                )
            self._append(connection, events, now)
            kinds = {task.kind for task in tasks}
            stored = self._tasks_of_round(connection, run_id, round_number)
            return [task for task in stored if task.kind in kinds]

    def store_update(
        self,
        task_id: int,
        blob: BlobRef,
        num_examples: int,
        steps: int,
        metrics: Metrics,
        now: float,
        events: Sequence[NewEvent] = (),
        *,
        sent_bytes: int = 0,
    ) -> UpdateRecord:
        """Store the answer to a task; if there is one already, that stays and is returned.

        UnknownTask when there is no such task; RoundClosed when it takes no update any more,
        UpdateRefused when one was refused.

        Args:
            sent_bytes: What devices fetched in the task's round and is not stored yet.
        """
        with self._write() as connection:
            task = connection.execute(_ANSWERED, {"of_task": task_id}).one_or_none()
            if task is None:
                raise UnknownTask(f"there is no task {task_id}")
            known = self._update(connection, task_id) if task.answered is not None else None
            if known is not None:
                return known
            if task.refused is not None:
                raise UpdateRefused(task.refused)
            if task.closed:
                raise RoundClosed(f"round {task.round_number} is over; the update does not count")
            connection.execute(
                _INSERT_UPDATE,
                {
                    "task_id": task_id,
                    "digest": blob.digest,
                    "size_bytes": blob.size_bytes,
                    "num_examples": num_examples,
                    "steps": steps,
                    "metrics": metrics,
                    "received_at": now,
                    "counted": False,
                },
            )
            here = the_round(task.run_id, task.round_number)
            connection.execute(
                _ADD_BYTES, here | {"more_down": sent_bytes, "more_up": blob.size_bytes}
            )
            self._append(connection, events, now)
        return UpdateRecord(
            task_id=task_id,
            client_id=ClientId(task.client_id),
            blob=blob,
            num_examples=num_examples,
            steps=steps,
            metrics=metrics,
            masks=blob_of(task.masks_digest, task.masks_size_bytes),
            offered_at=task.offered_at,
            received_at=now,
            counted=False,
        )

    def forget_update(self, task: TaskRecord, now: float, events: Sequence[NewEvent] = ()) -> None:
        """The stored answer to a task cannot be read: its round takes answers again, as long."""
        with self._write() as connection:
            connection.execute(_FORGET_UPDATE, {"of_task": task.task_id})
            here = the_round(task.run_id, task.round_number)
            again = {"of_kind": task.kind, "begun_at": now}
            connection.execute(_OPEN_TASKS, here | again)
            self._append(connection, events, now)

    def close_tasks(
        self,
        run_id: int,
        round_number: int,
        kind: TaskKind,
        sent_bytes: int,
        now: float,
        events: Sequence[NewEvent] = (),
    ) -> list[UpdateRecord]:
        """From now on the round's tasks of this kind take no update; what is stored stays.

        Args:
            sent_bytes: What devices fetched for these tasks and is not stored yet.

        Returns:
            All that is stored for these tasks, in plan order.
        """
        with self._write() as connection:
            here = the_round(run_id, round_number)
            connection.execute(_ADD_BYTES, here | {"more_down": sent_bytes, "more_up": 0})
            close_tasks(connection, run_id, round_number, kind)
            self._append(connection, events, now)
            return self._updates_of_round(connection, run_id, round_number, kind)


def set_round(connection: Connection, run_id: int, round_number: int, **values: Any) -> None:
    """Change a row of `rounds`."""
    connection.execute(_SET_ROUND, the_round(run_id, round_number) | values)


def close_tasks(connection: Connection, run_id: int, round_number: int, kind: TaskKind) -> None:
    """Take no update for a round's tasks of one kind any more."""
    connection.execute(_CLOSE_TASKS, the_round(run_id, round_number) | {"of_kind": kind})


def _store_spec(connection: Connection, spec: PayloadSpec) -> str:
    """The digest of a spec, which is stored if it was not yet."""
    digest = hashlib.sha256(tables.plain_text(spec).encode()).hexdigest()
    if connection.execute(_SPEC, {"of_digest": digest}).first() is None:
        connection.execute(insert(tables.payload_specs).values(spec_digest=digest, spec=spec))
    return digest
