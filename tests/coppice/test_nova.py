"""FedNova: what unequal steps change, and that equal ones change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coppice.aggregation import WeightedMean
from coppice.nova import NovaMean, accumulation_norm
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights
from coppice.training import Sgd, train
from tests.coppice.toys import ToyApp, examples, local

ETA = 0.1


def on(mask: list[int], *values: float) -> SparseTensor:
    return SparseTensor(Mask.of(torch.tensor(mask, dtype=torch.bool)), torch.tensor(values))


def only(mean: NovaMean) -> SparseTensor:
    item = mean.value()["w"]
    assert isinstance(item, SparseTensor)
    return item


# ---- how far steps go ----------------------------------------------------------------------------


def test_norm_of_plain_steps_is_their_number() -> None:
    assert [accumulation_norm(steps) for steps in (1, 3, 50)] == [1, 3, 50]
    assert accumulation_norm(7, learning_rate=0.3) == 7


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_norms_are_the_published_ones(steps: int) -> None:
    rho, mu = 0.9, 0.5
    momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert accumulation_norm(steps, momentum=rho) == pytest.approx(momentum)
    proximal = sum((1 - ETA * mu) ** k for k in range(steps))
    assert accumulation_norm(steps, ETA, proximal=mu) == pytest.approx(proximal)
    assert accumulation_norm(steps, ETA, weight_decay=mu) == pytest.approx(proximal)


class Slope(nn.Module):
    """Its gradient is 1, whatever the data and the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(inputs))


class SlopeApp(ToyApp):
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.mean()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"proximal": 2.0},
        {"weight_decay": 0.7},
        {"momentum": 0.8, "proximal": 1.5, "weight_decay": 0.5},
    ],
)
def test_training_goes_as_far_as_the_norm_says(settings: dict[str, Any]) -> None:
    for steps in (1, 6):
        model = Slope()
        sgd = Sgd(learning_rate=ETA, steps=steps, epochs=None, batch_size=4, **settings)
        train(model, local(SlopeApp(Slope), examples(12)), sgd)
        norm = accumulation_norm(steps, ETA, **settings)
        assert float(model.weight.detach()) == pytest.approx(-ETA * norm)


@pytest.mark.parametrize(
    ("steps", "settings"), [(0, {}), (2, {"learning_rate": 1.0, "proximal": 3.0})]
)
def test_steps_that_go_nowhere_are_refused(steps: int, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no direction"):
        accumulation_norm(steps, **settings)


# ---- the mean ------------------------------------------------------------------------------------


def random_updates(seed: int, *, one_mask: bool) -> list[tuple[Weights, float]]:
    generator = torch.Generator().manual_seed(seed)
    masks = [Mask.of(torch.rand(7, 11, generator=generator) < 0.5) for _ in range(5)]
    if one_mask:
        masks = masks[:1] * 5
    updates: list[tuple[Weights, float]] = []
    for mask in masks:
        sparse = SparseTensor(mask, torch.randn(mask.count, generator=generator))
        sparse.values[:3] = -0.0
        bias = torch.randn(4, generator=generator)
        bias[0] = -0.0
        weight = float(torch.randint(1, 1000, (), generator=generator)) / 3
        updates.append(({"w": sparse, "bias": bias}, weight))
    return updates


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize("norm", [1.0, 5.0, 3.7])
@pytest.mark.parametrize("one_mask", [True, False])
def test_equal_steps_give_the_bits_of_the_plain_mean(norm: float, one_mask: bool) -> None:
    for seed in range(10):
        nova, plain = NovaMean(), WeightedMean()
        for weights, weight in random_updates(seed, one_mask=one_mask):
            nova.add(weights, weight, norm)
            plain.add(weights, weight)
        assert nova.count == plain.count == 5
        ours, theirs = nova.value(), plain.value()
        for name, expected in theirs.items():
            item = ours[name]
            if isinstance(expected, SparseTensor):
                assert isinstance(item, SparseTensor)
                assert item.mask == expected.mask
                item, expected = item.values, expected.values
            assert isinstance(item, torch.Tensor)
            assert same_bits(item, expected)


def test_unequal_steps_go_the_mean_way_in_the_mean_direction() -> None:
    mean = NovaMean()
    mean.add({"w": torch.tensor([10.0, 0.0])}, weight=1.0, norm=5.0)
    mean.add({"w": torch.tensor([0.0, 2.0])}, weight=3.0, norm=1.0)
    # Directions (2, 0) and (0, 2), in the mean (0.5, 1.5), and 2 steps.
    torch.testing.assert_close(mean.value()["w"], torch.tensor([1.0, 3.0]))


def test_client_of_more_steps_does_not_pull_the_mean_its_way() -> None:
    """Two clients whose optima are at 1 and -1 meet in the middle, whatever their steps."""
    weight = 0.5
    for _ in range(200):
        mean = NovaMean()
        for optimum, steps in ((1.0, 8), (-1.0, 1)):
            own = weight
            for _ in range(steps):
                own -= 0.001 * (own - optimum)
            mean.add({"w": torch.tensor([own - weight])}, 1.0, accumulation_norm(steps))
        moved = mean.value()["w"]
        assert isinstance(moved, torch.Tensor)
        weight += float(moved)
    assert weight == pytest.approx(0.5 * (1 - 0.001 * 4.5) ** 200, abs=0.01)


def test_steps_count_for_each_coordinate_over_its_holders() -> None:
    mean = NovaMean()
    mean.add({"w": on([1, 1, 0, 0], 8.0, 8.0)}, weight=1.0, norm=4.0)
    mean.add({"w": on([0, 1, 1, 0], 2.0, 3.0)}, weight=3.0, norm=1.0)
    item = only(mean)
    assert item.mask.positions.tolist() == [0, 1, 2]
    # Of one holder its own update; of both, (2 + 3 · 2) / 4 in (4 + 3 · 1) / 4 steps.
    torch.testing.assert_close(item.values, torch.tensor([8.0, 3.5, 3.0]))


def held_by_some(mean: NovaMean) -> SparseTensor:
    mean.add({"w": on([1, 1, 0], 8.0, 4.0)}, weight=1.0, norm=2.0)
    mean.add({"w": on([0, 1, 1], 4.0, 4.0)}, weight=3.0, norm=2.0)
    return only(mean)


def test_absentees_are_skipped_or_count_as_no_change() -> None:
    torch.testing.assert_close(held_by_some(NovaMean()).values, torch.tensor([8.0, 4.0, 4.0]))
    zero = held_by_some(NovaMean(absent="zero"))
    torch.testing.assert_close(zero.values, torch.tensor([2.0, 4.0, 3.0]))


def test_few_holders_count_for_a_share_at_least() -> None:
    floored = held_by_some(NovaMean(least_share=0.5))
    torch.testing.assert_close(floored.values, torch.tensor([4.0, 4.0, 4.0]))


def test_order_of_the_updates_does_not_matter() -> None:
    updates = random_updates(1, one_mask=False)
    norms = [1.0, 5.0, 2.0, 3.0, 4.0]
    results = []
    for order in (range(5), reversed(range(5))):
        mean = NovaMean()
        for number in order:
            mean.add(*updates[number], norms[number])
        results.append(only(mean))
    assert results[0].mask == results[1].mask
    torch.testing.assert_close(results[0].values, results[1].values, rtol=1e-6, atol=1e-6)


def test_nothing_that_weighs_is_no_mean() -> None:
    assert NovaMean().value() == {}
    mean = NovaMean()
    mean.add({"w": torch.ones(2), "v": on([1, 0], 1.0)}, weight=0.0, norm=1.0)
    assert mean.value() == {}


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_norm_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match="accumulation vector"):
        NovaMean().add({"w": torch.ones(1)}, 1.0, norm)
