"""Which entries a report is of, and what it looks like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coppice.masks import masked
from coppice.methods.prunefl.sample import MOST_EVERY, Sample, report_of, reported_shape
from coppice.sparse import Mask
from coppice.tensors import Weights

#: A layer of fewer entries than one in 20, one whose units have 2 · 3 · 5 inputs, and a plain one.
SHAPES = {"tiny": (2, 3), "convolution": (7, 2, 3, 5), "linear": (31, 17)}


def layers() -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def weights() -> Weights:
    return masked(layers(), {name: Mask.full(shape) for name, shape in SHAPES.items()})


def values(every: int) -> dict[str, Tensor]:
    return {name: torch.zeros(reported_shape(shape, every)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7, 20, MOST_EVERY])
@pytest.mark.parametrize("first", [0, 1, 12_345_678, 2**31 - 1])
def test_sample_is_of_one_entry_in_so_many_and_its_values_come_back(every: int, first: int) -> None:
    sample = Sample(every, first)
    for name, layer in layers().items():
        sent = sample.of(layer)
        assert tuple(sent.shape) == reported_shape(SHAPES[name], every)
        assert 1 <= sent.numel() <= -(-layer.numel() // every)
        sums = torch.zeros(layer.shape)
        found = sample.entries(sums)
        assert len(found) > 0
        found.add_(sent.reshape(-1)[: len(found)])
        assert torch.equal(sums[sums != 0], layer[sums != 0])
        assert sent.numel() - 1 <= (sums != 0).sum() <= sent.numel()
        # What fills the row up is no entry of the layer.
        assert not sent.reshape(-1)[len(found) :].any()


@pytest.mark.parametrize(("every", "firsts"), [(2, 2 * 7), (3, 3 * 4 * 7), (10, 6 * 10 * 11)])
def test_all_entries_are_reported_equally_often(every: int, firsts: int) -> None:
    sums = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for first in range(firsts):
        for total in sums.values():
            Sample(every, first).entries(total).add_(1)
    for total in sums.values():
        assert total.max() == total.min() > 0


def test_sample_sees_all_inputs_of_a_unit() -> None:
    seen = torch.zeros(SHAPES["convolution"])
    Sample(every=3, first=4).entries(seen).fill_(1)
    assert (seen.sum(dim=0) > 0).all()


def test_samples_are_drawn_from_the_generator() -> None:
    draws = {Sample.draw(3, torch.Generator().manual_seed(seed)).first for seed in range(5)}
    assert len(draws) == 5
    again = Sample.draw(3, torch.Generator().manual_seed(0)).first
    assert again in draws
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert Sample.draw(1, generator) == Sample(1, 0)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("every", [1, 4])
def test_a_sample_comes_back_as_it_was(every: int) -> None:
    sample = Sample(every, 99)
    assert Sample.from_tensors(sample.to_tensors(), values(every), weights()) == sample
    expected = {name: tuple(item.shape) for name, item in values(every).items()}
    looks = report_of(weights(), every)["importance"]
    assert {name: tuple(item.shape) for name, item in looks.items()} == expected


@pytest.mark.parametrize(
    ("every", "first"), [(0, 0), (-4, 0), (MOST_EVERY + 1, 0), (4, -1), (4, 2**31), (2**62, 2**62)]
)
def test_a_sample_that_is_none_is_refused(every: int, first: int) -> None:
    told = {"every": torch.tensor(every), "first": torch.tensor(first)}
    assert Sample.from_tensors(told, values(4), weights()) is None
    with pytest.raises(ValueError, match="no sample"):
        Sample(every, first)


@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_sample_of_other_values_is_refused(every: int) -> None:
    assert Sample.from_tensors(Sample(every, 0).to_tensors(), values(4), weights()) is None


def test_a_layer_without_entries_has_an_empty_report() -> None:
    for shape in ((0, 4), (4, 0)):
        assert Sample(4, 3).of(torch.zeros(shape)).numel() == 0
