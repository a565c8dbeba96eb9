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
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import valid_run_key, workload_from_json
from edge_client.private import PrivateState


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

    @property
    def kernel_trouble(self) -> str | None:
        """Why pruned layers can only train as dense ones; None when they need not."""
        return trouble()

    def local(self, round_number: int, capability: Capability, meter: Meter) -> Local:
        """What this device brings to a task of this round."""
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
    private: Path,
    kernels: bool,
) -> ReadyRun:
    """Load what the run needs; `private` is the folder of all runs' private states.

    Raises DataError when the data do not fit the run, AppMismatch and AppError.
    """
    workload = workload_from_json(offer.workload_json)
    app = make_app(workload, app_path)
    train, held_out = split(
        app.load(data), app.held_out, derive_seed(workload.seed, "held_out", client_id)
    )
    run_key = valid_run_key(offer.run_key)
    return ReadyRun(
        run_id=offer.run_id,
        run_key=run_key,
        client_id=client_id,
        workload=workload,
        app=app,
        half=client_half(workload.method),
        train=train,
        held_out=held_out,
        private=PrivateState(private / f"{run_key}-{workload.method.name}"),
        kernels=kernels,
    )
