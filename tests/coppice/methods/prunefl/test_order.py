"""The shared order: who comes first, and what is cut from it."""

from __future__ import annotations

import pytest
import torch

from coppice import tree
from coppice.methods.prunefl.order import LayerOrder, cut, shared_order
from coppice.sparse import Mask, SparseTensor


def sparse(rows: list[list[float | None]]) -> SparseTensor:
    """A weight of these values; None is pruned."""
    bits = torch.tensor([[value is not None for value in row] for row in rows])
    values = [value for row in rows for value in row if value is not None]
    return SparseTensor(Mask.of(bits), torch.tensor(values))


def random_order(seed: int, prune_share: float = 0.3) -> dict[str, LayerOrder]:
    generator = torch.Generator().manual_seed(seed)
    weights, importance = {}, {}
    for name, shape in (("conv", (6, 3, 2, 2)), ("fc", (5, 17))):
        mask = Mask.of(torch.rand(shape, generator=generator) < 0.4)
        weights[name] = SparseTensor.take(torch.randn(shape, generator=generator), mask)
        importance[name] = torch.randn(shape, generator=generator) ** 2
    return shared_order(weights, importance, prune_share)


def test_units_come_before_the_core_and_the_core_before_candidates() -> None:
    weight = sparse([[1.0, -5.0, None], [0.5, 2.0, 0.1], [4.0, 0.2, None]])
    importance = torch.tensor([[0.0, 0.0, 7.0], [0.0, 0.0, 3.0], [0.0, 9.0, 8.0]])
    layer = shared_order({"w": weight}, {"w": importance}, 2 / 7)["w"]
    # Largest of each row: -5, 4, 2; the rest of the core by magnitude: 1, 0.5; then by importance.
    assert layer.positions.tolist() == [1, 6, 4, 0, 3, 7, 8, 2, 5]
    assert (layer.least, layer.core) == (3, 5)


def test_equal_entries_stay_in_their_order() -> None:
    weight = sparse([[2.0, -2.0, 1.0, -1.0] * 500 + [None] * 2000])
    layer = shared_order({"w": weight}, {"w": torch.arange(4000.0)[None] % 2}, 0.0)["w"]
    large = [at for at in range(2000) if at % 4 < 2]
    small = [at for at in range(2000) if at % 4 >= 2]
    odd, even = list(range(2001, 4000, 2)), list(range(2000, 4000, 2))
    assert layer.positions.tolist() == large + small + odd + even


def test_unit_without_a_weight_is_not_brought_back() -> None:
    weight = sparse([[1.0, 2.0], [None, None], [None, None]])
    layer = shared_order({"w": weight}, {"w": torch.ones(3, 2)}, 0.0)["w"]
    assert (layer.least, layer.core) == (1, 2)
    assert cut({"w": layer}, {"w": 1})["w"].positions.tolist() == [1]


def test_weight_of_value_zero_that_is_kept_belongs_to_the_core() -> None:
    weight = sparse([[0.0, None, 3.0]])
    layer = shared_order({"w": weight}, {"w": torch.tensor([[0.0, 9.0, 0.0]])}, 0.0)["w"]
    assert layer.positions.tolist() == [2, 0, 1]
    assert layer.core == 2


def test_cuts_are_nested_in_every_layer() -> None:
    order = random_order(0)
    for name, layer in order.items():
        before = cut({name: layer}, {name: layer.least})[name]
        for kept in range(layer.least, layer.size + 1):
            mask = cut({name: layer}, {name: kept})[name]
            assert mask.count == kept
            assert mask.shape == layer.shape
            assert not (before.bits & ~mask.bits).any()
            before = mask
        assert before == Mask.full(layer.shape)


def test_no_cut_takes_the_last_weight_of_a_unit() -> None:
    for seed in range(10):
        order = random_order(seed)
        core = cut(order, {name: layer.core for name, layer in order.items()})
        least = cut(order, {name: layer.least for name, layer in order.items()})
        for name in order:
            alive, still = (mask[name].bits.flatten(1).any(dim=1) for mask in (core, least))
            assert torch.equal(alive, still)
            assert least[name].count == alive.sum()


@pytest.mark.parametrize("kept", [{"conv": 1, "fc": 20}, {"conv": 73, "fc": 20}, {"conv": 20}])
def test_impossible_cut_is_refused(kept: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a cut of"):
        cut(random_order(0), kept)


def test_layer_of_which_nothing_is_kept_has_an_order() -> None:
    weight = sparse([[None, None]])
    layer = shared_order({"w": weight}, {"w": torch.tensor([[1.0, 2.0]])}, 0.3)["w"]
    assert (layer.least, layer.core) == (0, 0)
    assert cut({"w": layer}, {"w": 0})["w"].count == 0


def test_order_survives_storing() -> None:
    layer = random_order(1)["conv"]
    loaded = tree.load(LayerOrder, tree.save(layer))
    assert torch.equal(loaded.positions, layer.positions)
    assert (loaded.shape, loaded.least, loaded.core) == (layer.shape, layer.least, layer.core)
