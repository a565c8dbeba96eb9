"""A whole federation in one process: the same halves, the same bytes, no server.

What passes between the halves is what would pass over the wire, so a run here and a run over gRPC
end in the same parameters (docs/architecture.md, invariant 1).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from coppice import tree
from coppice.aggregation import MeanMetrics
from coppice.app import App, build_model
from coppice.data import Examples, split
from coppice.device_cost import DeviceCost
from coppice.domain import (
    WORK_SECONDS,
    Capability,
    ClientId,
    Metrics,
    Participant,
    RunSpec,
    TaskKind,
    derive_seed,
    rank_clients,
)
from coppice.errors import RunFileError
from coppice.method import (
    ClientHalf,
    InitContext,
    Local,
    ServerHalf,
    Task,
    Update,
    check_wire,
    client_half,
    server_half,
)
from coppice.sparse import Mask, SparseTensor
from coppice.task_cost import parts_of
from coppice.tensors import Weights, assign
from coppice.training import evaluate
from coppice.wire import payload as wire
from coppice.wire.exchange import EncodedTask, TaskEncoder, encode_update


@dataclass(frozen=True)
class SimulatedRound:
    """What one round did."""

    round_number: int
    metrics: Metrics
    #: Evaluation after the round, empty when not due: of the global model by where it was done,
    #: "server" or "clients"; of other models, on the server's set, by their names.
    evaluation: Mapping[str, Metrics]
    bytes_down: int
    bytes_up: int
    #: Modelled, of each device whose cost is known: the round lasts as long as the longest.
    seconds: Mapping[ClientId, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SimulationResult:
    """What a run ended with."""

    state: Any
    models: Mapping[str, Weights]
    rounds: list[SimulatedRound]


@dataclass
class MemoryPrivate:
    """Private state of a simulated device; `commit` stands for the receipt."""

    _committed: dict[type[Any], bytes] = field(default_factory=dict)
    _staged: dict[type[Any], bytes] = field(default_factory=dict)

    def read(self, kind: type[Any]) -> Any:
        """The last committed version."""
        return tree.load(kind, self._committed[kind]) if kind in self._committed else None

    def stage(self, value: object) -> None:
        """Hold the next version."""
        self._staged[type(value)] = tree.save(value)

    def commit(self) -> None:
        """The staged version is the committed one from now on."""
        self._committed |= self._staged
        self._staged = {}


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
    kernels: bool
    cost: DeviceCost | None
    private: MemoryPrivate = field(default_factory=MemoryPrivate)
    #: The masks that it holds, as they were sent.
    masks: bytearray | None = None

    def take_masks(self, masks: bytearray | None) -> int:
        """Hold these masks. Returns the bytes that had to be sent for it."""
        if masks is None or self.masks is masks:
            return 0
        self.masks = masks
        return len(masks)

    def local(self, seed: int, round_number: int, task: Task | None = None) -> Local:
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
            kernels=self.kernels,
            cost=self.cost,
            parts=1 if task is None else parts_of(task, self.cost),
        )

    def timed(self, task: Task, update: Update) -> Update:
        """The update with the times that the server and the device would have measured."""
        if self.cost is None:
            return update
        ones = _kept(task, self.cost.time.layers.keys())
        seconds = self.cost.time.seconds(ones, update.steps)
        work = replace(self.cost.time, seconds_per_value=0.0).seconds(ones, update.steps)
        return replace(update, seconds=seconds, metrics={**update.metrics, WORK_SECONDS: work})


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
        warm_start: Weights | None = None,
        kernels: bool = False,
        costs: Mapping[ClientId, DeviceCost] | None = None,
        pause_seconds: float | None = None,
    ) -> None:
        """`clients` hold all their examples; each keeps a held-out part as a real device would.

        `held_out` is the server's evaluation set; `kernels` as in `Local`; `costs` are what rounds
        cost the devices, which they choose by and from which the times are modelled, and
        `pause_seconds` what passes between two rounds.
        """
        check_wire(spec)
        self._pause_seconds = pause_seconds
        self._spec = spec
        self._app = app
        self._held_out = held_out
        self._server: ServerHalf[Any] = server_half(spec.method)
        self._client: ClientHalf = client_half(spec.method)
        if self._client.goes_by_cost and costs is None:
            raise RunFileError(
                "devices choose masks by what rounds cost them, which a simulation does not know: "
                'give it costs, or add method.mask_scope = "global"'
            )
        self._encoder = TaskEncoder(spec.wire, spec.seed)
        self._devices = {
            client_id: _Device(
                client_id,
                app,
                *split(examples, app.held_out, derive_seed(spec.seed, "held_out", client_id)),
                kernels,
                (costs or {}).get(client_id),
            )
            for client_id, examples in clients.items()
        }
        self.state = self._server.init(
            InitContext(
                spec.seed, partial(build_model, app, seed=spec.seed), warm_start, spec.cohort
            )
        )

    @property
    def models(self) -> Mapping[str, Weights]:
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
        evaluation = self._evaluate(cohort, len(plan), round_number) if due else {}
        return SimulatedRound(
            round_number,
            metrics,
            evaluation,
            traffic.bytes_down,
            traffic.bytes_up,
            traffic.seconds,
        )

    def _cohort(self, round_number: int) -> list[Participant]:
        names = rank_clients(self._spec.seed, round_number, self._devices)
        reserved_for = self._server.reserved_for(self.state, round_number)
        if reserved_for is not None:
            if reserved_for not in self._devices:
                raise RunFileError(f"the round is for {reserved_for}, who is not among the clients")
            names = [reserved_for]
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
        spec = self._spec
        encoded = self._encoder.encode(plan.values())
        for (name, task), sent in zip(plan.items(), encoded, strict=True):
            device = self._devices[name]
            traffic.bytes_down += len(sent.payload) + device.take_masks(sent.masks)
            local = device.local(spec.seed, task.round_number, task)
            update = device.timed(task, self._client.run(_received(task, sent), local))
            update = replace(update, pause_seconds=self._pause_seconds)
            if update.seconds is not None:
                traffic.seconds[name] = update.seconds
            up = encode_update(
                update.payload, sent.known, spec.wire, device.private, local.generator
            )
            traffic.bytes_up += len(up)
            yield replace(update, payload=wire.decode(up, task.expects, sent.known))

    def _evaluate(
        self, cohort: list[Participant], num_tasks: int, round_number: int
    ) -> dict[str, Metrics]:
        found: dict[str, Metrics] = {}
        if self._held_out is not None and (models := self.models):
            model = build_model(self._app, self._spec.seed)
            for name, weights in models.items():
                assign(model, weights)
                where = "server" if name == "global" else name
                found[where] = evaluate(model, self._app, self._held_out)
        # A round of fewer clients than a quorum is not judged by them, as on the server.
        if self._spec.evaluation.on_clients and num_tasks >= self._spec.cohort.needed:
            found["clients"] = self._evaluate_on_clients(cohort, round_number)
        return found

    def _evaluate_on_clients(self, cohort: list[Participant], round_number: int) -> Metrics:
        mean = MeanMetrics()
        # What they chose was for the round that is over.
        unchosen = [replace(participant, choice=None) for participant in cohort]
        plan = self._server.plan(self.state, unchosen, round_number + 1)
        for (name, task), sent in zip(
            plan.items(), self._encoder.encode(plan.values()), strict=True
        ):
            local = self._devices[name].local(self._spec.seed, round_number, task)
            received = _received(replace(task, kind=TaskKind.EVALUATE), sent)
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


def _received(task: Task, sent: EncodedTask) -> Task:
    """The task as it arrives; a copy, which the device may write into."""
    payload = wire.decode(bytearray(sent.payload), known=sent.known)
    return Task(task.kind, task.round_number, payload, task.settings)


@dataclass
class _Traffic:
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: dict[ClientId, float] = field(default_factory=dict)


def _kept(task: Task, names: Collection[str]) -> dict[str, int]:
    """Weights that a task brings of each of these parameters."""
    return {
        name: item.mask.count if isinstance(item, SparseTensor) else item.numel()
        for group in task.payload.values()
        for name, item in group.items()
        if name in names and not isinstance(item, Mask)
    }
