"""Profiles and devices for the tests of the pace: drawn at random, or of one kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from coppice.device_cost import (
    DeviceCost,
    LayerCost,
    LayerMemory,
    MemoryCost,
    RoundCost,
    StepMemory,
)
from coppice.methods.prunefl.paths import INSIDE
from coppice.methods.prunefl.profile import LayerProfile, Profile


def random_profile(rng: np.random.Generator, layers: int = 3, points: int = 6) -> Profile:
    """Layers of geometric counts, two of which cut into the core, with falling gains per weight."""
    levels = 2
    profiles = {}
    for number in range(layers):
        size = int(rng.integers(200, 20_000))
        kept = np.unique(np.geomspace(rng.integers(2, 20), size, points).round().astype(int))
        each = np.sort(rng.pareto(1.3, kept[-1]) + 1e-4)[::-1]
        # The core is in another order than that of importance.
        each[: kept[levels]] = rng.permutation(each[: kept[levels]])
        sums = np.cumsum(each)[kept - 1]
        profiles[f"layer{number}"] = LayerProfile(
            kept=tuple(kept.tolist()), gains=tuple(sums.tolist())
        )
    return Profile(layers=profiles, levels=levels, base_gain=float(rng.exponential()))


def random_device(
    rng: np.random.Generator, profile: Profile, *, memory_share: float | None = None
) -> DeviceCost:
    """A device whose layers turn dense at some density; `memory_share` of what all may need."""
    layers, memories = {}, {}
    for name, layer in profile.layers.items():
        size = layer.kept[-1]
        whole = float(rng.exponential()) + 0.01
        fixed = whole * float(rng.uniform(0, 0.5))
        dense = fixed + (whole - fixed) * float(rng.uniform(0.25, 1.4))
        layers[name] = LayerCost.line(fixed, (whole - fixed) / size, dense, size)
        memories[name] = LayerMemory(
            fixed_bytes=100.0,
            bytes_per_weight=float(rng.choice([6.0, 12.0, 16.0])),
            dense_bytes=8.0 * size,
        )
    memory = MemoryCost(
        training=StepMemory(base_bytes=1000.0, layers=memories),
        importance=StepMemory(base_bytes=float(rng.choice([500.0, 4000.0])), layers=memories),
    )
    cost = DeviceCost(
        time=RoundCost(
            round_seconds=float(rng.exponential()),
            step_seconds=float(rng.exponential()) / 5,
            seconds_per_value=float(rng.exponential()) * 3e-5,
            layers=layers,
        ),
        memory=memory,
        limit_bytes=1e12,
    )
    if memory_share is None:
        return cost
    points = [cost.peak_bytes(ones) for ones, _ in allowed_choices(profile)]
    return replace(cost, limit_bytes=min(points) + memory_share * (max(points) - min(points)))


def allowed_choices(profile: Profile) -> Iterator[tuple[dict[str, int], float]]:
    """What may be chosen, with what it counts: any counts, but inside the core in proportion."""
    layers = list(profile.layers.values())
    inside = [(index,) * len(layers) for index in range(profile.levels)]
    beyond = itertools.product(*(range(profile.levels, len(layer.kept)) for layer in layers))
    for chosen in [*inside, *beyond]:
        pairs = list(zip(layers, chosen, strict=True))
        counts = [layer.kept[index] for layer, index in pairs]
        gain = profile.base_gain + sum(layer.gains[index] for layer, index in pairs)
        counted = INSIDE if chosen[0] < profile.levels else 1
        yield dict(zip(profile.layers, counts, strict=True)), counted * gain


def best_of_all(
    profile: Profile, cost: DeviceCost, pace: float, max_steps: int
) -> tuple[float, int, Mapping[str, int]] | None:
    """The largest gain by trying everything."""
    found = [
        (steps / max_steps * gain, steps, ones)
        for ones, gain in allowed_choices(profile)
        if cost.peak_bytes(ones) <= cost.limit_bytes
        for steps in [cost.time.steps_within(pace, ones, max_steps)]
        if steps > 0
    ]
    return max(found, key=lambda item: item[0], default=None)


def scaled(cost: DeviceCost, factor: float) -> DeviceCost:
    """A device on which everything takes so many times as long."""
    return replace(cost, time=cost.time.times(float(factor)))
