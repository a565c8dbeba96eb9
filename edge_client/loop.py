"""The life of a device: get ready for a run, fetch, work, push, and poll for more.

All of it blocks, in the main thread; a second thread only says that the device is alive. Before
this begins, `Link` has joined the server and there is a run; it also waits out whatever the network
does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import TracebackType

import torch

from coppice.domain import (
    WORK_SECONDS,
    Capability,
    ClientId,
    Forecast,
    RoundReport,
    TaskKind,
    Why,
)
from coppice.errors import (
    InvalidMessage,
    RoundClosed,
    TaskAbandoned,
    UnknownBlob,
    UnknownTask,
    UpdateRefused,
)
from coppice.masks import density
from coppice.memory import give_back
from coppice.method import Task
from coppice.sparse import SparseTensor
from coppice.wire import coordination_pb2 as pb
from coppice.wire.capability import capability_to_message
from coppice.wire.codec import blob_from_message, task_from_offer
from coppice.wire.exchange import encode_update
from coppice.wire.report import report_to_message
from edge_client.backoff import LONGEST_SECONDS, Backoff
from edge_client.delivery import Delivery, OutboxMode
from edge_client.download import Downloads
from edge_client.journal import Journal
from edge_client.limits import MARGIN, MARGIN_BYTES
from edge_client.link import Link
from edge_client.meter import Laps, Meter, capability
from edge_client.model_keeper import ModelKeeper
from edge_client.outbox import Outbox
from edge_client.payloads import Payloads
from edge_client.ready import ReadyRun, get_ready
from edge_client.receipts import Receipts
from edge_client.refusals import Refusals
from edge_client.state_folder import StateFolder
from edge_client.stop import Stop

#: The round went on without this device, which is nobody's fault: ask for the next task.
_TOO_LATE = (RoundClosed, TaskAbandoned)
#: After so many rounds in a row without the memory for the least, what was measured may be wrong.
_DOUBTED = frozenset(5 * 2**power for power in range(20))
#: The server does not want what it got, or lost what it offered: ask again, but not at once.
_REFUSED = (UpdateRefused, UnknownTask, UnknownBlob)


@dataclass(frozen=True)
class Plan:
    """What the user asked of this device."""

    client_id: ClientId
    data: Path
    #: The user's app module and its digest; None and empty without one.
    app: Path | None
    app_digest: str
    num_threads: int | None
    #: Pruned layers may train by kernels of their own (`Local.kernels`).
    kernels: bool
    #: When a finished update goes to disk.
    outbox: OutboxMode
    #: End with the first run.
    once: bool


class Device:
    """One device, from the first poll to the goodbye at its exit."""

    def __init__(
        self, plan: Plan, link: Link, folder: StateFolder, stop: Stop, journal: Journal
    ) -> None:
        self._plan = plan
        self._link = link
        self._folder = folder
        self._stop = stop
        self._journal = journal
        self._payloads = Payloads(Downloads(link, folder.downloads))
        self._models = ModelKeeper(folder.model)
        self._wait_after_refusal = Backoff()
        self._told = Refusals(folder.refusals, journal)
        self._delivery = Delivery(
            link,
            Outbox(folder.outbox),
            Receipts(folder.receipts),
            self._told,
            journal,
            plan.outbox,
            stop,
        )
        self._ready: ReadyRun | None = None
        self._choice: pb.Choice | None = None
        #: What the device made its choice by.
        self._why: Why = ""
        #: Of the last round, until the server has it.
        self._report: RoundReport | None = None
        #: The task that there is not the memory for, until the server knows; 0 for none.
        self._declined_task_id = 0
        #: Rounds in a row without the memory for the least.
        self._declines = 0
        torch.set_num_threads(self._capability().num_threads)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.goodbye(error)
        self._models.save()

    def live(self, reply: pb.PollReply) -> int:
        """Work for ever; with `once`, until the first run is over. Returns the exit code.

        `reply` is what the server said first. Raises Stopped when the process was asked to end, and
        a Fatal error when it has to.
        """
        while True:
            try:
                self._react(reply)
            except (*_TOO_LATE, *_REFUSED) as error:
                self._give_up(error)
            if self._plan.once and reply.HasField("over"):
                return 1 if reply.over.state == "failed" else 0
            self._journal.enter("waiting")
            request = self._poll_request()
            reply = self._link.poll(request)
            self._take_back(request.run_key, reply.refusals)
            self._report = None
            self._declined_task_id = 0

    def _take_back(self, run_key: str, refusals: Sequence[pb.Refusal]) -> None:
        """What the server did not count, does not count here."""
        if self._ready is not None:
            for refusal in refusals:
                self._ready.private.take_back(refusal.task_id)
        # Last: what was told is not said again after a crash.
        self._told.tell(run_key, refusals)

    def _poll_request(self) -> pb.PollRequest:
        ready, report = self._ready, self._report
        return pb.PollRequest(
            run_key=ready.run_key if ready else "",
            num_examples=len(ready.train) if ready else 0,
            capability=capability_to_message(self._capability()),
            choice=self._choice,
            app_digest=self._plan.app_digest,
            report=None if report is None else report_to_message(report),
            declined_task_id=self._declined_task_id,
            refusal_seen=self._told.seen(ready.run_key if ready else ""),
        )

    def _react(self, reply: pb.PollReply) -> None:
        match reply.WhichOneof("reply"):
            case "run":
                self._prepare(reply.run)
            case "terms":
                self._choose(reply.terms)
            case "task":
                self._work(reply.task)
            case "over":
                self._end_run(reply.over)
            case _:
                self._stop.wait(min(reply.wait.retry_seconds, LONGEST_SECONDS))

    def _prepare(self, offer: pb.RunOffer) -> None:
        """Load this device's data as the run reads them."""
        plan = self._plan
        self._journal.enter("preparing")
        if self._ready is not None:
            # A run that nobody has any more: its server was set up anew.
            self._forget(self._ready)
        self._ready = self._choice = None
        self._ready = get_ready(
            offer, plan.client_id, plan.data, plan.app, self._folder, plan.kernels
        )
        self._journal.ready(self._ready)
        # Before anything that takes time: its round may be waiting for it.
        self._delivery.settle(self._ready)
        self._probe(self._ready)

    def _probe(self, ready: ReadyRun) -> None:
        """Measure what rounds will cost, where the method goes by that."""
        if ready.costs is not None:
            self._journal.enter("measuring")
            local = ready.local(0, self._capability(), self._meter())
            ready.costs.probe(ready.half, local, ready.workload)

    def _choose(self, terms: pb.TermsOffer) -> None:
        """Answer a round's terms; the next poll carries the choice."""
        ready = self._expected(self._ready.run_id if self._ready else 0)
        self._journal.enter("fetching", terms.round_number)
        payload = self._payloads.terms(blob_from_message(terms.payload))
        local = ready.local(terms.round_number, self._capability(), self._meter())
        choice = ready.half.choose(payload, local)
        self._why = choice.get("why", "")
        if "declined" in choice:
            self._journal.declined(terms.round_number, choice)
        self._declines = self._declines + 1 if choice.get("declined") == "memory" else 0
        if self._declines in _DOUBTED and ready.costs is not None and ready.costs.forget():
            self._probe(ready)
        self._choice = pb.Choice(
            round_number=terms.round_number, values_json=json.dumps(dict(choice))
        )

    def _work(self, offer: pb.TaskOffer) -> None:
        """Do a task and send the answer; the next poll carries what it took."""
        ready, meter, capability = self._expected(offer.run_id), self._meter(), self._capability()
        laps, (down, up) = Laps(), self._link.bytes_moved
        self._choice = None
        # What an earlier task staged and this one finds never got a receipt.
        ready.private.drop()
        ready.private.rewind(offer.task_id)
        with self._link.heartbeat.working_on(offer.task_id, meter):
            task = self._fetch(offer)
            download_seconds = laps.lap()
            local = ready.local(task.round_number, capability, meter, task)
            forecast = None
            if ready.costs is not None and task.kind is TaskKind.TRAIN:
                fetched = self._link.bytes_moved[0] - down
                forecast = ready.costs.forecast(task, fetched, self._why, local.parts)
            if forecast is not None and _is_too_large(forecast, capability):
                self._declined_task_id = offer.task_id
                self._journal.too_large(task.round_number, forecast, capability)
                return
            self._models.hold(ready, task, local, {})
            self._journal.enter("training" if task.kind is TaskKind.TRAIN else "evaluating")
            began = time.monotonic()
            update = ready.answer(task, local)
            if task.kind is TaskKind.TRAIN:
                worked = {WORK_SECONDS: time.monotonic() - began}
                update = replace(update, metrics={**update.metrics, **worked})
            self._stop.check()
            self._journal.enter("pushing")
            data = encode_update(
                update.payload,
                self._payloads.known,
                ready.workload.wire,
                ready.private,
                local.generator,
            )
            compute_seconds = laps.lap()
            self._delivery.deliver(ready, offer, update, data, meter)
        report = RoundReport(
            round_number=task.round_number,
            steps=update.steps,
            density=_density(task),
            download_seconds=download_seconds,
            compute_seconds=compute_seconds,
            upload_seconds=laps.lap(),
            peak_bytes=meter.peak_resident_bytes,
            budget_bytes=capability.memory_bytes,
            bound_by=capability.memory_bound_by,
            forecast=forecast,
        )
        self._wait_after_refusal.reset()
        if task.kind is TaskKind.TRAIN:
            self._report = report
        else:
            self._models.hold(ready, task, local, update.metrics)
        moved = (self._link.bytes_moved[0] - down, self._link.bytes_moved[1] - up)
        if ready.costs is not None and task.kind is TaskKind.TRAIN:
            ready.costs.learn(task, report, meter.steady_seconds_per_step, moved, local.parts)
        self._journal.answered(task, update, report, meter.seconds_per_step, moved)
        # The device may wait for long now, and has other things to do.
        del task, local, update, data
        give_back()

    def _fetch(self, offer: pb.TaskOffer) -> Task:
        self._journal.enter("fetching", offer.round_number)
        masks = blob_from_message(offer.masks) if offer.HasField("masks") else None
        payload = self._payloads.get(blob_from_message(offer.payload), masks)
        return task_from_offer(offer, payload)

    def _end_run(self, over: pb.RunOver) -> None:
        """Keep the run's model; forget what only the run needed."""
        ready = self._expected(over.run_id)
        self._ready = self._choice = None
        self._journal.over(ready.workload.name, over.state, over.reason)
        if over.HasField("keep"):
            self._evaluate_last(ready, over.keep)
        if kept := self._models.save():
            self._journal.kept(self._folder.model, kept.metrics)
        self._forget(ready)
        del ready
        give_back()

    def _forget(self, ready: ReadyRun) -> None:
        """Nothing of a run is needed any more."""
        ready.private.forget()
        self._delivery.forget(ready)

    def _evaluate_last(self, ready: ReadyRun, offer: pb.TaskOffer) -> None:
        task = self._fetch(offer)
        local = ready.local(task.round_number, self._capability(), self._meter(), task)
        self._journal.enter("evaluating")
        self._models.hold(ready, task, local, ready.answer(task, local).metrics)

    def _give_up(self, error: Exception) -> None:
        """The task is gone; the device is not."""
        self._stop.check()
        self._journal.gone(error)
        if isinstance(error, _REFUSED):
            self._stop.wait(self._wait_after_refusal.next_seconds())

    def _expected(self, run_id: int) -> ReadyRun:
        if self._ready is None or self._ready.run_id != run_id:
            raise InvalidMessage(f"the server spoke of run {run_id}, which it had not offered")
        return self._ready

    def _capability(self) -> Capability:
        return capability(self._plan.num_threads)

    def _meter(self) -> Meter:
        def on_step(steps_done: int) -> None:
            self._journal.step(steps_done)
            if self._stop.requested:
                meter.abandon()

        meter = Meter(on_step)
        return meter


def _is_too_large(forecast: Forecast, capability: Capability) -> bool:
    """Whether there was more memory when this device made its choice, and that by more than what
    others take and give back all the time."""
    margin_bytes = max(MARGIN_BYTES, MARGIN * capability.memory_bytes)
    return forecast.peak_bytes > capability.memory_bytes + margin_bytes / 2


def _density(task: Task) -> float:
    """Share that is kept of the weights on masks in what a task brings; 1 where none are."""
    items = chain.from_iterable(group.values() for group in task.payload.values())
    return density(item.mask for item in items if isinstance(item, SparseTensor))
