"""What devices choose from, what they answer and what they report of their costs: as payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coppice.device_cost import (
    MOST_SECONDS,
    DeviceCost,
    LayerCost,
    LayerMemory,
    MemoryCost,
    RoundCost,
    StepMemory,
)
from coppice.errors import InvalidPayload
from coppice.methods.prunefl.profile import LayerProfile, Profile
from coppice.tensors import Payload, dense_group

#: A device answers so, with the limit, when not even the fewest weights fit.
DECLINED = "declined"
#: Points of a layer's table of times that travel.
POINTS = 8
_NO_POINT = -1.0
#: Numbers of a layer's cost: the points, the dense time, and four of its memory.
LAYER_NUMBERS = 2 * POINTS + 5
#: round, step and link seconds; base and limit bytes.
ROUND_NUMBERS = 5
_ROUND = "round"
#: By which the numbers of the terms go.
_NUMBERS = ("pace_seconds", "base_gain", "levels", "max_steps", "report_due", "version")


@dataclass(frozen=True)
class Terms:
    """What a device chooses from."""

    profile: Profile
    #: Seconds that the round should take; 0 where that is not known yet.
    pace_seconds: float
    #: Local steps of a device that has the time for all.
    max_steps: int
    #: Whether devices with the memory for it are to report importance in this round.
    report_due: bool
    #: Counts profiles and paces: within one, devices keep their masks.
    version: int = 0


def terms_to_payload(terms: Terms) -> Payload:
    """Terms, to send."""
    profile = terms.profile
    numbers = (
        terms.pace_seconds, profile.base_gain, profile.levels, terms.max_steps, terms.report_due,
        terms.version,
    )  # fmt: skip
    return {
        "kept": {name: torch.tensor(item.kept) for name, item in profile.layers.items()},
        "gains": {name: _doubles(item.gains) for name, item in profile.layers.items()},
        "terms": {name: _doubles([value]) for name, value in zip(_NUMBERS, numbers, strict=True)},
    }


def terms_from_payload(payload: Payload) -> Terms:
    """Terms as they came; InvalidPayload when they make no sense."""
    try:
        kept, gains, numbers = (
            {name: tensor.tolist() for name, tensor in dense_group(payload, group).items()}
            for group in ("kept", "gains", "terms")
        )
        layers = {
            name: LayerProfile(kept=tuple(counts), gains=tuple(gains[name]))
            for name, counts in kept.items()
        }
        pace, base, levels, steps, due, version = (numbers[name][0] for name in _NUMBERS)
        if not (0 <= pace <= MOST_SECONDS and steps >= 1 and due in (0, 1)):
            raise ValueError(f"a pace of {pace} seconds, {steps} steps and {due} for a report")
        profile = Profile(layers=layers, levels=int(levels), base_gain=base)
        return Terms(profile, pace, int(steps), bool(due), int(version))
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise InvalidPayload(f"the terms of the round make no sense: {error}") from None


def cost_to_tensors(cost: DeviceCost) -> dict[str, Tensor]:
    """A device's cost, to report: numbers by layer, and those of the round."""
    memory = cost.memory.training
    time = cost.time
    numbers = [
        time.round_seconds, time.step_seconds, time.seconds_per_value, memory.base_bytes,
        cost.limit_bytes,
    ]  # fmt: skip
    return {_ROUND: _doubles(numbers)} | {
        name: _doubles(_layer_numbers(layer, memory.layers[name]))
        for name, layer in time.layers.items()
    }


def no_cost(names: Sequence[str]) -> dict[str, Tensor]:
    """What a device reports that does not know, and what any report looks like."""
    empty = dict.fromkeys(names, LAYER_NUMBERS) | {_ROUND: ROUND_NUMBERS}
    return {name: _doubles([_NO_POINT] * length) for name, length in empty.items()}


def cost_from_tensors(group: Mapping[str, Tensor]) -> DeviceCost | None:
    """A device's cost as it was reported; None when it did not know, or makes no sense."""
    numbers = {name: tensor.tolist() for name, tensor in group.items()}
    try:
        seconds, step, link, base, limit = numbers.pop(_ROUND)
        layers = {name: _layer_cost(item) for name, item in numbers.items()}
        memory = {name: _layer_memory(item) for name, item in numbers.items()}
        return DeviceCost(
            time=RoundCost(
                round_seconds=seconds, step_seconds=step, seconds_per_value=link, layers=layers
            ),
            memory=MemoryCost(training=StepMemory(base_bytes=base, layers=memory)),
            limit_bytes=limit,
        )
    except (ValueError, KeyError, OverflowError):
        return None


def _layer_numbers(layer: LayerCost, memory: LayerMemory) -> list[float]:
    count = len(layer.kept)
    if count > POINTS:
        raise ValueError(f"a layer's cost has {count} points; {POINTS} can be told")
    padding = [_NO_POINT] * (POINTS - count)
    return [
        *layer.kept, *padding, *layer.sparse_seconds, *padding, layer.dense_seconds,
        memory.fixed_bytes, memory.bytes_per_weight, memory.dense_bytes,
        memory.dense_bytes_per_weight,
    ]  # fmt: skip


def _layer_cost(numbers: Sequence[float]) -> LayerCost:
    kept = [value for value in numbers[:POINTS] if value != _NO_POINT]
    seconds = numbers[POINTS : POINTS + len(kept)]
    return LayerCost(
        kept=tuple(map(int, kept)),
        sparse_seconds=tuple(seconds),
        dense_seconds=numbers[2 * POINTS],
    )


def _layer_memory(numbers: Sequence[float]) -> LayerMemory:
    fixed, per_weight, dense, dense_per_weight = numbers[2 * POINTS + 1 :]
    return LayerMemory(
        fixed_bytes=fixed,
        bytes_per_weight=per_weight,
        dense_bytes=dense,
        dense_bytes_per_weight=dense_per_weight,
    )


def _doubles(values: Sequence[float] | tuple[Any, ...]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
