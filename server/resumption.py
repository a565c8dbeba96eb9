"""Where a run goes on after the server was stopped, read from the store and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from coppice.domain import ClientId, TaskKind
from server.records import RoundState, RunRecord, TaskRecord
from server.round_events import EvaluationDone, Instruction
from server.rounds import RoundMachine
from server.store import ON_CLIENTS, Store


def resume(
    machine: RoundMachine, record: RunRecord, store: Store, now: float
) -> tuple[list[Instruction], dict[ClientId, TaskRecord]]:
    """Put the machine where the run was.

    Returns:
        Its first instructions, and the tasks that are not answered yet.
    """
    last = machine.round_number = record.round_number
    committed = machine.committed = store.committed_round(record.run_id)
    if _target_reached(record):
        # The server stopped between the evaluation and the end.
        return machine.handle(EvaluationDone(record.best_round or last, "server", True)), {}
    evaluated = {
        (item.round_number, item.where) for item in store.evaluations(record.run_id, committed - 1)
    }
    due = record.spec.evaluation.data is not None and record.spec.evaluation_due(committed)
    if committed and due and (committed, "server") not in evaluated:
        machine.evaluating = {committed}
    opened = store.round(record.run_id, last + 1)
    if opened is not None and opened.state is RoundState.OPEN:
        tasks = store.tasks(record.run_id, last + 1)
    elif (last, ON_CLIENTS) not in evaluated:
        tasks = store.tasks(record.run_id, last, TaskKind.EVALUATE)
    else:
        tasks = []
    if not tasks:
        return machine.start(last), {}
    return _resume_tasks(machine, tasks, store, now)


def _resume_tasks(
    machine: RoundMachine, tasks: Sequence[TaskRecord], store: Store, now: float
) -> tuple[list[Instruction], dict[ClientId, TaskRecord]]:
    answered = {task.client_id for task in tasks if store.update(task.task_id) is not None}
    refused = store.refused_tasks(tasks[0].run_id, tasks[0].round_number)
    refused &= {task.task_id for task in tasks}
    waiting = {
        task.client_id: task
        for task in tasks
        if not (task.client_id in answered or task.task_id in refused or task.closed)
    }
    reported = [task.client_id for task in tasks if task.client_id in answered]
    first = tasks[0]
    if first.closed and first.kind is TaskKind.TRAIN:
        closed = machine.resume_closed(first.round_number, reported, len(tasks), len(refused))
        return closed, {}
    cohort = machine.spec.cohort
    # Whoever has finished while the server was away gets as long to come back as one that is
    # silent. And the clock may have been set meanwhile, in either direction.
    seconds = min(max(first.deadline_at - now, cohort.lost_after_seconds), cohort.deadline_seconds)
    return (
        machine.resume_reporting(
            first.round_number, waiting, reported, seconds, first.kind, len(refused)
        ),
        waiting,
    )


def _target_reached(record: RunRecord) -> bool:
    target, best = record.spec.stop.target, record.best_value
    return target is not None and best is not None and record.spec.evaluation.reaches(best, target)
