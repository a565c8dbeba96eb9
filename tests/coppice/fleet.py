"""A run of any method on a few devices, step by step, everything through the codec."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from coppice import tree
from coppice.app import build_model
from coppice.domain import ClientId, MethodSpec, Participant, WireSpec, derive_seed
from coppice.masks import masked, prunable_names
from coppice.method import (
    InitContext,
    Local,
    Task,
    Update,
    client_half,
    method_names,
    server_half,
)
from coppice.simulated_device import MemoryPrivate
from coppice.sparse import Mask
from coppice.tensors import Weights, buffers_of, parameters_of
from coppice.wire.codec import plain_from_json
from coppice.wire.exchange import EncodedTask, TaskEncoder, encode_update
from coppice.wire.header import largest_size_bytes
from coppice.wire.payload import check, decode, encode
from tests.coppice.costs import device_cost
from tests.coppice.toys import CAPABILITY, ToyApp, examples, local, with_buffers

_TRAINING: Mapping[str, Any] = {"local_steps": 2, "batch_size": 4}
_PRUNEFL: Mapping[str, Any] = {
    **_TRAINING,
    "mask_scope": "global",
    "reconfigure_every": 2,
    # What a weight costs is all that a round takes: every reconfiguration prunes.
    "round_time": {
        "constant_seconds": 1e-6,
        "seconds_per_weight": {"0.weight": 1.0, "4.weight": 1.0},
    },
}
_INITIAL: Mapping[str, Any] = {
    "initial_passes": 4,
    "initial_interval": 2,
    "initial_batches": 2,
    "settled_times": 3,
}

#: Runs of methods that have more than one way, or cannot do without settings.
_CASES: Mapping[str, MethodSpec] = {
    "fedavg": MethodSpec(name="fedavg", settings=_TRAINING),
    "prunefl, initial pruning": MethodSpec(name="prunefl", settings={**_PRUNEFL, **_INITIAL}),
    "prunefl, last step": MethodSpec(name="prunefl", settings={**_PRUNEFL, "initial_passes": 0}),
    "prunefl, every round": MethodSpec(
        name="prunefl",
        settings={
            **_PRUNEFL,
            "initial_passes": 0,
            "importance": "every_round",
            "regrow": "stale",
        },
    ),
    "prunefl, a mask for each device": MethodSpec(
        name="prunefl",
        settings={
            **_TRAINING,
            "initial_passes": 0,
            "reconfigure_every": 2,
        },
    ),
    "iterative": MethodSpec(
        name="iterative",
        settings={**_TRAINING, "density": 0.25, "pruning_steps": 2, "pruning_rounds": 2},
    ),
    "lottery": MethodSpec(name="lottery", settings=_TRAINING),
    "snip": MethodSpec(name="snip", settings={**_TRAINING, "density": 0.5}),
}
#: At least one run of every method there is.
CASES: Mapping[str, MethodSpec] = {
    **_CASES,
    **{
        name: MethodSpec(name=name)
        for name in method_names()
        if name not in {spec.name for spec in _CASES.values()}
    },
}

#: Methods that begin with a model that was pruned before.
_PRUNED_BEFORE = {"lottery"}

SEED = 5
CLIENTS = [ClientId(f"client-{number}") for number in range(3)]


class Fleet:
    """One run of a case; the caller takes it through its rounds."""

    def __init__(self, case: str, seed: int = SEED, wire: WireSpec | None = None) -> None:
        self.spec = CASES[case]
        self.server = server_half(self.spec)
        self.client = client_half(self.spec)
        self.app = ToyApp(with_buffers)
        self.seed = seed
        self.wire = wire or WireSpec()
        self.encoder = TaskEncoder(self.wire, seed)
        self.privates = {client_id: MemoryPrivate() for client_id in CLIENTS}
        warm_start = self.pruned() if self.spec.name in _PRUNED_BEFORE else None
        make_model = partial(build_model, self.app, seed=seed)
        self.state = self.server.init(InitContext(seed, make_model, warm_start))

    def pruned(self) -> Weights:
        """A model with every second weight kept."""
        model = build_model(self.app, 0)
        parameters = parameters_of(model)
        masks = {
            name: Mask.of(
                torch.arange(parameters[name].numel()).reshape(parameters[name].shape) % 2 == 0
            )
            for name in prunable_names(model)
        }
        return {**masked(parameters, masks), **buffers_of(model)}

    def local(self, client_id: ClientId, round_number: int, **fields: Any) -> Local:
        number = CLIENTS.index(client_id)
        return local(
            self.app,
            examples(9 + number, seed=number),
            client_id=client_id,
            private=self.privates[client_id],
            seed=derive_seed(self.seed, client_id, round_number),
            # Each next device is twice as slow.
            cost=device_cost(build_model(self.app, 0), slowness=2.0**number),
            **fields,
        )

    def plan(self, round_number: int) -> Mapping[ClientId, Task]:
        terms = self.server.terms(self.state, round_number)
        cohort = []
        for client_id in CLIENTS:
            choice = None
            if terms is not None:
                offered = decode(encode(terms))
                choice = self.client.choose(offered, self.local(client_id, round_number))
                assert plain_from_json(json.dumps(choice)) == choice
            number = len(self.local(client_id, round_number).train)
            cohort.append(Participant(client_id, CAPABILITY, number, choice))
        return self.server.plan(self.state, cohort, round_number)

    def send(self, task: Task) -> EncodedTask:
        """The task's payload as it travels."""
        (sent,) = self.encoder.encode([task])
        return sent

    def receive(self, task: Task) -> Task:
        """The task as it arrives; what it expects stays on the server."""
        settings = plain_from_json(json.dumps(tree.to_plain(task.settings)))
        sent = self.send(task)
        # A copy, which the device may write into.
        payload = decode(bytearray(sent.payload), known=sent.known)
        return Task(task.kind, task.round_number, payload, settings)

    def answer(self, client_id: ClientId, task: Task) -> Update:
        """The client's update as it arrives: checked as the server does."""
        device = self.local(client_id, task.round_number)
        update = self.client.run(self.receive(task), device)
        known = self.send(task).known
        data = encode_update(update.payload, known, self.wire, device.private, device.generator)
        assert len(data) <= largest_size_bytes(task.expects)
        check(data, task.expects)
        return dataclasses.replace(update, payload=decode(data, task.expects, known))

    def answers(self, round_number: int) -> list[Update]:
        return [self.answer(*item) for item in self.plan(round_number).items()]

    def fold(self, updates: Iterable[Update], round_number: int) -> Mapping[str, float]:
        self.state, metrics = self.server.aggregate(self.state, updates, round_number)
        return metrics

    def rounds(self, count: int) -> Fleet:
        for round_number in range(1, count + 1):
            self.fold(self.answers(round_number), round_number)
            for private in self.privates.values():
                private.commit()
        return self

    def saved(self) -> bytes:
        return tree.save(self.state)
