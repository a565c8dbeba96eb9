"""Where a run goes on after the server was stopped, read from the store and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from coppice.domain import ClientId
from server.records import RoundState, RunRecord, TaskRecord
from server.round_events import Instruction
from server.rounds import RoundMachine
from server.store import Store


def resume(
    machine: RoundMachine, record: RunRecord, store: Store, now: float
) -> tuple[list[Instruction], dict[ClientId, TaskRecord]]:
    """Put the machine where the run was.

    Returns:
        Its first instructions, and the tasks that are not answered yet.
    """
    last = record.round_number
    machine.evaluating = _unevaluated(record, store)
    opened = store.round(record.run_id, last + 1)
    if opened is not None and opened.state is RoundState.OPEN:
        tasks = store.tasks(record.run_id, last + 1)
        if tasks and all(task.closed for task in tasks):
            return machine.resume_aggregating(last + 1), {}
    else:
        tasks = store.open_tasks(record.run_id)
    if not tasks:
        return machine.start(last), {}
    return _resume_tasks(machine, tasks, store, now)


def _resume_tasks(
    machine: RoundMachine, tasks: Sequence[TaskRecord], store: Store, now: float
) -> tuple[list[Instruction], dict[ClientId, TaskRecord]]:
    answered = {task.client_id for task in tasks if store.update(task.task_id) is not None}
    waiting = {task.client_id: task for task in tasks if task.client_id not in answered}
    first = tasks[0]
    instructions = machine.resume_reporting(
        first.round_number,
        waiting,
        [task.client_id for task in tasks if task.client_id in answered],
        first.deadline_at - now,
        first.kind,
    )
    return instructions, waiting


def _unevaluated(record: RunRecord, store: Store) -> set[int]:
    """The last round, when its evaluation on the server is due and not stored."""
    last = record.round_number
    if not last or record.spec.evaluation.data is None or not record.spec.evaluation_due(last):
        return set()
    done = {
        item.round_number for item in store.evaluations(record.run_id) if item.where == "server"
    }
    return {last} - done
