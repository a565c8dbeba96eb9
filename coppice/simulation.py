"""A whole federation in one process: the same halves, the same bytes, no server.

What passes between the halves is what would pass over the wire, so a run here and a run over gRPC
end in the same parameters (docs/architecture.md, invariant 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from coppice import tree
from coppice.aggregation import MeanMetrics
from coppice.app import App, build_model
from coppice.data import Examples, split
from coppice.domain import (
    Capability,
    ClientId,
    Metrics,
    Participant,
    RunSpec,
    TaskKind,
    derive_seed,
    rank_clients,
)
from coppice.method import (
    ClientHalf,
    InitContext,
    Local,
    ServerHalf,
    Task,
    Update,
    client_half,
    server_half,
)
from coppice.tensors import Tensors, assign
from coppice.training import evaluate
from coppice.wire import payload as wire


@dataclass(frozen=True)
class SimulatedRound:
    """What one round did."""

    round_number: int
    metrics: Metrics
    #: Evaluation of the global model after the round, by where it was done; empty when not due.
    evaluation: Mapping[str, Metrics]
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class SimulationResult:
    """What a run ended with."""

    state: Any
    models: Mapping[str, Tensors]
    rounds: list[SimulatedRound]


@dataclass
class MemoryPrivate:
    """Private state of a simulated device; `commit` stands for the receipt."""

    _committed: bytes | None = None
    _staged: bytes | None = None

    def read(self, kind: type[Any]) -> Any:
        """The last committed version."""
        return None if self._committed is None else tree.load(kind, self._committed)

    def stage(self, value: object) -> None:
        """Hold the next version."""
        self._staged = tree.save(value)

    def commit(self) -> None:
        """The staged version is the committed one from now on."""
        if self._staged is not None:
            self._committed, self._staged = self._staged, None


class _Unmetered:
    def step_done(self) -> None:
        """Nobody takes a simulated task back."""


@dataclass
class _Device:
    """One simulated client: what it holds, and its answers as bytes."""

    client_id: ClientId
    app: App
    train: Examples
    held_out: Examples
    private: MemoryPrivate = field(default_factory=MemoryPrivate)

    def local(self, seed: int, round_number: int) -> Local:
        generator = torch.Generator()
        generator.manual_seed(derive_seed(seed, self.client_id, round_number))
        return Local(
            client_id=self.client_id,
            app=self.app,
            seed=seed,
            train=self.train,
            held_out=self.held_out,
            capability=_CAPABILITY,
            private=self.private,
            meter=_Unmetered(),
            generator=generator,
        )


_CAPABILITY = Capability(memory_bytes=2**40, num_threads=1, machine="simulated")


class Simulation:
    """One run, round by round."""

    def __init__(
        self,
        spec: RunSpec,
        app: App,
        clients: Mapping[ClientId, Examples],
        *,
        held_out: Examples | None = None,
        warm_start: Tensors | None = None,
    ) -> None:
        """`clients` hold all their examples; each keeps a held-out part as a real device would.

        `held_out` is the server's evaluation set.
        """
        self._spec = spec
        self._app = app
        self._held_out = held_out
        self._server: ServerHalf[Any] = server_half(spec.method)
        self._client: ClientHalf = client_half(spec.method)
        self._devices = {
            client_id: _Device(
                client_id,
                app,
                *split(examples, app.held_out, derive_seed(spec.seed, "held_out", client_id)),
            )
            for client_id, examples in clients.items()
        }
        self.state = self._server.init(
            InitContext(spec.seed, lambda: build_model(app, spec.seed), warm_start)
        )

    @property
    def models(self) -> Mapping[str, Tensors]:
        """The models as they are now."""
        return self._server.models(self.state)

    def run(self, on_round: Callable[[SimulatedRound], None] | None = None) -> SimulationResult:
        """All rounds, or as many as the target needs."""
        rounds = []
        for round_number in range(1, self._spec.stop.rounds + 1):
            done = self.run_round(round_number)
            rounds.append(done)
            if on_round is not None:
                on_round(done)
            if self._target_reached(done):
                break
        return SimulationResult(self.state, self.models, rounds)

    def run_round(self, round_number: int) -> SimulatedRound:
        """One round with the clients that the seed picks."""
        cohort = self._cohort(round_number)
        plan = self._server.plan(self.state, cohort, round_number)
        traffic = _Traffic()
        self.state, metrics = self._server.aggregate(
            self.state, self._updates(plan, traffic), round_number
        )
        for name in plan:
            self._devices[name].private.commit()
        due = self._spec.evaluation_due(round_number)
        evaluation = self._evaluate(cohort, round_number) if due else {}
        return SimulatedRound(
            round_number, metrics, evaluation, traffic.bytes_down, traffic.bytes_up
        )

    def _cohort(self, round_number: int) -> list[Participant]:
        names = rank_clients(self._spec.seed, round_number, self._devices)
        terms = self._server.terms(self.state, round_number)
        offered = None if terms is None else wire.encode(terms)
        return [
            self._participant(name, offered, round_number)
            for name in names[: self._spec.cohort.size]
        ]

    def _participant(
        self, name: ClientId, offered: bytearray | None, round_number: int
    ) -> Participant:
        device = self._devices[name]
        choice = None
        if offered is not None:
            local = device.local(self._spec.seed, round_number)
            choice = self._client.choose(wire.decode(bytearray(offered)), local)
        return Participant(name, _CAPABILITY, len(device.train), choice)

    def _updates(self, plan: Mapping[ClientId, Task], traffic: _Traffic) -> Iterator[Update]:
        """The updates in plan order, each through the codec both ways, one alive at a time."""
        for name, task in plan.items():
            down = wire.encode(task.payload)
            received = Task(task.kind, task.round_number, wire.decode(down), task.settings)
            local = self._devices[name].local(self._spec.seed, task.round_number)
            update = self._client.run(received, local)
            up = wire.encode(update.payload)
            traffic.count(len(down), len(up))
            yield Update(
                name,
                wire.decode(up, task.expects),
                update.num_examples,
                update.steps,
                update.metrics,
            )

    def _evaluate(self, cohort: list[Participant], round_number: int) -> dict[str, Metrics]:
        found: dict[str, Metrics] = {}
        if self._held_out is not None and "global" in self.models:
            model = build_model(self._app, self._spec.seed)
            assign(model, self.models["global"])
            found["server"] = evaluate(model, self._app, self._held_out)
        if self._spec.evaluation.on_clients:
            found["clients"] = self._evaluate_on_clients(cohort, round_number)
        return found

    def _evaluate_on_clients(self, cohort: list[Participant], round_number: int) -> Metrics:
        mean = MeanMetrics()
        for name, task in self._server.plan(self.state, cohort, round_number + 1).items():
            local = self._devices[name].local(self._spec.seed, round_number)
            received = Task(
                TaskKind.EVALUATE,
                round_number,
                wire.decode(wire.encode(task.payload)),
                task.settings,
            )
            mean.add(self._client.evaluate(received, local), weight=len(local.held_out))
        return mean.value()

    def _target_reached(self, done: SimulatedRound) -> bool:
        # As on the server: its own evaluation decides where there is one, else the clients'.
        judge = "clients" if self._held_out is None else "server"
        value = done.evaluation.get(judge, {}).get(self._spec.evaluation.metric)
        target = self._spec.stop.target
        if value is None or target is None:
            return False
        return self._spec.evaluation.reaches(value, target)


@dataclass
class _Traffic:
    bytes_down: int = 0
    bytes_up: int = 0

    def count(self, down: int, up: int) -> None:
        self.bytes_down += down
        self.bytes_up += up
