"""The models of a fleet: the union, and a bounded number of cuts of it by their density."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from coppice.methods.prunefl import cuts
from coppice.methods.prunefl.cuts import MOST_CUTS, Cuts
from coppice.methods.prunefl.order import Order, cut, shared_order
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights

SHAPES = {"a": (4, 5), "b": (4, 20)}


@pytest.fixture
def order() -> Order:
    return order_of(seed=0)


def order_of(seed: int) -> Order:
    generator = torch.Generator().manual_seed(seed)
    importance = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    return shared_order(whole(seed), importance, 0.9)


def whole(seed: int) -> dict[str, SparseTensor]:
    generator = torch.Generator().manual_seed(seed + 100)
    return {
        name: SparseTensor(Mask.full(shape), torch.randn(shape, generator=generator).reshape(-1))
        for name, shape in SHAPES.items()
    }


def union() -> Weights:
    dense: Mapping[str, Tensor] = {"bias": torch.ones(4)}
    return {**whole(0), **dense}


def named(order: Order, *kept: tuple[int, int]) -> list[str]:
    return list(Cuts(union(), order, [dict(zip("ab", counts, strict=True)) for counts in kept]))


def test_each_is_the_unions_weights_on_the_masks_of_its_cut(order: Order) -> None:
    weights = union()
    held = [{"a": 20, "b": 30}, {"a": 6, "b": 10}]
    models = Cuts(weights, order, held)
    assert list(models) == ["global", "cut-0.16", "cut-0.5"]
    assert len(models) == 3
    assert models["global"] is weights
    for name, kept in (("cut-0.16", held[1]), ("cut-0.5", held[0])):
        model = models[name]
        assert model["bias"] is weights["bias"]
        for layer, mask in cut(order, kept).items():
            item, full = model[layer], weights[layer]
            assert isinstance(item, SparseTensor)
            assert isinstance(full, SparseTensor)
            assert item.mask == mask
            assert mask.count == kept[layer]
            assert torch.equal(item.values, full.dense()[mask.bits])


def test_what_the_union_lost_is_zero_in_a_cut(order: Order) -> None:
    weights = dict(whole(0))
    weights["a"] = SparseTensor(Mask.of(torch.zeros(4, 5, dtype=torch.bool)), torch.zeros(0))
    item = Cuts(weights, order, [{"a": 7, "b": 10}])["cut-0.17"]["a"]
    assert isinstance(item, SparseTensor)
    assert item.values.tolist() == [0.0] * 7


def test_a_name_of_none_is_a_key_error(order: Order) -> None:
    with pytest.raises(KeyError):
        Cuts(union(), order, [])["cut-0.5"]


def test_before_a_device_has_held_one_there_is_the_union_only(order: Order) -> None:
    assert named(order) == ["global"]


def test_devices_of_one_cut_are_one_tier_in_any_order(order: Order) -> None:
    assert named(order, (6, 14), (10, 30), (6, 14)) == ["global", "cut-0.2", "cut-0.4"]
    assert named(order, (10, 30), (6, 14)) == named(order, (6, 14), (10, 30))


def test_of_cuts_that_are_equally_dense_one_stands_for_all(order: Order) -> None:
    held = [{"a": 10, "b": 30}, {"a": 6, "b": 34}]
    both = [Cuts(union(), order, each) for each in (held, held[::-1])]
    for models in both:
        assert list(models) == ["global", "cut-0.4"]
        item = models["cut-0.4"]["a"]
        assert isinstance(item, SparseTensor)
        assert item.mask.count == 10


def test_of_many_tiers_the_outermost_are_named_and_some_between(order: Order) -> None:
    held = [(5 + extra, 15 + 4 * extra) for extra in range(13)]
    names = named(order, *held)
    assert len(names) == 1 + MOST_CUTS
    assert names == ["global", "cut-0.2", "cut-0.35", "cut-0.5", "cut-0.65", "cut-0.8"]
    assert named(order, *held[:MOST_CUTS]) == [
        "global", "cut-0.2", "cut-0.25", "cut-0.3", "cut-0.35", "cut-0.4",
    ]  # fmt: skip


def test_counts_of_an_older_order_become_the_nearest_of_this_one(order: Order) -> None:
    least = {name: layer.least for name, layer in order.items()}
    assert min(least.values()) > 0
    models = Cuts(union(), order, [dict.fromkeys(SHAPES, 0), dict.fromkeys(SHAPES, 1000)])
    sparsest = f"cut-{sum(least.values()) / 100:.3g}"
    assert list(models) == ["global", sparsest, "cut-1"]
    assert {
        name: item.mask.count
        for name, item in models[sparsest].items()
        if isinstance(item, SparseTensor)
    } == least


def test_a_cut_is_made_only_when_it_is_asked_for(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a cut was made")

    monkeypatch.setattr(cuts, "cut", fail)
    models = Cuts(union(), order, [{"a": 6, "b": 10}])
    assert "global" in models
    assert "cut-0.16" in list(models)
    assert models["global"]
    with pytest.raises(AssertionError, match="a cut was made"):
        models["cut-0.16"]
