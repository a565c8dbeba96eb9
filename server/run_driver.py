"""Drives one run: carries out what its round machine says and tells the machine what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from coppice.aggregation import MeanMetrics
from coppice.domain import BlobRef, ClientId, Metrics, Participant, TaskKind
from coppice.errors import AppError, DataError
from server.bell import Bell
from server.records import NewEvent, RunRecord, RunState, TaskRecord
from server.resources import Resources
from server.resumption import resume
from server.round_events import (
    Aggregate,
    ClientArrived,
    ClientGone,
    DeadlinePassed,
    EndRun,
    EvaluationDone,
    Event,
    FailRound,
    FoldEvaluation,
    Instruction,
    OpenRound,
    Phase,
    PlanTasks,
    RoundCommitted,
    RoundOpened,
    SetDeadline,
    StopRequested,
    TasksCommitted,
    UpdateRejected,
    UpdateStored,
)
from server.rounds import RoundMachine
from server.run_work import RunWork
from server.selection import has_labels

#: Blobs younger than this are never swept: a row that names them may be on its way.
_SWEEP_AGE_SECONDS = 10.0


class RunDriver:
    """One run, from its first round or from where the server stopped, to its end."""

    def __init__(self, record: RunRecord, resources: Resources, bell: Bell) -> None:
        """`bell` rings whenever a pending poll may have an answer."""
        self.run_id = record.run_id
        self.spec = record.spec
        self.machine = RoundMachine(record.spec)
        #: Unanswered open tasks.
        self.tasks: dict[ClientId, TaskRecord] = {}
        #: What clients choose from in the open round; None where there is no choice.
        self.terms: BlobRef | None = None
        self._record = record
        self._resources = resources
        self._store = resources.store
        self._bell = bell
        self._work = RunWork(record.spec, resources.blobs)
        self._state_blob = record.state_blob
        #: The best round so far, its value and its state.
        self._best: tuple[int, float, BlobRef] | None = None
        if record.best_round and record.best_value is not None and record.best_blob:
            self._best = (record.best_round, record.best_value, record.best_blob)
        #: Bytes that devices fetched for the open tasks.
        self._sent_bytes = 0
        self._participants: dict[ClientId, Participant] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        self._evaluations: dict[asyncio.Task[None], str] = {}

    # ---- what the coordinator asks and tells ----

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether a client with these labels may take part."""
        return has_labels(labels, self.spec.cohort.labels)

    def arrived(self, participant: Participant) -> None:
        """A client is ready and waits for a task."""
        self._participants[participant.client_id] = participant
        if participant.client_id not in self.machine.present:
            self._events.put_nowait(ClientArrived(participant.client_id))

    def gone(self, client_id: ClientId) -> None:
        """A client left, was lost, or its waiting poll broke off."""
        if client_id in self.machine.known | self.machine.awaited:
            self._events.put_nowait(ClientGone(client_id))

    def sent(self, size_bytes: int) -> None:
        """Bytes went down to a device."""
        self._sent_bytes += size_bytes

    def update_stored(self, task: TaskRecord) -> None:
        """An answer is stored."""
        self.tasks.pop(task.client_id, None)
        self._events.put_nowait(UpdateStored(task.round_number, task.client_id))

    def update_rejected(self, task: TaskRecord) -> None:
        """An answer does not fit its task, which is not offered again."""
        self.tasks.pop(task.client_id, None)
        self._events.put_nowait(UpdateRejected(task.round_number, task.client_id))

    def stop(self) -> None:
        """An operator wants the run to end."""
        self._events.put_nowait(StopRequested())

    # ---- the loop ----

    async def run(self) -> None:
        """Until the run has ended. Cancelled, it leaves the run open in the store."""
        try:
            await self._load_state()
            instructions, self.tasks = await self._resources.threads.store(
                partial(resume, self.machine, self._record, self._store, time.time())
            )
            for round_number in self.machine.evaluating:
                self._evaluate(round_number, self._known_state)
            while self.machine.phase is not Phase.ENDED:
                for instruction in instructions:
                    await self._carry_out(instruction)
                instructions = self.machine.handle(await self._events.get())
            for instruction in instructions:
                await self._carry_out(instruction)
        finally:
            self._disarm()
            for task in self._evaluations:
                task.cancel()

    async def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case OpenRound(round_number):
                await self._open_round(round_number)
            case SetDeadline(round_number, phase, seconds):
                self._disarm()
                self._timer = asyncio.get_running_loop().call_later(
                    seconds, self._events.put_nowait, DeadlinePassed(round_number, phase)
                )
            case PlanTasks():
                await self._plan(instruction)
            case Aggregate(round_number):
                await self._aggregate(round_number)
            case FailRound(round_number, reason):
                await self._close_tasks(round_number, TaskKind.TRAIN)
                text = f"round {round_number} failed: {reason}"
                event = NewEvent("round_failed", text, self.run_id, round_number)
                await self._write(self._store.fail_round, round_number, events=[event])
            case FoldEvaluation(round_number):
                await self._fold_evaluation(round_number)
            case EndRun(state, reason):
                await self._end(state, reason)

    async def _load_state(self) -> None:
        compute = self._resources.threads.compute
        if self._state_blob is not None:
            await compute(partial(self._work.load_state, self._state_blob))
            event = self._event("run_resumed", f"run {self.spec.name} goes on")
            await self._resources.write(self._store.append, events=[event])
            return
        app = self.spec.app
        app_path = None if app is None else self._resources.app_path(app.digest)
        self._state_blob = await compute(partial(self._work.init_state, app_path))
        event = self._event("run_started", f"run {self.spec.name} started")
        await self._write(self._store.start_run, self._state_blob, events=[event])

    # ---- instructions ----

    async def _open_round(self, round_number: int) -> None:
        await self._write(self._store.open_round, round_number)
        work = partial(self._work.terms, round_number)
        self.terms = await self._resources.threads.compute(work)
        self._events.put_nowait(RoundOpened(round_number, self.terms is not None))
        self._bell.ring()

    async def _plan(self, plan: PlanTasks) -> None:
        cohort = [self._participants[client_id] for client_id in plan.cohort]
        new = await self._resources.threads.compute(
            partial(self._work.plan, plan.kind, cohort, plan.round_number)
        )
        tasks = await self._write(
            self._store.commit_tasks,
            plan.round_number,
            self._known_state.digest,
            time.time() + self.spec.cohort.deadline_seconds,
            new,
            events=[
                self._event(
                    "tasks_committed", f"round {plan.round_number}: {len(new)} to {plan.kind}"
                )
            ],
        )
        self.tasks = {task.client_id: task for task in tasks}
        self._events.put_nowait(TasksCommitted(plan.round_number, tuple(self.tasks)))
        self._bell.ring()
        # The clients are at work now: the time to tidy up.
        await self._sweep()

    async def _aggregate(self, round_number: int) -> None:
        event = self._event("aggregation_started", f"round {round_number}: folding the updates")
        await self._close_tasks(round_number, TaskKind.TRAIN, event)
        answers = await self._answers(round_number, TaskKind.TRAIN)
        state, metrics = await self._resources.threads.compute(
            partial(self._work.aggregate, answers, round_number)
        )
        text = f"round {round_number} committed: {len(answers)} updates" + _shown(metrics)
        await self._write(
            self._store.commit_round,
            round_number,
            state,
            metrics,
            [task.task_id for task, _ in answers],
            events=[self._event("round_committed", text)],
        )
        self._state_blob = state
        evaluates = self.spec.evaluation.data is not None and self.spec.evaluation_due(round_number)
        if evaluates:
            self._evaluate(round_number, state)
        self._events.put_nowait(RoundCommitted(round_number, evaluates))

    async def _fold_evaluation(self, round_number: int) -> None:
        await self._close_tasks(round_number, TaskKind.EVALUATE)
        mean = MeanMetrics()
        for _, record in await self._answers(round_number, TaskKind.EVALUATE):
            mean.add(record.metrics, weight=record.num_examples)
        await self._evaluated(round_number, "clients", mean.value(), self._known_state)

    async def _end(self, state: RunState, reason: str) -> None:
        self.tasks.clear()
        await self._export()
        event = self._event("run_ended", f"run {self.spec.name} {state}: {reason}")
        await self._write(self._store.end_run, state, reason, events=[event])

    async def _export(self) -> None:
        """Save the best round's model, or the last one's, where people find it."""
        record = self._store.run(self.run_id)
        round_number, _, state = self._best or (record.round_number, None, self._known_state)
        evaluations = {
            item.where: item.metrics
            for item in self._store.evaluations(self.run_id)
            if item.round_number == round_number
        }
        path = self._resources.model_path(self.run_id, self.spec.name)
        metrics = evaluations.get("server") or evaluations.get("clients") or {}
        export = partial(self._work.export, state, path, round_number, metrics)
        await self._resources.threads.compute(export)

    # ---- evaluation ----

    def _evaluate(self, round_number: int, state: BlobRef) -> None:
        """Have a state evaluated beside the rounds that follow."""
        task = asyncio.create_task(self._evaluate_on_server(round_number, state))
        self._evaluations[task] = state.digest
        task.add_done_callback(self._evaluations.pop)

    async def _evaluate_on_server(self, round_number: int, state: BlobRef) -> None:
        spec = self.spec
        app_path = None if spec.app is None else self._resources.app_path(spec.app.digest)
        assert spec.evaluation.data is not None
        try:
            metrics = await self._resources.evaluator.evaluate(
                spec.workload,
                app_path,
                spec.evaluation.data,
                self._resources.blobs.path(state.digest),
            )
        except (DataError, AppError) as error:
            event = self._event("evaluation_failed", f"evaluation of round {round_number}: {error}")
            await self._resources.write(self._store.append, events=[event])
            self._events.put_nowait(EvaluationDone(round_number, "server", False))
            return
        await self._evaluated(round_number, "server", metrics, state)

    async def _evaluated(
        self, round_number: int, where: str, metrics: Metrics, state: BlobRef
    ) -> None:
        """Store an evaluation; the server's decides where there is one, else the clients'."""
        evaluation, target = self.spec.evaluation, self.spec.stop.target
        judges = where == "server" or evaluation.data is None
        value = metrics.get(evaluation.metric) if judges else None
        best = None
        if value is not None and evaluation.better(value, self._best and self._best[1]):
            self._best, best = (round_number, value, state), (value, state)
        text = f"round {round_number} evaluated on {where}" + _shown(metrics)
        await self._write(
            self._store.record_evaluation,
            round_number,
            where,
            metrics,
            best,
            events=[self._event("evaluation_done", text)],
        )
        reached = value is not None and target is not None and evaluation.reaches(value, target)
        self._events.put_nowait(EvaluationDone(round_number, where, reached))

    # ---- small things ----

    async def _close_tasks(self, round_number: int, kind: TaskKind, *events: NewEvent) -> None:
        """From here on no update of these tasks is taken: what is stored is all that counts."""
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        await self._write(
            self._store.close_tasks, round_number, kind, sent_bytes, events=list(events)
        )
        self.tasks.clear()

    @property
    def _known_state(self) -> BlobRef:
        assert self._state_blob is not None
        return self._state_blob

    async def _answers(self, round_number: int, kind: TaskKind) -> list[Any]:
        """Tasks and their updates, in plan order."""

        def read() -> list[Any]:
            tasks = self._store.tasks(self.run_id, round_number, kind)
            found = ((task, self._store.update(task.task_id)) for task in tasks)
            return [(task, update) for task, update in found if update is not None]

        return await self._resources.threads.store(read)

    async def _sweep(self) -> None:
        live = await self._resources.threads.store(self._store.live_blobs)
        live.update(self._evaluations.values())
        if self.terms is not None:
            live.add(self.terms.digest)
        sweep = partial(self._resources.blobs.sweep, live, older_than_seconds=_SWEEP_AGE_SECONDS)
        await self._resources.threads.transfer(sweep)

    async def _write(
        self, operation: Callable[..., Any], *arguments: Any, events: list[NewEvent] | None = None
    ) -> Any:
        return await self._resources.write(operation, self.run_id, *arguments, events=events or ())

    def _event(self, kind: str, text: str) -> NewEvent:
        return NewEvent(kind, text, self.run_id, self.machine.round_number)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _shown(metrics: Metrics) -> str:
    return "".join(f", {name} {value:.4g}" for name, value in sorted(metrics.items()))
