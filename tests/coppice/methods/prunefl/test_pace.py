"""The pace of a fleet: PruneFL where devices are alike, and what becomes of unequal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from coppice.budget import RoundTime
from coppice.device_cost import (
    DeviceCost,
    LayerCost,
    LayerMemory,
    MemoryCost,
    RoundCost,
    StepMemory,
)
from coppice.domain import ClientId
from coppice.methods.prunefl.choice import choose
from coppice.methods.prunefl.order import LayerOrder, cut, shared_order
from coppice.methods.prunefl.pace import Fleet, Pace, find_pace, useful
from coppice.methods.prunefl.profile import Profile, profile_of
from coppice.methods.prunefl.reconfigure import reconfigure
from coppice.sparse import Mask, SparseTensor
from tests.coppice.methods.prunefl.devices import random_device, random_profile, scaled

STEPS = 5
SHARE = 0.3


@dataclass(frozen=True)
class Instance:
    """A reconfiguration of some layers, and a device whose times are lines."""

    weights: Mapping[str, SparseTensor]
    importance: Mapping[str, Tensor]
    base_gain: float
    order: Mapping[str, LayerOrder]
    device: DeviceCost
    #: The same device's, of all steps.
    round_time: RoundTime

    def profile(self, beyond: int | None = None) -> Profile:
        return profile_of(self.order, self.importance, self.base_gain, beyond=beyond)

    def prunefl(self) -> dict[str, Mask]:
        return reconfigure(self.weights, self.importance, self.base_gain, self.round_time, SHARE)


def instance(seed: int) -> Instance:
    shapes = ((5, 12), (6, 20), (3, 7))
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    weights, importance = {}, {}
    for number, shape in enumerate(shapes):
        mask = Mask.of(torch.rand(shape, generator=generator) < 0.3)
        weights[str(number)] = SparseTensor.take(torch.randn(shape, generator=generator), mask)
        importance[str(number)] = torch.randn(shape, generator=generator) ** 4
    sizes = {name: weight.mask.size for name, weight in weights.items()}
    per_weight = {name: float(rng.uniform(0.2, 3)) * 1e-3 for name in sizes}
    time = RoundCost(
        round_seconds=float(rng.uniform(0.01, 0.1)),
        step_seconds=float(rng.uniform(0.002, 0.01)),
        seconds_per_value=2e-5,
        layers={
            name: LayerCost.line(0.001, per_weight[name], 1e3, size) for name, size in sizes.items()
        },
    )
    memory = {
        name: LayerMemory(fixed_bytes=0, bytes_per_weight=12, dense_bytes=8 * size)
        for name, size in sizes.items()
    }
    step = StepMemory(base_bytes=0, layers=memory)
    constant = time.round_seconds + STEPS * (time.step_seconds + 0.001 * len(sizes))
    return Instance(
        weights=weights,
        importance=importance,
        base_gain=float(rng.uniform(0, 5)),
        order=shared_order(weights, importance, SHARE),
        device=DeviceCost(time=time, memory=MemoryCost(training=step), limit_bytes=1e9),
        round_time=RoundTime(
            constant_seconds=constant,
            seconds_per_weight={name: STEPS * t + 2e-5 for name, t in per_weight.items()},
        ),
    )


def fleet(devices: Sequence[DeviceCost]) -> dict[ClientId, DeviceCost]:
    return {ClientId(str(number)): device for number, device in enumerate(devices)}


def paced(profile: Profile, devices: Sequence[DeviceCost], pause: float = 0.0) -> Pace:
    named = fleet(devices)
    return find_pace(profile, named, dict.fromkeys(named, 1 / len(named)), STEPS, pause=pause)


def density(kept: Mapping[str, int], profile: Profile) -> float:
    return sum(kept.values()) / sum(layer.kept[-1] for layer in profile.layers.values())


# ---- devices that are alike ----------------------------------------------------------------------


@pytest.mark.parametrize("clients", [1, 3])
def test_equal_devices_have_the_mask_and_the_round_time_of_prunefl(clients: int) -> None:
    for seed in range(20):
        case = instance(seed)
        pace = paced(case.profile(), [case.device] * clients)
        masks = case.prunefl()
        for choice in pace.choices.values():
            assert choice.steps == STEPS
            assert cut(case.order, choice.kept) == masks
        ones = {name: mask.count for name, mask in masks.items()}
        assert pace.seconds == pytest.approx(case.round_time.seconds(ones), rel=1e-8)


def test_equal_devices_gain_per_second_what_prunefl_does() -> None:
    for seed in range(20):
        case = instance(seed)
        masks = case.prunefl()
        kept = sum(float(case.importance[name][mask.bits].sum()) for name, mask in masks.items())
        seconds = case.round_time.seconds({name: mask.count for name, mask in masks.items()})
        rate = (case.base_gain + kept) / seconds
        assert paced(case.profile(), [case.device] * 2).gain_per_second == pytest.approx(rate)
        # A grid of a few counts misses little of it.
        coarse = paced(case.profile(beyond=16), [case.device] * 2).gain_per_second
        assert 0.97 * rate < coarse <= rate * (1 + 1e-6)


def test_what_passes_between_rounds_counts_like_a_constant_of_the_devices() -> None:
    for seed in range(10):
        case = instance(seed)
        profile, pause = case.profile(), 0.05 * (seed + 1)
        time = replace(case.device.time, round_seconds=case.device.time.round_seconds + pause)
        both = paced(profile, [replace(case.device, time=time)] * 2)
        apart = paced(profile, [case.device] * 2, pause)
        assert apart.seconds + pause == pytest.approx(both.seconds, rel=1e-8)
        assert apart.gain_per_second == pytest.approx(both.gain_per_second, rel=1e-8)
        assert {name: choice.kept for name, choice in apart.choices.items()} == {
            name: choice.kept for name, choice in both.choices.items()
        }


def test_rule_of_a_lone_device_is_blind_to_its_speed() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, points=12)
        device = random_device(rng, profile, memory_share=0.5 if seed % 2 else None)
        one, slow = (paced(profile, [scaled(device, factor)]) for factor in (1.0, 8.1))
        choice, slow_choice = one.choices[ClientId("0")], slow.choices[ClientId("0")]
        assert slow_choice.kept == choice.kept
        assert slow_choice.steps == choice.steps
        assert slow.seconds == pytest.approx(8.1 * one.seconds)


# ---- devices that are not ------------------------------------------------------------------------


def mixed(seed: int) -> tuple[Profile, list[DeviceCost]]:
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, points=10)
    devices = [
        scaled(random_device(rng, profile, memory_share=share), factor)
        for share, factor in ((None, 1.0), (0.4, 1.5), (None, 2.0), (0.1, 4.0), (None, 8.0))
    ]
    return profile, devices


@pytest.mark.parametrize("pause", [0.0, 3.0])
@pytest.mark.parametrize("include", ["all", "quorum"])
def test_no_pace_is_better_than_the_one_found(include: str, pause: float) -> None:
    for seed in range(8):
        profile, devices = mixed(seed)
        named = fleet(devices)
        group = Fleet(profile, named, dict.fromkeys(named, 0.2), STEPS, pause=pause)
        shortest = group.shortest(None if include == "all" else 2)
        found = group.best_pace(shortest)
        fine = np.geomspace(shortest, 20 * found, 4000)
        assert shortest <= found
        assert group.rate(np.array([found]))[0] >= group.rate(fine).max()
        # Nor with what is filled up.
        filled = [group.at(pace).gain_per_second for pace in np.geomspace(shortest, 2 * found, 40)]
        assert group.at(found).gain_per_second > 0.98 * max(filled)


def test_unequal_devices_are_done_at_the_same_time_and_gain_more() -> None:
    case = instance(3)
    speeds = (1.0, 1.0, 2.0, 4.0, 8.0)
    devices = [scaled(case.device, speed) for speed in speeds]
    profile = case.profile(beyond=16)
    pace = paced(profile, devices)
    choices = list(pace.choices.values())
    assert len(choices) == len(devices)
    for device, choice in zip(devices, choices, strict=True):
        assert device.allows(choice.kept, choice.steps, pace.seconds)
    # One mask for all, that of PruneFL, in rounds as long as the slowest one's.
    alone = paced(profile, devices[-1:])
    assert pace.seconds < alone.seconds / 2
    assert pace.gain_per_second > 1.5 * alone.gain_per_second
    assert choices[0].steps > choices[-1].steps
    assert density(choices[0].kept, profile) >= density(choices[-1].kept, profile)


def test_device_whose_steps_alone_exceed_the_pace_takes_part_with_fewer() -> None:
    case = instance(1)
    slow = replace(case.device, time=replace(case.device.time, step_seconds=0.4))
    pace = paced(case.profile(beyond=16), [case.device] * 20 + [slow])
    assert pace.seconds < STEPS * slow.time.step_seconds
    assert 1 <= pace.choices[ClientId("20")].steps < STEPS
    assert pace.choices[ClientId("0")].steps == STEPS


def hopeless(case: Instance) -> tuple[DeviceCost, float]:
    """A device whose shortest round is far too long for the others."""
    time = replace(case.device.time, round_seconds=1e3)
    return replace(case.device, time=time), 1e3


def test_with_all_the_pace_is_never_below_the_shortest_round_of_any() -> None:
    case = instance(2)
    slow, seconds = hopeless(case)
    pace = paced(case.profile(beyond=16), [case.device, case.device, slow])
    assert pace.seconds > seconds
    assert len(pace.choices) == 3


def test_with_a_quorum_who_cannot_keep_the_pace_sits_out() -> None:
    case = instance(2)
    slow, seconds = hopeless(case)
    named = fleet([case.device, case.device, slow])
    shares = dict.fromkeys(named, 1 / 3)
    profile = case.profile(beyond=16)
    pace = find_pace(profile, named, shares, STEPS, include="quorum", quorum=2)
    assert pace.seconds < seconds
    assert set(pace.choices) == {"0", "1"}
    pace = find_pace(profile, named, shares, STEPS, include="quorum", quorum=3)
    assert pace.seconds > seconds
    assert len(pace.choices) == 3


def test_no_pace_is_longer_than_the_longest() -> None:
    case = instance(2)
    slow, _ = hopeless(case)
    named = fleet([case.device, slow])
    shares = dict.fromkeys(named, 0.5)
    for beyond in (16, None):
        profile = case.profile(beyond)
        free = paced(profile, [case.device]).seconds
        least = case.device.time.seconds(profile.least, 1)
        for longest in (0.99 * free, (free + least) / 2, 1.01 * least):
            pace = find_pace(profile, named, shares, STEPS, longest=longest)
            assert least <= pace.seconds <= longest * (1 + 1e-6)
            assert set(pace.choices) == {"0"}
        with pytest.raises(ValueError, match="does a step in"):
            find_pace(profile, named, shares, STEPS, longest=0.99 * least)


def test_device_without_memory_for_the_least_sits_out() -> None:
    case = instance(2)
    small = replace(case.device, limit_bytes=10)
    profile = case.profile(beyond=16)
    assert set(paced(profile, [case.device, small]).choices) == {"0"}
    with pytest.raises(ValueError, match="no device has the memory"):
        paced(profile, [small])


def test_everybody_with_the_memory_for_it_trains_the_whole_core() -> None:
    """Although a shorter round with less of it would gain more a second."""
    case = instance(4)
    importance = {
        name: torch.where(weight.mask.bits, 0.0, case.importance[name])
        for name, weight in case.weights.items()
    }
    order = shared_order(case.weights, importance, SHARE)
    profile = profile_of(order, importance, base_gain=1e6)
    core = {name: layer.core for name, layer in order.items()}
    slow = scaled(case.device, 20.0)
    pace = paced(profile, [case.device] * 20 + [slow])
    for choice in pace.choices.values():
        assert all(choice.kept[name] >= count for name, count in core.items())
    assert pace.choices[ClientId("20")].steps < STEPS
    # One that has it not holds as much as fits: that is no reason for short rounds.
    small = replace(slow, limit_bytes=0.9 * slow.peak_bytes(core))
    pace = paced(profile, [case.device] * 20 + [small])
    kept = pace.choices[ClientId("20")].kept
    assert small.time.seconds(profile.least, 1) < 0.9 * small.time.seconds(kept, 1)
    assert all(kept[name] <= count for name, count in core.items())


def test_nobody_keeps_more_than_prunefl_would_for_some_device() -> None:
    case = instance(3)
    profile, masks = case.profile(), case.prunefl()
    # All alone they would keep the same, fast and slow.
    devices = [scaled(case.device, speed) for speed in (1.0, 2.0, 8.0)]
    bounded = useful(profile, fleet(devices), STEPS)
    ones = {name: mask.count for name, mask in masks.items()}
    assert {name: layer.kept[-1] for name, layer in bounded.layers.items()} == ones
    free, held = paced(profile, devices), paced(bounded, devices)
    fast = ClientId("0")
    assert density(free.choices[fast].kept, profile) > density(ones, profile)
    assert held.choices[fast].kept == ones
    for name, layer in bounded.layers.items():
        assert layer.gains == profile.layers[name].gains[: len(layer.gains)]
    # One for whom what passes between rounds is long would keep more.
    patient = useful(profile, fleet(devices), STEPS, pause=10.0).layers
    assert sum(layer.kept[-1] for layer in patient.values()) > sum(ones.values())


def test_device_that_cannot_take_part_bounds_nobody() -> None:
    case = instance(3)
    profile = case.profile()
    small = replace(case.device, limit_bytes=10)
    alone, both = (
        useful(profile, fleet(devices), STEPS) for devices in ([case.device], [small, case.device])
    )
    assert alone == both
    core = {name: layer.kept[profile.levels] for name, layer in profile.layers.items()}
    for devices in ([small], [hopeless(case)[0]]):
        least = useful(profile, fleet(devices), STEPS, longest=10.0)
        assert {name: layer.kept[-1] for name, layer in least.layers.items()} == core


def test_clients_count_by_their_shares() -> None:
    case = instance(5)
    named = fleet([case.device, scaled(case.device, 8.0)])
    profile = case.profile(beyond=16)
    fast, slow = (
        find_pace(profile, named, dict(zip(named, shares, strict=True)), STEPS).seconds
        for shares in ((0.99, 0.01), (0.01, 0.99))
    )
    assert fast < slow
    with pytest.raises(ValueError, match="without a share"):
        find_pace(profile, named, {ClientId("0"): 1.0}, STEPS)


# ---- slowness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [None, 16])
def test_slower_device_never_gains_more_nor_keeps_more_at_the_same_steps(
    beyond: int | None,
) -> None:
    for seed in range(4):
        case = instance(seed)
        profile = case.profile(beyond)
        pace = 0.9 * case.round_time.seconds(
            {name: layer.kept[-1] for name, layer in profile.layers.items()}
        )
        gain = kept = np.inf
        for slowness in np.geomspace(1, 6, 10):
            device = scaled(case.device, slowness)
            choice = choose(profile, device, pace, STEPS)
            one_step = choose(profile, device, pace / STEPS, 1)
            assert choice is not None
            assert choice.gain <= gain
            gain = choice.gain
            if one_step is not None:
                assert density(one_step.kept, profile) <= kept
                kept = density(one_step.kept, profile)


def test_slower_device_never_gains_more_where_layers_turn_dense_and_memory_is_short() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, layers=4, points=10)
        device = random_device(rng, profile, memory_share=0.5)
        whole = {name: layer.kept[-1] for name, layer in profile.layers.items()}
        pace, gain = device.time.seconds(whole, STEPS), np.inf
        for slowness in np.geomspace(1, 10, 15):
            choice = choose(profile, scaled(device, slowness), pace, STEPS)
            if choice is not None:
                # But for the rare choice that is not quite the best.
                assert choice.gain <= gain * 1.01
                gain = choice.gain
