"""The paths through what a device could keep: what they must not skip, and what they add up to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coppice.device_cost import (
    DeviceCost,
    LayerCost,
    LayerMemory,
    MemoryCost,
    RoundCost,
    StepMemory,
)
from coppice.methods.prunefl.choice import choose
from coppice.methods.prunefl.paths import INSIDE, Options, Paths
from coppice.methods.prunefl.profile import LayerProfile, Profile
from tests.coppice.methods.prunefl.devices import random_device, random_profile


def device(**layers: LayerCost) -> DeviceCost:
    """One with memory for anything."""
    memory = LayerMemory(fixed_bytes=0, bytes_per_weight=12, dense_bytes=8)
    return DeviceCost(
        time=RoundCost(round_seconds=0.0, step_seconds=0.0, seconds_per_value=0.0, layers=layers),
        memory=MemoryCost(training=StepMemory(base_bytes=0, layers=dict.fromkeys(layers, memory))),
        limit_bytes=1e9,
    )


def test_layer_that_gets_faster_by_turning_dense_is_not_cut_into() -> None:
    """The core takes longer sparse, within the margin, than everything does dense."""
    layer = LayerProfile(kept=(10, 520, 1000), gains=(1.0, 10.0, 20.0))
    profile = Profile(layers={"w": layer}, levels=1, base_gain=0.0)
    cost = device(w=LayerCost.line(0.0, 0.001, 0.5, 1000))
    assert cost.time.seconds({"w": 520}, 1) > cost.time.seconds({"w": 1000}, 1) == 0.5
    choice = choose(profile, cost, 0.501, 1)
    assert choice is not None
    assert choice.kept == {"w": 1000}


def test_weights_that_are_worth_nothing_are_not_kept() -> None:
    layer = LayerProfile(kept=(1, 5, 10, 20, 50), gains=(1.0, 2.0, 3.0, 3.0, 3.0))
    profile = Profile(layers={"w": layer}, levels=1, base_gain=0.0)
    choice = choose(profile, device(w=LayerCost.line(0.0, 1.0, 1e3, 50)), 500.0, 1)
    assert choice is not None
    assert choice.kept == {"w": 10}
    assert choice.why == "capped"


def test_points_add_up_where_all_weights_are_worth_the_same() -> None:
    """Rounding alone says which move is the better one."""
    count = 300
    gains = tuple(np.cumsum(np.full(count, 0.1)).tolist())
    layer = LayerProfile(kept=tuple(range(1, count + 1)), gains=gains)
    profile = Profile(layers={"a": layer, "b": layer}, levels=3, base_gain=0.0)
    line = LayerCost.line(0.1, 0.0123, 1e3, count)
    cost = device(a=line, b=line)
    paths = Paths(Options.of(profile, cost), 2)
    for pace in np.linspace(0.4, 10, 80):
        for steps, chosen, gain in paths.best(float(pace)):
            kept = paths.options.kept(chosen)
            assert cost.time.seconds(kept, steps) <= pace * (1 + 1e-9)
            total = sum(layer.gains[number - 1] for number in kept.values())
            counts = INSIDE if kept["a"] < layer.kept[3] else 1
            assert gain == pytest.approx(counts * steps / 2 * total)


def test_paths_alone_come_near_the_best_under_both_limits() -> None:
    """Where seconds and bytes of a weight differ widely from layer to layer."""
    bound = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, layers=8, points=30)
        cost = random_device(rng, profile)
        core, whole = (
            {name: layer.kept[index] for name, layer in profile.layers.items()}
            for index in (profile.levels, -1)
        )
        low, high = cost.peak_bytes(core), cost.peak_bytes(whole)
        cost = replace(cost, limit_bytes=low + (high - low) * float(rng.uniform(0.1, 0.5)))
        low, high = cost.time.seconds(core, 3), cost.time.seconds(whole, 5)
        pace = low + (high - low) * float(rng.uniform(0.1, 0.5))
        choice = choose(profile, cost, pace, 5)
        assert choice is not None
        bound += choice.why == "memory"
        gain = Paths(Options.of(profile, cost), 5).gains(np.array([pace]))[0]
        assert 0.96 * choice.gain < gain <= choice.gain * (1 + 1e-9)
    assert bound > 5
