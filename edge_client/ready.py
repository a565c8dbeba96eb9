"""A run that this device is ready for: its app, this device's examples, its half of the method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from coppice.app import App, make_app
from coppice.data import Examples, split
from coppice.domain import Capability, ClientId, TaskKind, Workload, derive_seed
from coppice.kernels.library import trouble
from coppice.method import ClientHalf, Local, Meter, Task, Update, client_half
from coppice.task_cost import parts_of
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import valid_run_key, workload_from_json
from edge_client.costs import Costs, cost_key
from edge_client.private import PrivateState
from edge_client.state_folder import StateFolder


@dataclass(frozen=True)
class ReadyRun:
    """What stays the same over the rounds of a run."""

    run_id: int
    run_key: str
    client_id: ClientId
    workload: Workload
    app: App
    half: ClientHalf
    train: Examples
    held_out: Examples
    private: PrivateState
    kernels: bool
    #: None where the method does not go by them.
    costs: Costs | None

    @property
    def kernel_trouble(self) -> str | None:
        """Why pruned layers can only train as dense ones; None when they need not."""
        return trouble()

    def local(
        self, round_number: int, capability: Capability, meter: Meter, task: Task | None = None
    ) -> Local:
        """What this device brings to this round and its task."""
        cost = self.costs.cost() if self.costs is not None else None
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.workload.seed, self.client_id, round_number))
        return Local(
            client_id=self.client_id,
            app=self.app,
            seed=self.workload.seed,
            train=self.train,
            held_out=self.held_out,
            capability=capability,
            private=self.private,
            meter=meter,
            generator=generator,
            kernels=self.kernels,
            cost=cost,
            parts=1 if task is None else parts_of(task, cost),
        )

    def answer(self, task: Task, local: Local) -> Update:
        """Do a task of kind TRAIN, or evaluate what another brings."""
        if task.kind is TaskKind.TRAIN:
            return self.half.run(task, local)
        metrics = self.half.evaluate(task, local) if len(local.held_out) else {}
        return Update(self.client_id, {}, num_examples=len(local.held_out), metrics=metrics)


def get_ready(
    offer: pb.RunOffer,
    client_id: ClientId,
    data: Path,
    app_path: Path | None,
    folder: StateFolder,
    kernels: bool,
) -> ReadyRun:
    """Load what the run needs.

    Raises DataError when the data do not fit the run, AppMismatch and AppError.
    """
    workload = workload_from_json(offer.workload_json)
    app = make_app(workload, app_path)
    train, held_out = split(
        app.load(data), app.held_out, derive_seed(workload.seed, "held_out", client_id)
    )
    run_key = valid_run_key(offer.run_key)
    half = client_half(workload.method)
    key = cost_key(workload, torch.get_num_threads(), kernels)
    return ReadyRun(
        run_id=offer.run_id,
        run_key=run_key,
        client_id=client_id,
        workload=workload,
        app=app,
        half=half,
        train=train,
        held_out=held_out,
        private=PrivateState(folder.private / f"{run_key}-{workload.method.name}"),
        kernels=kernels,
        costs=Costs(folder.costs, key) if half.goes_by_cost else None,
    )
