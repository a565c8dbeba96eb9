"""A PruneFL run on a few toy devices, taken through its rounds by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from coppice.app import build_model
from coppice.budget import RoundTime
from coppice.domain import Capability, ClientId, Participant
from coppice.method import InitContext, Local, Task, Update
from coppice.methods.prunefl.client import Client
from coppice.methods.prunefl.server import Server, State
from coppice.methods.prunefl.settings import Settings
from coppice.simulated_device import MemoryPrivate
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import masks_of
from tests.coppice.toys import CAPABILITY, ToyApp, examples, local, two_layers

FIRST, SECOND = "0.weight", "2.weight"
NAMES = (FIRST, SECOND)

#: What a weight costs is far less than the round itself.
CHEAP = RoundTime(constant_seconds=1.0, seconds_per_weight=dict.fromkeys(NAMES, 1e-20))
#: What a weight costs is all that a round takes.
DEAR = RoundTime(constant_seconds=1e-6, seconds_per_weight=dict.fromkeys(NAMES, 1.0))


def settings(**fields: Any) -> Settings:
    """Three local steps, no initial pruning, a reconfiguration every second round."""
    given: dict[str, Any] = {
        "local_steps": 3,
        "batch_size": 4,
        "initial_passes": 0,
        "reconfigure_every": 2,
        "round_time": DEAR,
        "mask_scope": "global",
    }
    return Settings(**(given | fields))


class Small:
    """Two devices and a server, without a wire."""

    def __init__(self, chosen: Settings, capabilities: Mapping[str, Capability] | None = None):
        self.server, self.client = Server(chosen), Client(chosen)
        self.app = ToyApp(two_layers)
        self.capabilities = capabilities or dict.fromkeys(("a", "b"), CAPABILITY)
        self.privates = {name: MemoryPrivate() for name in self.capabilities}
        self.state: State = self.server.init(InitContext(0, lambda: build_model(self.app, 0)))
        self.round_number = 0

    def cohort(self) -> list[Participant]:
        return [
            Participant(ClientId(name), capability, 10 + index)
            for index, (name, capability) in enumerate(self.capabilities.items())
        ]

    def local(self, name: str) -> Local:
        number = list(self.capabilities).index(name)
        return local(
            self.app,
            examples(10 + number, seed=number),
            client_id=ClientId(name),
            private=self.privates[name],
            generator=torch.Generator().manual_seed(self.round_number * 10 + number),
        )

    def plan(self) -> Mapping[ClientId, Task]:
        """The next round's tasks."""
        return self.server.plan(self.state, self.cohort(), self.round_number + 1)

    def updates(self, **fields: Any) -> list[Update]:
        """The answers to the next round's tasks; `fields` replace what they say."""
        tasks = self.plan()
        self.round_number += 1
        return [
            replace(self.client.run(task, self.local(name)), **fields)
            for name, task in tasks.items()
        ]

    def round(self, **fields: Any) -> Mapping[str, float]:
        updates = self.updates(**fields)
        self.state, metrics = self.server.aggregate(self.state, updates, self.round_number)
        for update in updates:
            self.privates[update.client_id].commit()
        return metrics


def ones(state: State) -> dict[str, int]:
    return {name: mask.count for name, mask in masks_of(state.parameters).items()}


def weights(state: State, name: str) -> SparseTensor:
    item = state.parameters[name]
    assert isinstance(item, SparseTensor)
    return item


def pruned_half(run: Small) -> Small:
    """Half of the first model's weights are pruned, and no unit has lost all of its own."""
    parameters = dict(run.state.parameters)
    for name in NAMES:
        item = weights(run.state, name)
        rows, columns = (torch.arange(extent) for extent in item.shape)
        half = Mask.of((rows[:, None] + columns) % 2 == 0)
        parameters[name] = SparseTensor.take(item.dense(), half)
    run.state = State(parameters, run.state.buffers, None)
    return run
