"""Drives one run: carries out what its round machine says and tells the machine what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from coppice.aggregation import MeanMetrics
from coppice.domain import BlobRef, ClientId, Participant, TaskKind
from server.answers import OpenTerms
from server.bell import Bell
from server.deadlines import KEPT, Deadlines
from server.export import export_models
from server.judge import Judge, shown
from server.records import (
    LiveClient,
    NewEvent,
    RunRecord,
    RunState,
    TaskRecord,
    UpdateRecord,
    Wait,
)
from server.resources import Resources
from server.resumption import resume
from server.round_events import (
    Aggregate,
    ClientArrived,
    ClientGone,
    DeadlinePassed,
    EndRun,
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
    TaskDropped,
    TasksCommitted,
    UpdateStored,
)
from server.rounds import RoundMachine
from server.run_work import RunWork
from server.selection import has_labels
from server.store import ON_CLIENTS
from server.verdicts import Verdicts, update_refused
from server.waiting import waiting

#: Blobs younger than this are never swept: a row that names them may be on its way.
_SWEEP_AGE_SECONDS = 10.0


class RunDriver:
    """One run, from its first round or from where the server stopped, to its end."""

    def __init__(
        self, record: RunRecord, resources: Resources, bell: Bell, kept: Callable[[], set[str]]
    ) -> None:
        """Prepare.

        Args:
            bell: Rings whenever a pending poll may have an answer.
            kept: Digests of blobs that clients of other runs may still fetch.
        """
        self.run_id = record.run_id
        #: The run as it was when the driver began.
        self.record = record
        self.spec = record.spec
        self.machine = RoundMachine(record.spec)
        #: Unanswered open tasks; none before the store has told which there are.
        self.tasks: dict[ClientId, TaskRecord] = {}
        #: What clients choose from before the open round is planned; None when there is no choice.
        self.terms: OpenTerms | None = None
        self._resources = resources
        self._store = resources.store
        self._bell = bell
        self._kept = kept
        self._work = RunWork(record.spec, resources.blobs)
        self._state_blob = record.state_blob
        self._deadlines = Deadlines(record.spec.cohort)
        #: When the open tasks were.
        self._planned_at = 0.0
        #: Bytes that devices fetched for the open tasks and the store does not know of.
        self._sent_bytes = 0
        self._swept_at = time.monotonic()
        self._participants: dict[ClientId, Participant] = {}
        #: Who is there when all events that wait in the queue have been handled.
        self._there: set[ClientId] = set()
        self._verdicts = Verdicts(record.run_id, record.spec.protection, resources)
        self._resumed = False
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        #: When it goes off, for people.
        self._deadline_at = 0.0
        self._judge = Judge(record, resources, self._events.put_nowait)

    # ---- what the coordinator asks and tells ----

    def takes(self, client_id: ClientId, labels: Mapping[str, str]) -> bool:
        """Whether this client, with these labels, may take part."""
        is_out = client_id in self._verdicts.left_out
        return not is_out and has_labels(labels, self.spec.cohort.labels)

    def wait(self, clients: Mapping[ClientId, LiveClient]) -> Wait:
        """What the run waits for, given what is known of all clients."""
        found = waiting(self.machine, clients, self._deadline_at)
        out = sorted(self._verdicts.left_out)
        if self.machine.phase is Phase.GATHERING and out:
            return replace(
                found, text=f"{found.text}; left out for refused updates: {', '.join(out)}"
            )
        return found

    def arrived(self, participant: Participant) -> None:
        """A client is ready and waits for a task."""
        client_id = participant.client_id
        self._participants[client_id] = participant
        if client_id not in self._there or client_id not in self.machine.present:
            self._there.add(client_id)
            self._events.put_nowait(ClientArrived(client_id))

    def gone(self, client_id: ClientId) -> None:
        """A client left, was lost, or its waiting poll broke off."""
        if client_id in self._there or client_id in self.machine.awaited:
            self._there.discard(client_id)
            self._events.put_nowait(ClientGone(client_id))

    def wants(self, client_id: ClientId, task_id: int) -> bool:
        """Whether a client's task still counts. What is not known yet is not taken away."""
        task = self.tasks.get(client_id)
        return not self._resumed or (task is not None and task.task_id == task_id)

    def sent(self, size_bytes: int) -> None:
        """Bytes went down to a device."""
        self._sent_bytes += size_bytes

    def take_sent_bytes(self) -> int:
        """Bytes that went down since this was last asked, for who stores them."""
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        return sent_bytes

    def update_stored(self, task: TaskRecord) -> None:
        """An answer is stored, now or before."""
        if self._answered(task):
            self._events.put_nowait(UpdateStored(task.round_number, task.client_id))

    def drop(
        self, task: TaskRecord, *, is_declined: bool = False, is_refused: bool = False
    ) -> None:
        """There will be no answer to a task, or none that counts; it is not offered again."""
        if self._answered(task):
            dropped = TaskDropped(task.round_number, task.client_id, is_declined, is_refused)
            self._events.put_nowait(dropped)

    def stop(self) -> None:
        """An operator wants the run to end."""
        self._events.put_nowait(StopRequested())

    # ---- the loop ----

    async def run(self) -> None:
        """Until the run has ended. Cancelled, it leaves the run open in the store."""
        try:
            await self._load_state()
            await self._verdicts.load()
            timed = partial(self._store.timed_tasks, self.run_id, KEPT)
            self._deadlines.load(await self._resources.threads.store(timed))
            instructions, self.tasks = await self._resources.threads.store(
                partial(resume, self.machine, self.record, self._store, time.time())
            )
            self._go_on()
            while self.machine.phase is not Phase.ENDED:
                for instruction in instructions:
                    await self._carry_out(instruction)
                instructions = self.machine.handle(await self._next_event())
            for instruction in instructions:
                await self._carry_out(instruction)
        finally:
            self._disarm()
            self._judge.cancel()

    def _go_on(self) -> None:
        """Take up what was under way when the server stopped."""
        self._resumed = True
        for round_number in self.machine.evaluating:
            self._judge.evaluate(round_number, self._known_state)
        for client_id, task in self.tasks.items():
            # One that does not come back is noticed by its silence from now on.
            self._resources.presence.expected(client_id, task.task_id)
        self._bell.ring()

    async def _next_event(self) -> Event:
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    async def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case OpenRound(round_number):
                await self._open_round(round_number)
            case SetDeadline(round_number, phase, seconds):
                self._disarm()
                self._deadline_at = time.time() + seconds
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
                event = self._event("round_failed", text, round_number)
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
        work = partial(self._work.opening, round_number)
        ref, reserved_for = await self._resources.threads.compute(work)
        self.terms = None if ref is None else OpenTerms(round_number, ref)
        self._events.put_nowait(RoundOpened(round_number, ref is not None, reserved_for))
        self._bell.ring()

    async def _plan(self, plan: PlanTasks) -> None:
        cohort = [self._participants[client_id] for client_id in plan.cohort]
        # Who comes from now on chooses in the next round.
        self.terms = None
        new = await self._resources.threads.compute(
            partial(self._work.plan, plan.kind, cohort, plan.round_number)
        )
        works = {task.client_id: task.work for task in new}
        seconds = self._deadlines.planned(plan.kind, works)
        self._planned_at = time.time()
        text = f"round {plan.round_number}: {len(new)} to {plan.kind} within {seconds:.0f} s"
        tasks = await self._write(
            self._store.commit_tasks,
            plan.round_number,
            self._known_state.digest,
            self._planned_at + seconds,
            new,
            events=[self._event("tasks_committed", text)],
        )
        self.tasks = {task.client_id: task for task in tasks}
        self._events.put_nowait(TasksCommitted(plan.round_number, tuple(self.tasks), seconds))
        self._bell.ring()
        # The clients are at work now: the time to tidy up.
        await self._sweep()

    async def _aggregate(self, round_number: int) -> None:
        event = self._event("aggregation_started", f"round {round_number}: folding the updates")
        answers = await self._close_tasks(round_number, TaskKind.TRAIN, event)
        state, folded = await self._resources.threads.compute(
            partial(self._work.aggregate, answers, round_number, self.machine.planned)
        )
        count = len(folded.clients)
        text = f"round {round_number} committed: {count} updates" + shown(folded.metrics)
        refused = {
            record.task_id: folded.refused[record.client_id]
            for record in answers
            if record.client_id in folded.refused
        }
        self._resources.refused_clients.update(folded.refused)
        await self._write(
            partial(self._store.commit_round, refused=refused),
            round_number,
            state,
            folded.metrics,
            [record.task_id for record in answers if record.client_id in folded.clients],
            events=[
                *(
                    update_refused(self.run_id, round_number, name, finding)
                    for name, finding in folded.refused.items()
                ),
                self._event("round_committed", text),
            ],
        )
        self._state_blob = state
        if refused or self.machine.refused:
            for client_id in await self._verdicts.count(round_number):
                self._there.discard(client_id)
                self._events.put_nowait(ClientGone(client_id))
        evaluates = self.spec.evaluation.data is not None and self.spec.evaluation_due(round_number)
        if evaluates:
            self._judge.evaluate(round_number, state)
        self._events.put_nowait(RoundCommitted(round_number, evaluates))

    async def _fold_evaluation(self, round_number: int) -> None:
        mean = MeanMetrics()
        for record in await self._close_tasks(round_number, TaskKind.EVALUATE):
            mean.add(record.metrics, weight=record.num_examples)
        await self._judge.record(round_number, ON_CLIENTS, mean.value(), self._known_state)

    async def _end(self, state: RunState, reason: str) -> None:
        self.tasks.clear()
        # The model that is saved now is the best one for ever.
        self._judge.cancel()
        if self.machine.committed:
            best, newest = self._judge.best, self._known_state
            await export_models(self._resources, self._work, self.record, best, newest)
        event = self._event("run_ended", f"run {self.spec.name} {state}: {reason}")
        await self._write(self._store.end_run, state, reason, events=[event])

    # ---- small things ----

    async def _close_tasks(
        self, round_number: int, kind: TaskKind, *events: NewEvent
    ) -> list[UpdateRecord]:
        """From here on no update of these tasks is taken: all that counts is returned."""
        sent_bytes = self.take_sent_bytes()
        answers: list[UpdateRecord] = await self._write(
            self._store.close_tasks, round_number, kind, sent_bytes, events=list(events)
        )
        self.tasks.clear()
        took = {record.client_id: record.received_at - record.offered_at for record in answers}
        self._deadlines.closed(took, time.time() - self._planned_at)
        return answers

    def _answered(self, task: TaskRecord) -> bool:
        """Strike an open task off; False when it was none: the answer came late, or again."""
        open_task = self.tasks.get(task.client_id)
        if open_task is None or open_task.task_id != task.task_id:
            return False
        del self.tasks[task.client_id]
        return True

    @property
    def _known_state(self) -> BlobRef:
        assert self._state_blob is not None
        return self._state_blob

    async def _sweep(self) -> None:
        # More often would find nothing: what is young stays.
        if time.monotonic() - self._swept_at < _SWEEP_AGE_SECONDS:
            return
        self._swept_at = time.monotonic()
        live = await self._resources.threads.store(self._store.live_blobs)
        live |= self._judge.digests | self._kept()
        if self.terms is not None:
            live.add(self.terms.payload.digest)
        sweep = partial(self._resources.blobs.sweep, live, older_than_seconds=_SWEEP_AGE_SECONDS)
        await self._resources.threads.transfer(sweep)

    async def _write(
        self, operation: Callable[..., Any], *arguments: Any, events: list[NewEvent] | None = None
    ) -> Any:
        return await self._resources.write(operation, self.run_id, *arguments, events=events or ())

    def _event(self, kind: str, text: str, round_number: int | None = None) -> NewEvent:
        """A line about a round, by default the newest."""
        number = self.machine.round_number if round_number is None else round_number
        return NewEvent(kind, text, self.run_id, number)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
