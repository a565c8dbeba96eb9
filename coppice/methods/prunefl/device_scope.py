"""PruneFL where each device has a mask of its own: all of them cuts of one order, at one pace."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from coppice.cohort import CohortSpec
from coppice.device_cost import DeviceCost
from coppice.domain import ClientId, Metrics, Participant
from coppice.masks import density, remask, sparse_weights
from coppice.method import Task, Update
from coppice.methods.prunefl.belief import believed
from coppice.methods.prunefl.estimate import estimate
from coppice.methods.prunefl.order import LayerOrder, cut, nearest, shared_order
from coppice.methods.prunefl.pace import Pace, find_pace, useful
from coppice.methods.prunefl.profile import Profile, profile_of
from coppice.methods.prunefl.reconfigure import prune_share
from coppice.methods.prunefl.sample import MOST_EVERY, Sample, report_of
from coppice.methods.prunefl.settings import Settings
from coppice.methods.prunefl.terms import DECLINED, Terms, cost_from_tensors, no_cost
from coppice.model_server import MeanUpdate, training_task
from coppice.nova import NovaMean, accumulation_norm
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import Payload, Tensors, Weights, dense_group, masks_of, weight_group

#: Local steps, kept weights of each parameter, and the `every` of the sample of weights whose
#: importance is reported; 0 for none.
_Choice: TypeAlias = tuple[int, Mapping[str, int], int]

#: After so many rounds devices know what a round takes on masks that stay, and have said so: a pace
#: of the first round did not count it.
_SETTLED = 4
#: So many of the newest rounds tell what passes between two.
_PAUSES = 5
#: No pace is a larger share of the time that a round is given: what rounds take varies.
_DEADLINE_SHARE = 0.5


@dataclass(frozen=True)
class FleetState:
    """What devices choose from, and what they have said of themselves."""

    order: Mapping[str, LayerOrder]
    profile: Profile
    #: Seconds that a round should take; 0 while no device has said what rounds cost it.
    pace_seconds: float = 0.0
    costs: Mapping[ClientId, DeviceCost] = field(default_factory=dict)
    #: Examples that each of these has.
    num_examples: Mapping[ClientId, int] = field(default_factory=dict)
    #: Of the terms: another profile or pace has another one.
    version: int = 0
    #: Weights that each device kept last, by parameter, and in which round that was.
    kept: Mapping[ClientId, Mapping[str, int]] = field(default_factory=dict)
    last_rounds: Mapping[ClientId, int] = field(default_factory=dict)
    #: Seconds between rounds, newest last.
    pauses: tuple[float, ...] = ()

    @property
    def pause_seconds(self) -> float:
        """What passes between two rounds; 0 while that is not known."""
        return statistics.median(self.pauses) if self.pauses else 0.0

    @property
    def is_new(self) -> bool:
        """Whether no device has trained yet: how long a round should take is not known."""
        return not self.kept


def new_fleet(parameters: Weights, importance: Mapping[str, Tensor], base: float) -> FleetState:
    """A fleet that knows nothing of its devices yet: their memory alone limits what they keep."""
    # All that is there is the core: nothing has been measured yet that speaks against any of it.
    order = shared_order(sparse_weights(parameters), importance, 0.0)
    return FleetState(order, profile_of(order, importance, base))


@dataclass(frozen=True)
class FleetRound:
    """What one round is to be."""

    number: int
    #: Rounds of all clients, this one included, that are or will be committed.
    count: int
    learning_rate: float
    #: Whether it asks for importance, and reconfigures at its end.
    is_due: bool
    cohort: CohortSpec

    @property
    def longest_seconds(self) -> float:
        """What a pace may be."""
        return _DEADLINE_SHARE * self.cohort.deadline_seconds

    def quorum_of(self, devices: int) -> int:
        """How many of all devices that are known make a cohort's quorum likely."""
        needed = self.cohort.needed
        return max(needed, math.ceil(devices * needed / self.cohort.size))


class DeviceScope:
    """The rounds of a fleet."""

    def __init__(self, settings: Settings) -> None:
        assert settings.local_steps is not None
        self._settings = settings
        self._max_steps = settings.local_steps

    def terms(self, fleet: FleetState, report_due: bool) -> Terms:
        """What devices choose from; a single step in the round that the first pace comes of."""
        return Terms(
            fleet.profile, fleet.pace_seconds, self._most_steps(fleet), report_due, fleet.version
        )

    def _most_steps(self, fleet: FleetState) -> int:
        return 1 if fleet.is_new else self._max_steps

    def plan(
        self,
        parameters: Weights,
        buffers: Tensors,
        fleet: FleetState,
        cohort: Sequence[Participant],
        planned: FleetRound,
    ) -> dict[ClientId, Task]:
        """Each device its own cut and number of steps; who may sit out is left out."""
        chosen = [
            (participant.client_id, choice)
            for participant in cohort
            if (choice := self._choice(participant, fleet, planned.number)) is not None
        ]
        # Tasks on the same weights follow each other: they have one payload, encoded once.
        chosen.sort(key=lambda item: tuple(item[1][1].values()))
        payload: Payload = {}
        before: Mapping[str, int] | None = None
        tasks = {}
        for client_id, (steps, kept, every) in chosen:
            if kept != before:
                own = remask(parameters, cut(fleet.order, kept), {})
                payload, before = {"parameters": own, "buffers": buffers}, kept
            more: dict[str, Mapping[str, Item]] = {"cost": no_cost(list(kept))}
            settings = {"learning_rate": planned.learning_rate, "steps": steps, "report": False}
            settings["terms"] = fleet.version
            if planned.is_due and every:
                more |= report_of(own, every) | {"sample": Sample(every, first=0).to_tensors()}
                settings |= {"report": True, "report_every": every}
            task = training_task(own, buffers, planned.number, settings, more)
            tasks[client_id] = replace(task, payload=payload)
        return tasks

    def _choice(
        self, participant: Participant, fleet: FleetState, round_number: int
    ) -> _Choice | None:
        """What a device is to do; None where it declined and may sit out."""
        client_id, choice = participant.client_id, participant.choice
        if choice is None:
            return self._as_before(client_id, fleet)
        if DECLINED not in choice:
            return self._valid(choice, fleet)
        rounds_out = round_number - 1 - fleet.last_rounds.get(client_id, 0)
        if choice[DECLINED] == "pace" and rounds_out >= self._settings.most_rounds_out:
            return 1, fleet.profile.least, 0
        return None

    def _valid(self, choice: Mapping[str, Any], fleet: FleetState) -> _Choice:
        """Steps, counts and what is reported; a choice that is none is the least."""
        profile = fleet.profile
        steps, kept = choice.get("steps"), choice.get("kept")
        is_valid = (
            isinstance(steps, int)
            and 1 <= steps <= self._most_steps(fleet)
            and isinstance(kept, Mapping)
            and kept.keys() == profile.layers.keys()
            and all(kept[name] in layer.kept for name, layer in profile.layers.items())
        )
        if not is_valid:
            return 1, profile.least, 0
        assert isinstance(kept, Mapping)
        counts = {name: int(kept[name]) for name in profile.layers}
        every = choice.get("report_every")
        is_sample = isinstance(every, int) and 1 <= every <= MOST_EVERY
        return int(steps or 1), counts, int(every or 0) if is_sample else 0

    def _as_before(self, client_id: ClientId, fleet: FleetState) -> _Choice:
        """Of a device that is to evaluate or keep the model: what it held last, or the least."""
        held = fleet.kept.get(client_id, fleet.profile.least)
        return self._max_steps, nearest(fleet.order, held), 0

    def _steps(self, fleet: FleetState, update: Update) -> int:
        return min(max(1, update.steps), self._most_steps(fleet))

    def norm(self, fleet: FleetState, update: Update, learning_rate: float) -> float:
        """How far the steps of an update go along a gradient that stays the same."""
        settings = self._settings
        return accumulation_norm(
            self._steps(fleet, update),
            learning_rate,
            settings.momentum,
            settings.weight_decay,
            settings.proximal,
        )

    def aggregate(
        self,
        parameters: Weights,
        buffers: Tensors,
        fleet: FleetState,
        updates: Iterable[Update],
        planned: FleetRound,
    ) -> tuple[Weights, Tensors, FleetState, Metrics] | None:
        """The next weights and fleet; None without an update that has any weight."""
        settings = self._settings
        deltas = NovaMean(settings.absent, settings.least_share)
        rest, seen = MeanUpdate(), _Seen(fleet, planned.number)
        for update in updates:
            norm = self.norm(fleet, update, planned.learning_rate)
            deltas.add(weight_group(update.payload, "delta"), update.num_examples, norm)
            seen.add(update, self._steps(fleet, update), parameters)
            rest.add(replace(update, payload={**update.payload, "delta": {}}))
        delta = deltas.value()
        if not delta:
            return None
        moved = _moved(parameters, delta)
        fleet = replace(
            fleet,
            costs=seen.costs,
            num_examples=seen.num_examples,
            kept=seen.kept,
            last_rounds=seen.last_rounds,
            pauses=seen.pauses[-_PAUSES:],
        )
        if planned.is_due:
            moved, fleet = self._reconfigured(moved, fleet, seen, planned)
        elif planned.count == _SETTLED:
            moved, fleet = self._paced(moved, fleet, planned)
        metrics = {
            **rest.metrics(),
            "density": density(masks_of(moved).values()),
            "pace_seconds": fleet.pace_seconds,
        }
        return moved, rest.buffers(buffers), fleet, metrics

    def _reconfigured(
        self, parameters: Weights, fleet: FleetState, seen: _Seen, planned: FleetRound
    ) -> tuple[Weights, FleetState]:
        # Where nobody has the memory to report, the order stays, and with it what it is worth.
        if seen.has_reports:
            importance, base = seen.importance()
            settings = self._settings
            share = prune_share(planned.count, settings.prune_share, settings.prune_half_life)
            order = shared_order(sparse_weights(parameters), importance, share)
            fleet = replace(fleet, order=order, profile=profile_of(order, importance, base))
        return self._paced(parameters, fleet, planned)

    def _paced(
        self, parameters: Weights, fleet: FleetState, planned: FleetRound
    ) -> tuple[Weights, FleetState]:
        """The fleet with a pace by what is known now, and the weights that it can keep then."""
        fleet = replace(fleet, version=fleet.version + 1)
        found = self._pace(fleet, planned)
        if found is None:
            return parameters, fleet
        profile, pace = found
        kept = {
            name: max(choice.kept[name] for choice in pace.choices.values()) for name in fleet.order
        }
        # The next pace goes by what devices say from now on: some leave, some get slower.
        forgotten = replace(
            fleet, profile=profile, pace_seconds=pace.seconds, costs={}, num_examples={}
        )
        return remask(parameters, cut(fleet.order, kept), {}), forgotten

    def _pace(self, fleet: FleetState, planned: FleetRound) -> tuple[Profile, Pace] | None:
        """What to choose from, and the pace, by what devices have said.

        None where that, or what weights are worth, is not known.
        """
        profile, costs = fleet.profile, fleet.costs
        has_gains = any(layer.gains[-1] > 0 for layer in profile.layers.values())
        if not (costs and has_gains):
            return None
        shares = {name: float(fleet.num_examples[name]) for name in costs}
        longest, pause = planned.longest_seconds, fleet.pause_seconds
        profile = useful(profile, costs, self._max_steps, longest, pause)
        try:
            return profile, find_pace(
                profile,
                costs,
                shares,
                self._max_steps,
                self._settings.include,
                planned.quorum_of(len(costs)),
                longest,
                pause,
            )
        except ValueError:
            # None of these has the memory, or the time, for the fewest weights.
            return None


class _Seen:
    """What the updates of one round say beside the weights."""

    def __init__(self, fleet: FleetState, round_number: int) -> None:
        self._round_number = round_number
        self.costs = dict(fleet.costs)
        self.num_examples = dict(fleet.num_examples)
        self.kept = dict(fleet.kept)
        self.last_rounds = dict(fleet.last_rounds)
        self.pauses = fleet.pauses
        self._has_pause = False
        #: Of every entry, float64: the sum of squared gradients times examples, and the examples
        #: of who reported it.
        self._squares: dict[str, Tensor] = {}
        self._reported: dict[str, Tensor] = {}
        self._masses: list[float] = []
        self._base = 0.0

    def add(self, update: Update, steps: int, parameters: Weights) -> None:
        masks = masks_of(weight_group(update.payload, "delta"))
        self.last_rounds[update.client_id] = self._round_number
        self.kept[update.client_id] = {name: mask.count for name, mask in masks.items()}
        self._add_cost(update, steps)
        if not self._has_pause and update.pause_seconds is not None:
            self.pauses, self._has_pause = (*self.pauses, update.pause_seconds), True
        if "importance" in update.payload and update.num_examples > 0:
            self._add_report(update, parameters)

    def _add_report(self, update: Update, parameters: Weights) -> None:
        values = dense_group(update.payload, "importance")
        sample = Sample.from_tensors(dense_group(update.payload, "sample"), values, parameters)
        if sample is None:
            return
        mass = float(update.num_examples)
        for name, item in values.items():
            if name not in self._squares:
                zeros = torch.zeros(2, *parameters[name].shape, dtype=torch.float64)
                self._squares[name], self._reported[name] = zeros
            sums = sample.entries(self._squares[name])
            sums.add_(item.reshape(-1)[: len(sums)].clamp(min=0))
            sample.entries(self._reported[name]).add_(mass)
        self._base += max(0.0, float(dense_group(update.payload, "base")["importance"]))
        self._masses.append(mass)

    @property
    def has_reports(self) -> bool:
        """Whether there is anything to choose by."""
        return bool(self._masses)

    def _add_cost(self, update: Update, steps: int) -> None:
        client_id, reported = update.client_id, "importance" in update.payload
        # What was said in a round that only trained was checked against its whole time.
        if reported and client_id in self.costs:
            return
        cost = cost_from_tensors(dense_group(update.payload, "cost"))
        if cost is not None:
            cost = believed(cost, self.kept[client_id], steps, update.seconds, reported)
        if cost is not None:
            self.costs[client_id] = cost
            self.num_examples[client_id] = update.num_examples

    def importance(self) -> tuple[dict[str, Tensor], float]:
        """G of every entry, float32, and of what is never pruned."""
        mass = sum(self._masses)
        prior = statistics.median(self._masses)
        most = torch.finfo(torch.float32).max
        found = {
            name: estimate(sums, self._reported[name], prior).clamp(max=most).to(torch.float32)
            for name, sums in self._squares.items()
        }
        return found, min(self._base / mass, most) if mass else 0.0


def _moved(parameters: Weights, delta: Weights) -> Weights:
    """The parameters plus the delta, on all that either of them has."""
    moved: dict[str, Tensor | SparseTensor] = {}
    for name, item in parameters.items():
        change = delta[name]
        if isinstance(item, SparseTensor):
            assert isinstance(change, SparseTensor)
            dense = item.dense()
            dense.view(-1)[change.mask.positions] += change.values.to(item.dtype)
            packed = item.mask.packed | change.mask.packed
            moved[name] = SparseTensor.take(dense, Mask(item.shape, packed))
        else:
            assert isinstance(change, Tensor)
            moved[name] = item + change.to(item.dtype)
    return moved
