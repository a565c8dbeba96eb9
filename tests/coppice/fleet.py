"""A run of any method on a few devices, step by step, everything through the codec."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from coppice import tree
from coppice.app import build_model
from coppice.domain import ClientId, MethodSpec, Participant, derive_seed
from coppice.method import InitContext, Local, Task, Update, client_half, server_half
from coppice.simulation import MemoryPrivate
from coppice.wire.codec import plain_from_json
from coppice.wire.payload import decode, encode, encoded_size_bytes
from tests.coppice.toys import CAPABILITY, ToyApp, examples, local, with_buffers

#: Settings for methods that cannot do without.
SETTINGS: Mapping[str, Mapping[str, Any]] = {"fedavg": {"local_steps": 2, "batch_size": 4}}

SEED = 5
CLIENTS = [ClientId(f"client-{number}") for number in range(3)]


class Fleet:
    """One run of the method; the caller takes it through its rounds."""

    def __init__(self, name: str, seed: int = SEED) -> None:
        self.spec = MethodSpec(name=name, settings=dict(SETTINGS.get(name, {})))
        self.server = server_half(self.spec)
        self.client = client_half(self.spec)
        self.app = ToyApp(with_buffers)
        self.seed = seed
        self.privates = {client_id: MemoryPrivate() for client_id in CLIENTS}
        self.state = self.server.init(InitContext(seed, lambda: build_model(self.app, seed)))

    def local(self, client_id: ClientId, round_number: int, **fields: Any) -> Local:
        number = CLIENTS.index(client_id)
        return local(
            self.app,
            examples(9 + number, seed=number),
            client_id=client_id,
            private=self.privates[client_id],
            seed=derive_seed(self.seed, client_id, round_number),
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

    def receive(self, task: Task) -> Task:
        """The task as it arrives; what it expects stays on the server."""
        settings = plain_from_json(json.dumps(tree.to_plain(task.settings)))
        return Task(task.kind, task.round_number, decode(encode(task.payload)), settings)

    def answer(self, client_id: ClientId, task: Task) -> Update:
        """The client's update as it arrives: checked as the server does."""
        update = self.client.run(self.receive(task), self.local(client_id, task.round_number))
        data = encode(update.payload)
        assert len(data) == encoded_size_bytes(task.expects)
        return dataclasses.replace(update, payload=decode(data, task.expects))

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
