"""A small run for the tests of the server, and a round machine's way through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coppice.app import build_model, make_app
from coppice.cohort import CohortSpec
from coppice.domain import (
    Capability,
    ClientId,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    ModelSpec,
    RunSpec,
    StopSpec,
)
from coppice.masks import masked, prunable_names
from coppice.method import InitContext, server_half
from coppice.methods.prunefl.server import State
from coppice.model_file import ModelInfo, save_model
from coppice.sparse import Mask
from coppice.tensors import parameters_of
from server.blobs import Blobs
from server.records import LiveClient
from server.round_events import (
    ClientArrived,
    Event,
    Instruction,
    RoundOpened,
    TasksCommitted,
    UpdateStored,
)
from server.rounds import RoundMachine
from server.selection import cohort_wanted
from server.waiting import waiting

#: FedAvg without training: what remains is the server's own work.
SPEC = RunSpec(
    name="tiny",
    seed=7,
    model=ModelSpec(name="mlp", hidden=(4,)),
    data=DataSpec(classes=("left", "right"), input_shape=(3,)),
    method=MethodSpec(name="fedavg", settings={"local_steps": 0}),
    cohort=CohortSpec(size=2),
    stop=StopSpec(rounds=2),
)

CAPABILITY = Capability(memory_bytes=2**30, num_threads=4, machine="aarch64")

A, B, C, D = map(ClientId, "abcd")


def run_spec(
    *,
    rounds: int = 2,
    target: float | None = None,
    on_clients: bool = False,
    every: int = 1,
    data: str | None = None,
    **cohort: Any,
) -> RunSpec:
    """SPEC with another cohort and end."""
    return replace(
        SPEC,
        cohort=CohortSpec(**({"size": 2} | cohort)),
        stop=StopSpec(rounds=rounds, target=target),
        evaluation=EvaluationSpec(on_clients=on_clients, every=every, data=data),
    )


def on_masks(blobs: Blobs, folder: Path) -> RunSpec:
    """SPEC on masks that keep every second weight; they come from a warm start in `blobs`."""
    model = build_model(make_app(SPEC.workload), SPEC.seed)
    parameters = parameters_of(model)
    masks = {
        name: Mask.of(
            torch.arange(parameters[name].numel()).reshape(parameters[name].shape) % 2 > 0
        )
        for name in prunable_names(model)
    }
    path = folder / "start.safetensors"
    info = ModelInfo(workload=SPEC.workload, round_number=1, metrics={}, written_by="a test")
    save_model(path, masked(parameters, masks), info)
    method = MethodSpec(name="lottery", settings={"local_steps": 0})
    return replace(SPEC, method=method, warm_start=blobs.put(path.read_bytes()))


def with_cuts() -> tuple[RunSpec, State]:
    """PruneFL with a mask for each device: two of them hold 8 and 14 of the 20 weights."""
    settings = {
        "local_steps": 1,
        "initial_passes": 0,
        "reconfigure_every": 2,
    }
    method = MethodSpec(name="prunefl", settings=settings)
    half = server_half(method)
    app = make_app(SPEC.workload)
    state = half.init(InitContext(SPEC.seed, lambda: build_model(app, SPEC.seed)))
    first, last = state.fleet.order
    kept = {A: {first: 6, last: 2}, B: {first: 9, last: 5}}
    fleet = replace(state.fleet, kept=kept)
    return replace(SPEC, method=method), replace(state, fleet=fleet)


def waits_for(machine: RoundMachine) -> str:
    """What the machine waits for, without what each client is doing."""
    live = {name: LiveClient(name, "idle", 0.0) for name in machine.known | machine.awaited}
    return waiting(machine, live, 0.0).text.replace(", has not come for its task", "")


def tell(machine: RoundMachine, *events: Event) -> list[Instruction]:
    """What the machine answers to all of these."""
    return [instruction for event in events for instruction in machine.handle(event)]


def arrive(machine: RoundMachine, *clients: ClientId) -> list[Instruction]:
    return tell(machine, *map(ClientArrived, clients))


def wanted(machine: RoundMachine, *clients: ClientId) -> tuple[ClientId, ...]:
    """These clients in the order in which the open round takes them."""
    return cohort_wanted(machine.spec, machine.round_number, clients)


def gathering(spec: RunSpec = SPEC, *clients: ClientId, has_terms: bool = False) -> RoundMachine:
    """A machine that gathers clients for round 1, some of which are there."""
    machine = RoundMachine(spec)
    machine.start()
    machine.handle(RoundOpened(1, has_terms))
    arrive(machine, *clients)
    return machine


def reporting(spec: RunSpec = SPEC, *clients: ClientId) -> RoundMachine:
    """A machine that awaits the updates of these clients, or of a and b, in round 1."""
    clients = clients or (A, B)
    machine = gathering(spec, *clients)
    machine.handle(TasksCommitted(1, clients))
    return machine


def aggregating(spec: RunSpec = SPEC, *clients: ClientId) -> RoundMachine:
    """A machine that folds the updates of these clients, or of a and b, in round 1."""
    clients = clients or (A, B)
    machine = reporting(spec, *clients)
    tell(machine, *(UpdateStored(1, client) for client in clients))
    return machine
