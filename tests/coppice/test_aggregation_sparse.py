"""Laws of aggregation on masks: who holds a coordinate, and what an update may cost."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.aggregation import WeightedMean
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights
from tests.coppice.test_aggregation import held_bytes

SHAPE = (5, 7)


def random_mask(seed: int, density: float = 0.4, shape: tuple[int, ...] = SHAPE) -> Mask:
    return Mask.of(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density)


def sparse(mask: Mask, seed: int) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(mask, torch.randn(mask.count, generator=generator))


def on(*kept: int, values: list[float]) -> SparseTensor:
    """A tensor of four entries with these values at the kept places."""
    bits = torch.zeros(4, dtype=torch.bool)
    bits[list(kept)] = True
    return SparseTensor(Mask.of(bits), torch.tensor(values))


def mean(updates: list[tuple[SparseTensor, float]]) -> SparseTensor:
    folded = WeightedMean()
    for item, weight in updates:
        folded.add({"w": item}, weight)
    found = folded.value()["w"]
    assert isinstance(found, SparseTensor)
    return found


def test_a_pruned_coordinate_is_averaged_over_its_holders_only() -> None:
    result = mean([(on(0, 1, values=[1.0, 2.0]), 1.0), (on(1, 3, values=[6.0, 8.0]), 3.0)])
    assert result.mask.bits.tolist() == [True, True, False, True]
    assert result.values.tolist() == [1.0, 5.0, 8.0]
    # Not 1/4 of the first and 3/4 of the last.
    assert result.dense().tolist() == [1.0, 5.0, 0.0, 8.0]


def test_a_coordinate_whose_holders_sent_zero_is_still_held() -> None:
    result = mean([(on(0, values=[0.0]), 1.0), (on(2, values=[0.0]), 1.0)])
    assert result.mask.bits.tolist() == [True, False, True, False]
    assert result.values.tolist() == [0.0, 0.0]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(0, 50))
def test_on_one_mask_the_numbers_are_those_of_the_dense_mean(weights: list[int], seed: int) -> None:
    mask = random_mask(seed)
    folded, dense = WeightedMean(), WeightedMean()
    for number, weight in enumerate(weights):
        # The masks are equal, not the same object: each update brings its own.
        item = sparse(Mask(mask.shape, mask.packed.clone()), number)
        folded.add({"w": item}, weight)
        dense.add({"w": item.dense()}, weight)
    found, whole = folded.value()["w"], dense.value()["w"]
    assert isinstance(found, SparseTensor)
    assert isinstance(whole, Tensor)
    assert found.mask == mask
    assert torch.equal(found.values, whole[mask.bits])


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_on_unlike_masks_each_coordinate_has_the_mean_of_its_holders(weights: list[int]) -> None:
    updates = [
        (sparse(random_mask(seed), seed), float(weight)) for seed, weight in enumerate(weights)
    ]
    result = mean(updates)
    for place in range(35):
        held = [
            (float(item.dense().reshape(-1)[place]), weight)
            for item, weight in updates
            if item.mask.bits.reshape(-1)[place]
        ]
        assert bool(result.mask.bits.reshape(-1)[place]) == bool(held)
        if held:
            wanted = sum(value * weight for value, weight in held) / sum(
                weight for _, weight in held
            )
            found = float(result.dense().reshape(-1)[place])
            assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_order_of_updates_does_not_matter(masks: list[int], chance: Random) -> None:
    updates = [
        (sparse(random_mask(mask), seed), float(seed + 1)) for seed, mask in enumerate(masks)
    ]
    shuffled = list(updates)
    chance.shuffle(shuffled)
    one, other = mean(updates), mean(shuffled)
    assert one.mask == other.mask
    torch.testing.assert_close(one.values, other.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("like", [True, False])
def test_an_update_without_weight_holds_nothing(like: bool) -> None:
    first = on(0, 1, values=[1.0, 2.0])
    none = on(0, 1, values=[9.0, 9.0]) if like else on(1, 2, values=[9.0, 9.0])
    for updates in ([(first, 2.0), (none, 0.0)], [(none, 0.0), (first, 2.0)]):
        result = mean(updates)
        assert result.mask == first.mask
        assert result.values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("like", [True, False])
def test_updates_without_any_weight_have_no_mean(like: bool) -> None:
    folded = WeightedMean()
    folded.add({"w": on(0, values=[1.0])}, 0.0)
    folded.add({"w": on(0, values=[2.0]) if like else on(1, values=[2.0])}, 0.0)
    assert folded.value() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_of_the_type_that_came_and_sums_exact(dtype: torch.dtype) -> None:
    for other in (on(0, 1, values=[1.0, 1.0]), on(1, 2, values=[1.0, 1.0])):
        items = [on(0, 1, values=[1.0, 1.0]), other] * 2048
        updates = [(SparseTensor(item.mask, item.values.to(dtype)), 1.0) for item in items]
        result = mean(updates)
        assert result.dtype == dtype
        assert set(result.values.tolist()) == {1.0}


def test_dense_and_sparse_tensors_are_folded_side_by_side() -> None:
    folded = WeightedMean()
    for value, weight in ((1.0, 1), (5.0, 3)):
        update: Weights = {"w": on(2, values=[value]), "b": torch.tensor([value])}
        folded.add(update, weight)
    found = folded.value()
    assert list(found) == ["w", "b"]
    kept, bias = found["w"], found["b"]
    assert isinstance(kept, SparseTensor)
    assert isinstance(bias, Tensor)
    assert kept.values.tolist() == bias.tolist() == [4.0]


def test_folding_leaves_the_updates_alone() -> None:
    for other in (on(0, 1, values=[3.0, 4.0]), on(1, 2, values=[3.0, 4.0])):
        first = on(0, 1, values=[1.0, 2.0])
        result = mean([(first, 1.0), (other, 1.0), (first, 1.0)])
        result.values.fill_(9.0)
        assert first.values.tolist() == [1.0, 2.0]
        assert other.values.tolist() == [3.0, 4.0]


def test_no_update_is_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (sparse(random_mask(seed), seed) for seed in (1, 2))
    for item in (one, other):
        # Found once for each mask; who has them needs the bits no more.
        assert len(item.mask.positions) == len(item.values)

    def refuse(*_: object) -> Tensor:
        raise AssertionError("an update was made dense")

    monkeypatch.setattr(SparseTensor, "dense", refuse)
    monkeypatch.setattr(Mask, "bits", property(refuse))
    for items in ((one, one, one), (one, other, one)):
        folded = WeightedMean()
        for item in items:
            folded.add({"w": item}, 1.0)
        assert folded.count == 3


def test_on_one_mask_the_sums_are_as_long_as_the_values() -> None:
    mask = Mask.of(torch.arange(100_000) % 100 == 0)
    folded = WeightedMean()
    for seed in range(20):
        folded.add({"w": sparse(mask, seed)}, 1.0)
        # A float64 for each of the thousand values; 100 times that if they were spread.
        assert held_bytes(folded) == 8 * mask.count
    folded.add({"w": sparse(mask.complement(), 1)}, 1.0)
    assert held_bytes(folded) >= 2 * 8 * mask.size
