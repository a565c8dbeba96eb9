"""Laws of aggregation: what the order, the scale and the number of updates must not change."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.aggregation import (
    Maximum,
    MeanMetrics,
    WeightedMean,
    _DenseSum,
    _SparseSum,
    split_floating,
)
from coppice.tensors import dense_tensors

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

Update = tuple[dict[str, Tensor], float]


def update(seed: int, weight: float, dtype: torch.dtype = torch.float32) -> Update:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (3, 5), "b": (5,), "scalar": (), "none": (0, 4)}
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }, weight


def mean(updates: list[Update]) -> dict[str, Tensor]:
    folded = WeightedMean()
    for tensors, weight in updates:
        folded.add(tensors, weight)
    assert folded.count == len(updates)
    return dense_tensors(folded.value())


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], within: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=within, atol=within)


weights = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)


# ---- the weighted mean -------------------------------------------------------------------------


def test_the_mean_is_the_weighted_mean() -> None:
    one, three = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([5.0, 2.0])}
    assert mean([(one, 1), (three, 3)])["w"].tolist() == [4.0, 1.0]


@given(weights, st.randoms(use_true_random=False))
def test_the_order_of_updates_does_not_matter(weights: list[int], chance: Random) -> None:
    updates = [update(seed, weight) for seed, weight in enumerate(weights)]
    shuffled = list(updates)
    chance.shuffle(shuffled)
    assert_close(mean(shuffled), mean(updates))


@given(weights, st.sampled_from([1e-3, 0.5, 3.0, 1e6]))
def test_only_the_ratio_of_the_weights_matters(weights: list[int], scale: float) -> None:
    updates = [update(seed, weight) for seed, weight in enumerate(weights)]
    scaled = [(tensors, weight * scale) for tensors, weight in updates]
    assert_close(mean(scaled), mean(updates))


@given(st.integers(0, 100), st.integers(1, 2**53 - 1))
def test_the_mean_of_one_update_is_that_update(seed: int, weight: int) -> None:
    for dtype in FLOATS[:3]:
        tensors, _ = update(seed, 1, dtype)
        assert all(torch.equal(mean([(tensors, weight)])[name], tensors[name]) for name in tensors)
    tensors, _ = update(seed, 1, torch.float64)
    assert_close(mean([(tensors, weight)]), tensors, within=1e-15)


def test_equal_updates_have_themselves_as_their_mean() -> None:
    tensors, _ = update(0, 1)
    assert_close(mean([(tensors, weight) for weight in (1, 7, 50)]), tensors)


def test_an_update_twice_weighs_like_one_of_twice_the_weight() -> None:
    one, other = update(1, 5), update(2, 3)
    assert_close(mean([one, other, one]), mean([(one[0], 10), other]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_are_exact_where_the_type_of_the_update_is_not(dtype: torch.dtype) -> None:
    # A sum kept in float16 or bfloat16 stops growing long before 4096.
    updates = [({"w": torch.ones(2, dtype=dtype)}, 1.0)] * 4096
    result = mean(updates)["w"]
    assert result.dtype == dtype
    assert result.tolist() == [1.0, 1.0]
    threes = {"w": torch.full((2,), 3.0, dtype=dtype)}
    assert mean([*updates, (threes, 4096)])["w"].tolist() == [2.0, 2.0]


def test_large_values_do_not_overflow_on_the_way() -> None:
    for dtype in FLOATS[:3]:
        largest = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
        result = mean([({"w": largest}, 2.0**53)] * 10)["w"]
        torch.testing.assert_close(result, largest)


def test_an_update_without_weight_counts_for_nothing() -> None:
    one, none = update(1, 2), update(2, 0)
    assert_close(mean([none, one, none]), one[0])
    assert mean([none]) == {}
    assert mean([]) == {}


def test_folding_leaves_the_updates_alone() -> None:
    updates = [update(seed, seed + 1, torch.float64) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors, _ in updates]
    mean(updates)["w"].fill_(9.0)
    assert all(
        torch.equal(tensors[name], before[index][name])
        for index, (tensors, _) in enumerate(updates)
        for name in tensors
    )


def held_bytes(folded: WeightedMean) -> int:
    """Bytes of the tensors that a sum holds, the masks of the updates left out."""
    found = 0
    waiting: list[object] = [folded._sums]
    while waiting:
        match waiting.pop():
            case Tensor() as tensor:
                found += tensor.nbytes
            case Mapping() as mapping:
                waiting += mapping.values()
            case tuple() as items:
                waiting += items
            case _DenseSum() | _SparseSum() as part:
                waiting += vars(part).values()
    return found


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    folded, largest, metrics = WeightedMean(), Maximum(), MeanMetrics()

    def fold(times: int) -> int:
        for number in range(times):
            tensor = torch.full((1000,), float(number))
            folded.add({"w": tensor}, 1.0)
            largest.add({"n": tensor.long()})
            metrics.add({"loss": 1.0}, 1.0)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = fold(10)
        # Two thousand updates by reference alone would be more.
        assert fold(2000) - first < 20_000
    finally:
        tracemalloc.stop()
    assert held_bytes(folded) == 8000


# ---- integers ----------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3), min_size=1))
def test_of_integers_the_largest_stays(rows: list[list[int]]) -> None:
    for order in (rows, rows[::-1]):
        largest = Maximum()
        for row in order:
            largest.add({"n": torch.tensor(row)})
        assert largest.value()["n"].tolist() == [max(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool])
def test_every_integer_type_keeps_its_type(dtype: torch.dtype) -> None:
    largest = Maximum()
    for row in ([0, 1], [1, 0]):
        largest.add({"n": torch.tensor(row).to(dtype)})
    assert largest.value()["n"].dtype == dtype
    assert largest.value()["n"].tolist() == [1, 1]


def test_the_largest_shares_nothing_with_the_updates() -> None:
    first = torch.tensor([1, 5])
    largest = Maximum()
    largest.add({"n": first})
    assert largest.value()["n"] is not first
    largest.add({"n": torch.tensor([3, 3])})
    assert first.tolist() == [1, 5]
    first.fill_(100)
    assert largest.value()["n"].tolist() == [3, 5]
    assert Maximum().value() == {}


# ---- metrics -----------------------------------------------------------------------------------


def test_a_metric_is_averaged_over_those_that_report_it() -> None:
    metrics = MeanMetrics()
    metrics.add({"loss": 1.0, "top5": 0.5}, 1)
    metrics.add({"loss": 4.0}, 2)
    metrics.add({"loss": 100.0, "only": 7.0}, 0)
    assert metrics.value() == {"loss": 3.0, "top5": 0.5}
    assert MeanMetrics().value() == {}


def test_floats_and_the_rest_are_told_apart_in_order() -> None:
    tensors = {
        "c": torch.tensor(1),
        "a": torch.tensor(1.0),
        "b": torch.tensor(True),
        "h": torch.tensor(1.0, dtype=torch.bfloat16),
    }
    floating, rest = split_floating(tensors)
    assert (list(floating), list(rest)) == (["a", "h"], ["c", "b"])
    assert floating["a"] is tensors["a"]
