"""Reconfiguration: the protected core, what competes, the cap, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.budget import RoundTime
from coppice.methods.prunefl.reconfigure import prune_share, reconfigure
from coppice.sparse import Mask, SparseTensor


def sparse(values: list[float | None]) -> SparseTensor:
    """A tensor of these values; None is pruned."""
    bits = torch.tensor([value is not None for value in values])
    return SparseTensor(Mask.of(bits), torch.tensor([v for v in values if v is not None]))


def times(constant: float, **prices: float) -> RoundTime:
    return RoundTime(constant_seconds=constant, seconds_per_weight=prices)


def kept(masks: Mapping[str, Mask], name: str = "w") -> list[int]:
    return masks[name].positions.tolist()


def random_layers(seed: int, *shapes: tuple[int, ...]) -> dict[str, SparseTensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        str(index): SparseTensor.take(
            torch.randn(shape, generator=generator),
            Mask.of(torch.rand(shape, generator=generator) < 0.4),
        )
        for index, shape in enumerate(shapes)
    }


def random_importance(seed: int, weights: Mapping[str, SparseTensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator) ** 4
        for name, weight in weights.items()
    }


# ---- the protected core --------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1e3), st.booleans())
def test_a_layer_loses_no_more_than_its_share(
    seed: int, share: float, constant: float, coarse: bool
) -> None:
    weights = random_layers(seed, (3, 5), (41,), (2, 3, 2, 2))
    if coarse:  # many equal magnitudes
        weights = {n: SparseTensor(w.mask, w.values.round()) for n, w in weights.items()}
    importance = random_importance(seed + 1, weights)
    round_time = RoundTime(constant_seconds=constant, seconds_per_weight=dict.fromkeys(weights, 2))
    masks = reconfigure(weights, importance, 1e9, round_time, share)
    for name, weight in weights.items():
        before = weight.mask.count
        # So important a base lets nothing join: exactly the share goes.
        assert constant == 0 or masks[name].count == before - math.floor(share * before)
    masks = reconfigure(weights, importance, 0.0, round_time, share)
    for name, weight in weights.items():
        before = weight.mask.count
        assert masks[name].count >= before - math.floor(share * before)


def test_smallest_magnitudes_go_first() -> None:
    weights = {"w": sparse([-0.5, 0.1, None, -0.2, 3.0, 0.4])}
    masks = reconfigure(weights, {"w": torch.zeros(6)}, 1.0, times(1, w=1), 0.4)
    assert kept(masks) == [0, 4, 5]


def test_of_equal_magnitudes_the_first_go() -> None:
    weights = {"w": sparse([1.0, -1.0, None, 1.0, -1.0])}
    masks = reconfigure(weights, {"w": torch.zeros(5)}, 1.0, times(1, w=1), 0.5)
    assert kept(masks) == [3, 4]


def test_core_stays_without_any_importance() -> None:
    weights = {"w": sparse([5.0, 6.0, 7.0, 0.1])}
    importance = {"w": torch.tensor([0.0, 0.0, 0.0, 9.0])}
    masks = reconfigure(weights, importance, 1e6, times(1, w=1), 0.3)
    assert kept(masks) == [0, 1, 2]


def test_a_one_of_value_zero_is_protected_like_any_other() -> None:
    weights = {"w": sparse([0.0, None, 0.0, None])}
    masks = reconfigure(weights, {"w": torch.zeros(4)}, 1.0, times(1, w=1), 0.3)
    assert kept(masks) == [0, 2]


def test_full_mask_does_not_change_where_nothing_may_be_pruned() -> None:
    weights = {"w": SparseTensor(Mask.full((7, 9)), torch.randn(63)), "v": sparse([0.0, 1.0])}
    importance = random_importance(5, weights)
    masks = reconfigure(weights, importance, 0.0, times(0, w=1, v=1), 0.0)
    assert masks == {name: weight.mask for name, weight in weights.items()}


# ---- what competes -------------------------------------------------------------------------------


def test_golden_vector_of_candidates_in_four_layers() -> None:
    # (gain, seconds): (6, 1), (3, 1), (2, 2), (1, 0.5), (0.4, 1) beside a gain of 1 and 2 seconds.
    weights = {
        "one": sparse([None, None]), "two": sparse([None]), "half": sparse([None]),
        "last": sparse([None]),
    }  # fmt: skip
    importance = {
        "one": torch.tensor([6.0, 3.0]), "two": torch.tensor([2.0]), "half": torch.tensor([1.0]),
        "last": torch.tensor([0.4]),
    }  # fmt: skip
    masks = reconfigure(weights, importance, 1.0, times(2, one=1, two=2, half=0.5, last=1), 0.3)
    assert {name: mask.count for name, mask in masks.items()} == {
        "one": 2, "two": 0, "half": 0, "last": 0,
    }  # fmt: skip


def test_pruned_entries_of_large_importance_come_back() -> None:
    weights = {"w": sparse([1.0, None, None, 2.0, None])}
    importance = {"w": torch.tensor([0.1, 5.0, 0.0, 0.1, 4.0])}
    masks = reconfigure(weights, importance, 0.0, times(1, w=1), 0.5)
    assert kept(masks) == [1, 3, 4]
    assert masks["w"].density > weights["w"].mask.density


def test_a_smallest_one_stays_where_it_is_worth_its_time() -> None:
    weights = {"w": sparse([0.1, 0.2, 5.0, 6.0])}
    importance = {"w": torch.tensor([9.0, 0.1, 1.0, 1.0])}
    masks = reconfigure(weights, importance, 0.0, times(1, w=1), 0.5)
    assert kept(masks) == [0, 2, 3]


def test_expensive_layer_gives_way_to_a_cheap_one() -> None:
    weights = {"cheap": sparse([1.0, None, None]), "expensive": sparse([1.0, None, None])}
    importance = {name: torch.tensor([1.0, 2.0, 2.0]) for name in weights}
    masks = reconfigure(weights, importance, 0.0, times(1, cheap=0.1, expensive=10), 0.3)
    assert kept(masks, "cheap") == [0, 1, 2]
    assert kept(masks, "expensive") == [0]


def test_base_importance_raises_what_a_candidate_must_exceed() -> None:
    weights, importance = {"w": sparse([1.0, None])}, {"w": torch.tensor([1.0, 3.0])}
    assert kept(reconfigure(weights, importance, 0.0, times(1, w=1), 0.3)) == [0, 1]
    assert kept(reconfigure(weights, importance, 6.0, times(1, w=1), 0.3)) == [0]


def test_time_of_the_core_lowers_what_a_candidate_must_exceed() -> None:
    weights, importance = {"w": sparse([1.0, 2.0, None])}, {"w": torch.tensor([4.0, 4.0, 3.0])}
    # 8 in 1 + 2 seconds: 3 in one more is better, though not better than 8 in 1 second.
    assert kept(reconfigure(weights, importance, 0.0, times(1, w=1), 0.3)) == [0, 1, 2]


def test_a_large_constant_keeps_exactly_the_entries_of_some_importance() -> None:
    weights = random_layers(3, (50, 40))
    importance = {
        "0": random_importance(4, weights)["0"] * (torch.arange(2000) % 3 > 0).view(50, 40)
    }
    masks = reconfigure(
        weights, importance, 0.0, RoundTime(constant_seconds=1e50, seconds_per_weight={"0": 1}), 1.0
    )
    assert torch.equal(masks["0"].bits, importance["0"] > 0)


@pytest.mark.parametrize(("gain", "time"), [(1e6, 1.0), (1.0, 7.3), (3e-5, 0.01)])
def test_scale_of_importance_and_of_time_is_irrelevant(gain: float, time: float) -> None:
    weights = random_layers(8, (30, 20), (200,))
    importance = {n: g.double() for n, g in random_importance(9, weights).items()}
    prices = {"0": 0.02, "1": 0.005}
    plain = reconfigure(
        weights, importance, 2.0, RoundTime(constant_seconds=1, seconds_per_weight=prices), 0.3
    )
    scaled = reconfigure(
        weights,
        {name: tensor * gain for name, tensor in importance.items()},
        2.0 * gain,
        RoundTime(
            constant_seconds=time, seconds_per_weight={n: t * time for n, t in prices.items()}
        ),
        0.3,
    )
    assert scaled == plain
    assert plain["0"].count not in (0, 600)


def test_an_entry_that_costs_no_time_is_kept() -> None:
    weights = {"free": sparse([0.1, None, None]), "w": sparse([1.0, None])}
    importance = {"free": torch.tensor([0.0, 5.0, 0.0]), "w": torch.tensor([0.5, 3.0])}
    masks = reconfigure(weights, importance, 0.0, times(1, free=0, w=1), 1.0)
    assert kept(masks, "free") == [0, 1, 2]
    # The gain of what is free counts: without it, 3 would be worth a second.
    assert kept(masks, "w") == []


def test_repeating_gives_the_same_masks() -> None:
    weights = random_layers(1, (64, 33), (500,))
    importance = random_importance(2, weights)
    round_time = RoundTime(constant_seconds=3, seconds_per_weight={"0": 0.01, "1": 0.02})
    before = {name: tensor.clone() for name, tensor in importance.items()}
    first = reconfigure(weights, importance, 0.0, round_time, 0.3, 0.35)
    assert reconfigure(weights, importance, 0.0, round_time, 0.3, 0.35) == first
    assert all(torch.equal(importance[name], before[name]) for name in before)
    assert [mask.shape for mask in first.values()] == [(64, 33), (500,)]


# ---- the cap on density --------------------------------------------------------------------------


def test_cap_leaves_the_entries_of_largest_gain_per_second() -> None:
    weights = {"w": sparse([1.0, None, None, None]), "v": sparse([1.0, None, None, None])}
    importance = {"w": torch.tensor([1.0, 5, 7, 6]), "v": torch.tensor([1.0, 9, 20, 8])}
    masks = reconfigure(weights, importance, 0.0, times(1e9, w=1, v=2), 0.3, 0.69)
    assert kept(masks, "w") == [0, 2, 3]
    assert kept(masks, "v") == [0, 2]


def test_of_equal_candidates_the_cap_leaves_the_first() -> None:
    weights = {"w": sparse([None, None]), "v": sparse([None, None, None])}
    importance = {"w": torch.ones(2), "v": torch.ones(3)}
    masks = reconfigure(weights, importance, 0.0, times(1e9, w=1, v=1), 0.3, 0.6)
    assert (kept(masks, "w"), kept(masks, "v")) == ([0, 1], [0])


def test_cap_that_does_not_bind_changes_nothing() -> None:
    weights = random_layers(1, (64, 33))
    importance = random_importance(2, weights)
    round_time = RoundTime(constant_seconds=3, seconds_per_weight={"0": 0.01})
    free = reconfigure(weights, importance, 0.0, round_time, 0.3)
    assert reconfigure(weights, importance, 0.0, round_time, 0.3, free["0"].density) == free


def test_core_beyond_the_cap_stays_and_nothing_is_added() -> None:
    weights = {"w": sparse([1.0, 2.0, 3.0, None, None]), "free": sparse([1.0, None])}
    importance = {"w": torch.full((5,), 9.0), "free": torch.ones(2)}
    masks = reconfigure(weights, importance, 0.0, times(1e9, w=1, free=0), 0.0, 0.2)
    assert (kept(masks, "w"), kept(masks, "free")) == ([0, 1, 2], [0])


def test_cap_holds_for_what_costs_no_time_too() -> None:
    weights = {"w": sparse([1.0, None]), "free": sparse([None, None, None])}
    importance = {"w": torch.ones(2), "free": torch.tensor([1.0, 3.0, 2.0])}
    masks = reconfigure(weights, importance, 0.0, times(1e9, w=1, free=0), 0.3, 0.6)
    assert (kept(masks, "w"), kept(masks, "free")) == ([0], [1, 2])


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_what_is_added_never_exceeds_the_cap(seed: int, cap: float, share: float) -> None:
    weights = random_layers(seed, (3, 5), (41,))
    round_time = RoundTime(constant_seconds=1e3, seconds_per_weight={"0": 0.5, "1": 2})
    masks = reconfigure(weights, random_importance(seed + 1, weights), 0.0, round_time, share, cap)
    counts = [weight.mask.count for weight in weights.values()]
    core = sum(count - math.floor(share * count) for count in counts)
    assert sum(mask.count for mask in masks.values()) <= max(core, math.floor(cap * 56))


# ---- what is refused, and the schedule -----------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, -1e-9, math.inf, -math.inf])
def test_impossible_importance_is_refused(wrong: float) -> None:
    weights = {"good": sparse([1.0]), "w": sparse([1.0, None, 2.0])}
    importance = {"good": torch.ones(1), "w": torch.tensor([1.0, wrong, 1.0])}
    with pytest.raises(ValueError, match="importance in w is negative, infinite or NaN"):
        reconfigure(weights, importance, 0.0, times(1, w=1, good=1), 0.3)
    with pytest.raises(ValueError, match="never pruned"):
        reconfigure({}, {}, wrong, times(1), 0.3)


def test_importance_and_times_of_other_weights_are_refused() -> None:
    weights = {"w": sparse([1.0, None])}
    with pytest.raises(ValueError, match=r"has shape \[3\], not \[2\]"):
        reconfigure(weights, {"w": torch.ones(3)}, 0.0, times(1, w=1), 0.3)
    with pytest.raises(ValueError, match="importances are not those of the weights: 'w' differs"):
        reconfigure(weights, {}, 0.0, times(1, w=1), 0.3)
    with pytest.raises(ValueError, match="times are not those of the weights: 'v' differs"):
        reconfigure(weights, {"w": torch.ones(2)}, 0.0, times(1, w=1, v=1), 0.3)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share to prune"):
        reconfigure({"w": sparse([1.0])}, {"w": torch.ones(1)}, 0.0, times(1, w=1), share)


def test_share_halves_over_ten_thousand_rounds() -> None:
    assert prune_share(0) == 0.3
    assert prune_share(10_000) == pytest.approx(0.15)
    assert prune_share(50, initial=0.4, half_life=25) == pytest.approx(0.1)
