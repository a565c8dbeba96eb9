"""What devices are told of the order: the sums, the grid, and what is no profile."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coppice import tree
from coppice.errors import InvalidPayload
from coppice.methods.prunefl.order import LayerOrder, cut, shared_order
from coppice.methods.prunefl.profile import LayerProfile, Profile, profile_of
from coppice.sparse import Mask, SparseTensor


def case(
    seed: int, shapes: tuple[tuple[int, int], ...] = ((40, 50), (10, 300))
) -> tuple[dict[str, LayerOrder], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights, importance = {}, {}
    for number, shape in enumerate(shapes):
        mask = Mask.of(torch.rand(shape, generator=generator) < 0.4)
        weights[str(number)] = SparseTensor.take(torch.randn(shape, generator=generator), mask)
        importance[str(number)] = torch.randn(shape, generator=generator) ** 2
    return shared_order(weights, importance, 0.3), importance


def test_gains_are_those_of_the_cuts() -> None:
    order, importance = case(0)
    profile = profile_of(order, importance, base_gain=2.5)
    assert profile.base_gain == 2.5
    for name, layer in profile.layers.items():
        for kept, gain in zip(layer.kept, layer.gains, strict=True):
            mask = cut({name: order[name]}, {name: kept})[name]
            assert gain == pytest.approx(float(importance[name][mask.bits].sum()), rel=1e-5)


def test_grid_has_the_least_the_core_and_everything() -> None:
    for seed in range(5):
        order, importance = case(seed)
        profile = profile_of(order, importance, base_gain=0.0)
        for name, layer in profile.layers.items():
            assert layer.kept[0] == order[name].least
            assert layer.kept[profile.levels] == order[name].core
            assert layer.kept[-1] == order[name].size
            assert len(layer.kept) <= 33


def test_levels_inside_the_core_keep_layers_in_proportion() -> None:
    order, importance = case(1)
    profile = profile_of(order, importance, base_gain=0.0)
    for level in range(1, profile.levels):
        shares = [
            layer.kept[level] / order[name].core
            for name, layer in profile.layers.items()
            if layer.kept[level] > order[name].least
        ]
        assert not shares or max(shares) - min(shares) < 0.002


def test_all_counts_are_there_when_asked_for() -> None:
    order, importance = case(2, shapes=((4, 20),))
    profile = profile_of(order, importance, base_gain=0.0, beyond=None)
    assert profile.layers["0"].kept[profile.levels :] == tuple(range(order["0"].core, 81))


def test_layers_that_cannot_be_cut_have_a_profile() -> None:
    order, importance = case(3, shapes=((4, 1), (1, 1), (3, 30)))
    empty = SparseTensor.take(torch.zeros(2, 3), Mask.of(torch.zeros(2, 3, dtype=torch.bool)))
    order |= shared_order({"empty": empty}, {"empty": torch.ones(2, 3)}, 0.3)
    importance["empty"] = torch.ones(2, 3)
    profile = profile_of(order, importance, base_gain=0.0)
    profile.check_sizes({name: layer.size for name, layer in order.items()})
    assert profile.layers["empty"].kept[profile.levels :] == tuple(range(7))


def test_profile_survives_the_wire() -> None:
    order, importance = case(4)
    profile = profile_of(order, importance, base_gain=1.0)
    assert tree.load(Profile, tree.save(profile)) == profile
    assert tree.from_plain(Profile, tree.to_plain(profile)) == profile


@pytest.mark.parametrize(
    "wrong",
    [
        {"kept": ()},
        {"kept": (1, 2)},
        {"kept": (-1, 2, 3)},
        {"kept": (1, 3, 2)},
        {"gains": (0.0, 2.0, 1.0)},
        {"gains": (-1.0, 1.0, 2.0)},
        {"gains": (0.0, math.nan, 2.0)},
        {"gains": (0.0, 1.0, math.inf)},
        {"gains": (0.0, 1.0, 1e101)},
        {"kept": tuple(range(2000)), "gains": tuple(map(float, range(2000)))},
    ],
)
def test_what_is_no_profile_is_refused(wrong: dict[str, Any]) -> None:
    plain = {"kept": (1, 2, 3), "gains": (0.0, 1.0, 2.0)}
    tree.from_plain(LayerProfile, plain)
    with pytest.raises(InvalidPayload):
        tree.from_plain(LayerProfile, plain | wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"base_gain": -1.0}, {"base_gain": math.nan}, {"levels": -1}, {"levels": 3}, {"layers": {}}],
)
def test_profile_that_does_not_hold_together_is_refused(wrong: dict[str, Any]) -> None:
    layer = LayerProfile(kept=(1, 2, 3), gains=(0.0, 1.0, 2.0))
    profile = Profile(layers={"w": layer}, levels=2, base_gain=0.0)
    with pytest.raises(ValueError, match=r"levels do not fit|never pruned"):
        replace(profile, **wrong)


def test_profile_of_another_model_is_refused() -> None:
    layer = LayerProfile(kept=(1, 2, 3), gains=(0.0, 1.0, 2.0))
    profile = Profile(layers={"w": layer}, levels=1, base_gain=0.0)
    profile.check_sizes({"w": 3})
    for sizes in ({"w": 2}, {"v": 3}, {"w": 3, "v": 3}):
        with pytest.raises(ValueError, match=r"has 2 weights|other parameters"):
            profile.check_sizes(sizes)
