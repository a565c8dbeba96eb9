"""A run of a few devices with masks of their own, taken through its rounds by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from coppice.app import build_model
from coppice.cohort import CohortSpec
from coppice.device_cost import DeviceCost
from coppice.domain import ClientId, Participant
from coppice.method import InitContext, Local, Task, Update
from coppice.methods.prunefl.client import Client
from coppice.methods.prunefl.server import Server, State
from coppice.methods.prunefl.settings import Settings
from coppice.simulated_device import MemoryPrivate
from coppice.tensors import masks_of, weight_group
from tests.coppice.costs import BASE_BYTES, device_cost
from tests.coppice.toys import CAPABILITY, ToyApp, examples, local, two_layers

STEPS = 4
APP = ToyApp(two_layers)


def settings(**fields: Any) -> Settings:
    given: dict[str, Any] = {
        "local_steps": STEPS,
        "batch_size": 4,
        "initial_passes": 0,
        "reconfigure_every": 2,
    }
    return Settings(**(given | fields))


class Run:
    """Devices by name, of these costs; None does not know its own."""

    def __init__(
        self,
        costs: Mapping[str, DeviceCost | None],
        cohort: CohortSpec | None = None,
        **fields: Any,
    ) -> None:
        chosen = settings(**fields)
        self.server = Server(chosen)
        self.clients = {name: Client(chosen) for name in costs}
        self.costs = dict(costs)
        self.privates = {name: MemoryPrivate() for name in costs}
        of_all = cohort or CohortSpec(size=len(costs))
        context = InitContext(0, lambda: build_model(APP, 0), cohort=of_all)
        self.state: State = self.server.init(context)
        self.round_number = 0

    def local(self, name: str) -> Local:
        number = list(self.costs).index(name)
        return local(
            APP,
            examples(12, seed=number),
            client_id=ClientId(name),
            private=self.privates[name],
            cost=self.costs[name],
            generator=torch.Generator().manual_seed(self.round_number * 10 + number),
        )

    def choices(self) -> dict[str, Mapping[str, Any]]:
        terms = self.server.terms(self.state, self.round_number + 1)
        assert terms is not None
        return {name: self.clients[name].choose(terms, self.local(name)) for name in self.costs}

    def silent_choices(self) -> dict[str, Mapping[str, Any]]:
        """The same, of devices that report nothing."""
        return {name: {**choice, "report_every": 0} for name, choice in self.choices().items()}

    def plan(self, choices: Mapping[str, Any] | None = None) -> Mapping[ClientId, Task]:
        cohort = [
            Participant(ClientId(name), CAPABILITY, 12, choice)
            for name, choice in (choices or self.choices()).items()
        ]
        return self.server.plan(self.state, cohort, self.round_number + 1)

    def round(self, choices: Mapping[str, Any] | None = None) -> Mapping[str, Task]:
        tasks = self.plan(choices)
        self.round_number += 1
        self.fold(self.answers(tasks))
        for private in self.privates.values():
            private.commit()
        return {str(name): task for name, task in tasks.items()}

    def answers(self, tasks: Mapping[ClientId, Task]) -> list[Update]:
        return [self.clients[name].run(task, self.local(name)) for name, task in tasks.items()]

    def updates(self) -> list[Update]:
        """The answers to the next round's tasks."""
        tasks = self.plan()
        self.round_number += 1
        return self.answers(tasks)

    def fold(self, updates: list[Update]) -> Mapping[str, float]:
        self.state, metrics = self.server.aggregate(self.state, updates, self.round_number)
        return metrics


def begun(costs: Mapping[str, DeviceCost | None], **fields: Any) -> Run:
    """A run after its first round, in which nobody knew its costs: so there is no pace."""
    run = Run(dict.fromkeys(costs), **fields)
    run.round()
    run.costs = dict(costs)
    return run


def cost(slowness: float = 1.0, room: float = 1e12) -> DeviceCost:
    return device_cost(two_layers(), slowness, BASE_BYTES + room)


def kept(task: Task) -> dict[str, int]:
    masks = masks_of(weight_group(task.payload, "parameters"))
    return {name: mask.count for name, mask in masks.items()}
