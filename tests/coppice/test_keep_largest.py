"""Masks of the largest scores of several tensors, and masks shuffled."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.masks import keep_largest, masked, shuffled, sparse_weights
from coppice.sparse import Mask, SparseTensor


def scores(**tensors: list[float]) -> dict[str, SparseTensor]:
    return {
        name: SparseTensor.take(torch.tensor(values), Mask.full((len(values),)))
        for name, values in tensors.items()
    }


def kept(masks: dict[str, Mask]) -> dict[str, list[int]]:
    return {name: mask.positions.tolist() for name, mask in masks.items()}


# ---- the largest -------------------------------------------------------------------------------


def test_tensors_compete_with_each_other() -> None:
    given_scores = scores(a=[1.0, 7.0, 3.0], b=[6.0, 2.0])
    assert kept(keep_largest(given_scores, 3)) == {"a": [1, 2], "b": [0]}
    assert kept(keep_largest(given_scores, 1)) == {"a": [1], "b": []}


def test_of_equal_scores_the_first_is_kept() -> None:
    given_scores = scores(b=[5.0, 2.0, 2.0], a=[2.0, 2.0, 9.0])
    assert kept(keep_largest(given_scores, 3)) == {"b": [0, 1], "a": [2]}
    assert kept(keep_largest(given_scores, 5)) == {"b": [0, 1, 2], "a": [0, 2]}


def test_only_the_ones_of_a_mask_compete() -> None:
    mask = Mask.of(torch.tensor([[True, False, True], [False, True, False]]))
    score = SparseTensor(mask, torch.tensor([-3.0, -1.0, -2.0]))
    masks = keep_largest({"w": score}, 2)
    assert masks["w"].shape == (2, 3)
    assert masks["w"].positions.tolist() == [2, 4]


def test_no_more_are_kept_than_there_are_and_none_when_none_are_wanted() -> None:
    given_scores = scores(a=[0.0, 0.0], b=[0.0])
    assert kept(keep_largest(given_scores, 3)) == {"a": [0, 1], "b": [0]}
    assert kept(keep_largest(given_scores, 99)) == {"a": [0, 1], "b": [0]}
    assert kept(keep_largest(given_scores, 0)) == {"a": [], "b": []}
    assert keep_largest({}, 4) == {}


def test_infinite_scores_are_the_largest_and_nan_is_refused() -> None:
    assert kept(keep_largest(scores(a=[1.0, math.inf]), 1)) == {"a": [1]}
    with pytest.raises(ValueError, match="a score is NaN"):
        keep_largest(scores(a=[1.0, math.nan]), 1)


@given(
    values=st.lists(st.integers(0, 4).map(float), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    count=st.integers(0, 41),
)
def test_it_is_the_head_of_a_stable_sort(values: list[float], cut: int, count: int) -> None:
    masks = keep_largest(scores(a=values[:cut], b=values[cut:]), count)
    order = sorted(range(len(values)), key=lambda index: -values[index])
    start = len(values[:cut])
    found = kept(masks)
    assert sorted(found["a"] + [start + index for index in found["b"]]) == sorted(order[:count])


# ---- shuffled ----------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_shuffled_mask_has_as_many_ones_in_the_same_shape() -> None:
    mask = Mask.of(torch.arange(91).reshape(7, 13) < 20)
    other = shuffled(mask, generator(1))
    assert (other.shape, other.count) == (mask.shape, 20)
    assert other != mask


def test_shuffling_depends_on_the_generator_only() -> None:
    mask = Mask.of(torch.arange(91) < 20)
    assert shuffled(mask, generator(1)) == shuffled(mask, generator(1))
    assert shuffled(mask, generator(1)) != shuffled(mask, generator(2))


def test_every_place_is_as_likely() -> None:
    mask = Mask.of(torch.arange(10) < 3)
    draws = generator(0)
    hits = sum(shuffled(mask, draws).bits.to(torch.int64) for _ in range(2000))
    assert isinstance(hits, Tensor)
    # 600 are expected, with a standard deviation of 20.
    assert int(hits.min()) > 500
    assert int(hits.max()) < 700


# ---- tensors and masks -------------------------------------------------------------------------


def test_masks_are_put_on_the_tensors_that_they_name() -> None:
    parameters = {"w": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([4.0])}
    weights = masked(parameters, {"w": Mask.of(torch.tensor([True, False, True]))})
    assert list(weights) == ["w", "b"]
    assert weights["b"] is parameters["b"]
    sparse = sparse_weights(weights)
    assert list(sparse) == ["w"]
    assert sparse["w"].dense().tolist() == [1.0, 0.0, 3.0]
