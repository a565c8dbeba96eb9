"""A whole federation in one process: the same halves, the same bytes, no server.

What passes between the halves is what would pass over the wire, so a run here and a run over gRPC
end in the same parameters (docs/architecture.md, invariant 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from coppice.aggregation import MeanMetrics
from coppice.app import App, build_model
from coppice.claims import check_claims
from coppice.data import Examples, split
from coppice.device_cost import DeviceCost
from coppice.domain import (
    ClientId,
    Metrics,
    Participant,
    RunSpec,
    TaskKind,
    derive_seed,
    rank_clients,
)
from coppice.errors import InvalidPayload, RunFileError
from coppice.folding import fold
from coppice.method import (
    ClientHalf,
    InitContext,
    ServerHalf,
    Task,
    Update,
    check_wire,
    client_half,
    server_half,
)
from coppice.protection import Finding, needed_updates
from coppice.shelf import Shelf
from coppice.simulated_device import CAPABILITY, Device
from coppice.tensors import Weights, assign
from coppice.training import evaluate
from coppice.wire import payload as wire
from coppice.wire.exchange import EncodedTask, Known, TaskEncoder, encode_update


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
    #: Whose updates were refused, and why.
    refused: Mapping[ClientId, Finding] = field(default_factory=dict)
    #: Modelled, of each device whose cost is known: the round lasts as long as the longest.
    seconds: Mapping[ClientId, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SimulationResult:
    """What a run ended with."""

    state: Any
    models: Mapping[str, Weights]
    rounds: list[SimulatedRound]


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
        #: Refused updates of each client.
        self._strikes: dict[ClientId, int] = {}
        self._devices = {
            client_id: Device(
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
        with Shelf() as shelf:
            answers = _Answers(shelf)
            self._answer(plan, answers)
            metrics = self._fold(plan, answers, round_number)
        due = self._spec.evaluation_due(round_number)
        evaluation = self._evaluate(cohort, len(plan), round_number) if due else {}
        return SimulatedRound(
            round_number,
            metrics,
            evaluation,
            answers.bytes_down,
            answers.bytes_up,
            answers.refused,
            answers.seconds,
        )

    def _fold(self, plan: Mapping[ClientId, Task], answers: _Answers, round_number: int) -> Metrics:
        """The next state, or the same where too few updates can be folded, as on the server."""
        needed = needed_updates(self._spec.cohort.needed, len(plan), len(answers.refused))
        if len(answers.stored) < needed:
            return {}
        folded = fold(
            self._server,
            self._spec.protection,
            self.state,
            list(answers.stored),
            answers.read,
            round_number,
            devices=len(plan),
        )
        self.state = folded.state
        for name in folded.refused:
            self._devices[name].private.take_back()
        answers.refused |= folded.refused
        for name in answers.refused:
            self._strikes[name] = self._strikes.get(name, 0) + 1
        return folded.metrics

    def _cohort(self, round_number: int) -> list[Participant]:
        leaves_out = self._spec.protection.leaves_out
        there = [name for name in self._devices if not leaves_out(self._strikes.get(name, 0))]
        names = rank_clients(self._spec.seed, round_number, there)
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
        return Participant(name, CAPABILITY, len(device.train), choice)

    def _answer(self, plan: Mapping[ClientId, Task], answers: _Answers) -> None:
        """Have each device do its task, in plan order, and check what it sends as a server does."""
        spec = self._spec
        encoded = self._encoder.encode(plan.values())
        for (name, task), sent in zip(plan.items(), encoded, strict=True):
            device = self._devices[name]
            answers.bytes_down += len(sent.payload) + device.take_masks(sent.masks)
            local = device.local(spec.seed, task.round_number, task)
            update = device.timed(task, self._client.run(_received(task, sent), local))
            update = replace(update, pause_seconds=self._pause_seconds)
            up = encode_update(
                update.payload, sent.known, spec.wire, device.private, local.generator
            )
            finding = self._check(task, update, up, len(device.train))
            answers.add(update, up, sent.known, finding)
            if finding is None:
                device.private.commit()
            else:
                device.private.drop()

    def _check(
        self, task: Task, update: Update, data: bytearray, num_examples: int
    ) -> Finding | None:
        try:
            wire.check(data, task.expects)
        except InvalidPayload as error:
            return Finding("structure", str(error))
        if not self._spec.protection.firewall:
            return None
        most_steps = self._server.most_steps(task, num_examples)
        return check_claims(update.num_examples, update.steps, num_examples, most_steps)

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


class _Answers:
    """What the devices of one round sent: read again as often as need be, one update at a time."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        #: All of an update but its payload; where that is and its bytes; the masks it may be on.
        self.stored: dict[ClientId, tuple[Update, int, int, Known]] = {}
        self.refused: dict[ClientId, Finding] = {}
        self.bytes_down = 0
        self.bytes_up = 0
        self.seconds: dict[ClientId, float] = {}

    def add(self, update: Update, data: bytearray, known: Known, finding: Finding | None) -> None:
        self.bytes_up += len(data)
        if update.seconds is not None:
            self.seconds[update.client_id] = update.seconds
        if finding is not None:
            self.refused[update.client_id] = finding
            return
        place = self._shelf.put(data)
        self.stored[update.client_id] = (replace(update, payload={}), place, len(data), known)

    def read(self, clients: Sequence[ClientId]) -> Iterator[Update]:
        for name in clients:
            update, place, size, known = self.stored[name]
            yield replace(update, payload=wire.decode(self._shelf.read(place, size), known=known))
