"""What a device chooses: the best there is within both limits, and seldom something new."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from coppice import tree
from coppice.device_cost import DeviceCost, LayerCost, MemoryCost, RoundCost
from coppice.methods.prunefl.choice import Choice, choose, obstacle
from coppice.methods.prunefl.paths import INSIDE
from coppice.methods.prunefl.profile import LayerProfile, Profile
from tests.coppice.methods.prunefl.devices import (
    best_of_all,
    random_device,
    random_profile,
    scaled,
)

STEPS = 3


def drawn(seed: int) -> tuple[Profile, DeviceCost, float]:
    """A small choice; of three, one has memory for anything, and of five, one no time for much."""
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 5))
    profile = random_profile(rng, layers, points=5 if layers == 4 else 6)
    share = float(rng.uniform(0.02, 0.8)) if seed % 3 else None
    cost = random_device(rng, profile, memory_share=share)
    shortest = cost.time.seconds(counts(profile, 0), 1)
    longest = cost.time.seconds(counts(profile, -1), STEPS)
    if seed % 5 == 4:
        longest = cost.time.seconds(counts(profile, profile.levels), 1) * (1 - 1e-9)
    return profile, cost, shortest * (longest / shortest) ** float(rng.uniform(0.05, 1.0))


def counts(profile: Profile, index: int) -> dict[str, int]:
    return {name: layer.kept[index] for name, layer in profile.layers.items()}


def chosen(
    profile: Profile, cost: DeviceCost, pace: float, previous: Choice | None = None
) -> Choice:
    choice = choose(profile, cost, pace, STEPS, previous)
    assert choice is not None
    return choice


def test_nothing_else_within_both_limits_gains_more() -> None:
    gaps = []
    for seed in range(150):
        profile, cost, pace = drawn(seed)
        best, choice = best_of_all(profile, cost, pace, STEPS), choose(profile, cost, pace, STEPS)
        assert (best is None) == (choice is None)
        if best is None or choice is None:
            continue
        assert cost.allows(choice.kept, choice.steps, pace)
        gaps.append(1 - choice.gain / best[0])
    assert len(gaps) > 100
    # Of 900 such choices 9 are not the best: three by more than 2 %, the worst by 12 %.
    assert np.median(gaps) < 1e-12
    assert np.mean(gaps) < 0.001
    assert max(gaps) < 0.02


def test_choice_says_what_it_gains_and_costs() -> None:
    for seed in range(10):
        profile, cost, pace = drawn(seed)
        choice = choose(profile, cost, pace, STEPS)
        if choice is None:
            continue
        gain = profile.base_gain + sum(
            layer.gains[layer.kept.index(choice.kept[name])]
            for name, layer in profile.layers.items()
        )
        inside = any(choice.kept[name] < item for name, item in counts(profile, 2).items())
        gain *= INSIDE if inside else 1
        assert choice.gain == pytest.approx(choice.steps / STEPS * gain)
        assert choice.seconds == cost.time.seconds(choice.kept, choice.steps)
        assert choice.peak_bytes == cost.peak_bytes(choice.kept)
        assert tree.load(Choice, tree.save(choice)) == choice


def test_inside_the_core_layers_are_cut_in_proportion() -> None:
    inside = 0
    for seed in range(60):
        profile, cost, _ = drawn(seed)
        levels = [counts(profile, index) for index in range(profile.levels)]
        core = counts(profile, profile.levels)
        for pace in (cost.time.seconds(levels[1], 1), cost.time.seconds(core, 1) * (1 - 1e-9)):
            choice = choose(profile, cost, pace, STEPS)
            if choice is not None and any(choice.kept[name] < core[name] for name in core):
                assert choice.kept in levels
                inside += 1
    assert inside > 20


def test_a_step_on_the_whole_core_is_worth_more_than_many_inside_it() -> None:
    profile, cost, _ = drawn(0)
    # Steps alone are worth nearly everything here.
    profile = replace(profile, base_gain=1e6)
    layers = {
        name: LayerCost.line(0.0, 0.01, 1e3, layer.kept[-1])
        for name, layer in profile.layers.items()
    }
    bare = RoundCost(round_seconds=0.0, step_seconds=0.0, seconds_per_value=0.0, layers=layers)
    cost = replace(cost, time=bare)
    core = counts(profile, profile.levels)
    shortest = cost.time.seconds(core, 1)
    # There is time for all steps with a little less.
    assert cost.time.steps_within(0.999 * shortest, counts(profile, 0), STEPS) == STEPS
    inside = chosen(profile, cost, 0.999 * shortest)
    assert inside.kept != core
    assert inside.steps > 1
    choice = chosen(profile, cost, 1.001 * shortest, inside)
    assert (choice.steps, choice.kept) == (1, core)


def test_many_steps_are_used_to_the_last() -> None:
    """Not every number of them is tried."""
    profile, cost, _ = drawn(9)
    slow = replace(cost, time=replace(cost.time, step_seconds=4.0))
    steps = set()
    for share in np.linspace(0.2, 0.9, 5):
        pace = slow.time.seconds(counts(profile, -1), 100) * float(share)
        choice = choose(profile, slow, pace, 100)
        assert choice is not None
        assert choice.steps == slow.time.steps_within(pace, choice.kept, 100)
        assert choice.seconds == slow.time.seconds(choice.kept, choice.steps)
        steps.add(choice.steps)
        bound = slow.time.steps_within(pace, counts(profile, 0), 100) / 100
        whole = profile.base_gain + sum(layer.gains[-1] for layer in profile.layers.values())
        assert choice.gain > 0.75 * bound * whole
    assert len(steps) == 5


# ---- what bounds it ------------------------------------------------------------------------------


def test_choice_says_what_keeps_it_from_more() -> None:
    profile, cost, _ = drawn(0)
    assert cost.limit_bytes == 1e12
    whole = 1.001 * cost.time.seconds(counts(profile, -1), STEPS)
    assert chosen(profile, cost, whole).why == "capped"
    assert chosen(profile, cost, whole).kept == counts(profile, -1)
    assert chosen(profile, cost, whole / 2).why == "pace"
    short = replace(cost, limit_bytes=1.1 * cost.peak_bytes(counts(profile, profile.levels)))
    assert chosen(profile, short, whole).why == "memory"
    # Both limits are there, but only time matters.
    shortest = 1.001 * cost.time.seconds(counts(profile, 0), 1)
    assert chosen(profile, short, shortest).why == "pace"


def test_device_that_cannot_take_part_knows_the_reason() -> None:
    profile, cost, _ = drawn(0)
    least = counts(profile, 0)
    shortest = cost.time.seconds(least, 1)
    assert choose(profile, cost, 0.99 * shortest, STEPS) is None
    assert obstacle(profile, cost, 0.99 * shortest) == "pace"
    assert obstacle(profile, cost, 1.01 * shortest) is None
    small = replace(cost, limit_bytes=0.99 * cost.peak_bytes(least))
    assert choose(profile, small, 1e6, STEPS) is None
    assert obstacle(profile, small, 1.01 * shortest) == "memory"


def test_importance_step_counts_against_the_limit_too() -> None:
    profile, cost, _ = drawn(0)
    training = cost.memory.training
    pace = 1.001 * cost.time.seconds(counts(profile, -1), STEPS)
    alone = replace(cost, memory=MemoryCost(training=training))
    limit = alone.peak_bytes(counts(profile, -1))
    alone = replace(alone, limit_bytes=limit)
    more = replace(training, base_bytes=training.base_bytes + limit / 2)
    both = replace(alone, memory=MemoryCost(training=training, importance=more))
    assert chosen(profile, alone, pace).why == "capped"
    assert chosen(profile, both, pace).why == "memory"
    assert chosen(profile, both, pace).peak_bytes <= limit


def test_impossible_pace_is_refused() -> None:
    profile, cost, _ = drawn(0)
    for pace in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="the pace is"):
            choose(profile, cost, pace, STEPS)


def test_unlike_models_are_refused() -> None:
    profile, cost, pace = drawn(0)
    layer = LayerProfile(kept=(0, 1, 2), gains=(0.0, 1.0, 2.0))
    other = replace(profile, layers={**profile.layers, "more": layer})
    with pytest.raises(ValueError, match="'more'"):
        choose(other, cost, pace, STEPS)


# ---- staying -------------------------------------------------------------------------------------


def test_device_does_not_turn_around_at_the_cliff() -> None:
    """Time that varies by a hundredth makes another number of steps the best one, and back."""
    cliffs = 0
    for seed in (0, 3, 6):
        profile, cost, _ = drawn(seed)
        pace = cost.time.seconds(counts(profile, -1), 12) / 2
        for slowness in np.geomspace(1, 2, 20):
            fast, slow = scaled(cost, slowness), scaled(cost, 1.01 * slowness)
            more, less = (choose(profile, device, pace, 12) for device in (fast, slow))
            assert more is not None
            assert less is not None
            if more.gain > 1.05 * less.gain:
                continue
            cliffs += more.steps != less.steps
            stay: Choice | None = less
            for device in (fast, slow, fast, slow):
                stay = choose(profile, device, pace, 12, stay)
                assert stay is not None
                assert (stay.steps, stay.kept) == (less.steps, less.kept)
    assert cliffs > 2


def test_device_goes_on_to_what_gains_much_more() -> None:
    profile, cost, _ = drawn(0)
    pace = cost.time.seconds(counts(profile, -1), STEPS)
    before = chosen(profile, cost, pace / 3)
    after = chosen(profile, cost, pace)
    assert after.gain > 1.05 * before.gain
    assert chosen(profile, cost, pace, before) == after


def test_device_does_not_stay_where_nothing_is_known_to_gain_anything() -> None:
    profile, cost, pace = drawn(0)
    worthless = replace(
        profile,
        base_gain=0.0,
        layers={
            name: replace(layer, gains=(0.0,) * len(layer.gains))
            for name, layer in profile.layers.items()
        },
    )
    least = replace(chosen(profile, cost, pace), steps=1, kept=counts(profile, 0))
    again = chosen(worthless, cost, 1e6, least)
    assert (again.steps, again.kept) == (STEPS, counts(profile, profile.levels))


def test_device_leaves_what_is_not_allowed_any_more() -> None:
    profile, cost, _ = drawn(0)
    pace = cost.time.seconds(counts(profile, -1), STEPS)
    before = chosen(profile, cost, pace)
    slower = chosen(profile, scaled(cost, 1.02), pace, before)
    assert slower.seconds <= pace
    short = replace(cost, limit_bytes=0.99 * before.peak_bytes)
    assert chosen(profile, short, pace, before).peak_bytes <= short.limit_bytes


def test_counts_that_are_gone_become_the_next_smaller_ones() -> None:
    profile, cost, _ = drawn(0)
    pace = cost.time.seconds(counts(profile, -1), STEPS) * 0.6
    best = chosen(profile, cost, pace)
    previous = replace(best, kept={name: kept + 1 for name, kept in best.kept.items()})
    assert chosen(profile, cost, pace, previous).kept == best.kept
    of_another_model = replace(best, kept={"other": 3})
    assert chosen(profile, cost, pace, of_another_model) == best
