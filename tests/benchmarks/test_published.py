"""The published constants give the published round times."""

from __future__ import annotations

import pytest
import torch

from benchmarks.published import (
    COMMUNICATION_SECONDS,
    LOCAL_STEPS,
    MODELS,
    dense_round_seconds,
    round_time,
)
from coppice.budget import RoundTime
from coppice.domain import ModelSpec
from coppice.models import make_model

#: Model, weights, and the seconds of an unpruned round: fixed, computing, communication, together.
GOLDEN = [
    ("conv2", 6_601_504, 6.246, 8.120, 36.715, 51.081),
    ("vgg11", 9_747_136, 86.850, 68.555, 54.210, 209.614),
    ("resnet18", 11_046_080, 72.800, 67.032, 61.434, 201.266),
    ("conv4", 30_816, 7.990, 5.256, 0.171, 13.417),
]
#: Computing at density 0 against dense kernels.
SPEED_UP = {"conv2": 1.8, "vgg11": 1.8, "resnet18": 1.7, "conv4": 2.3}


def full_round(model: str) -> tuple[RoundTime, dict[str, int]]:
    """The model's times and the ones of its unpruned form."""
    names = [f"layer{index}" for index in range(len(MODELS[model].shapes))]
    return round_time(model, names), dict(zip(names, MODELS[model].sizes, strict=True))


@pytest.mark.parametrize(
    ("model", "weights", "constant", "compute", "communication", "together"), GOLDEN
)
def test_full_round_takes_the_golden_seconds(
    model: str,
    weights: int,
    constant: float,
    compute: float,
    communication: float,
    together: float,
) -> None:
    times, ones = full_round(model)
    travel = COMMUNICATION_SECONDS * weights
    assert sum(ones.values()) == weights
    assert times.constant_seconds == pytest.approx(constant, abs=1e-3)
    assert travel == pytest.approx(communication, abs=1e-3)
    assert times.seconds(ones) - times.constant_seconds - travel == pytest.approx(compute, abs=1e-3)
    assert times.seconds(ones) == pytest.approx(together, abs=1e-3)


@pytest.mark.parametrize(("model", "bound"), SPEED_UP.items())
def test_computing_has_a_largest_speed_up(model: str, bound: float) -> None:
    assert MODELS[model].largest_speed_up == pytest.approx(bound, abs=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_line_through_the_layers_meets_the_measured_sparse_model(model: str) -> None:
    times, ones = full_round(model)
    step = (times.seconds(ones) - COMMUNICATION_SECONDS * sum(ones.values())) / LOCAL_STEPS
    assert step == pytest.approx(MODELS[model].sparse_seconds, rel=0.01)


@pytest.mark.parametrize(
    ("model", "input_shape", "classes"),
    [("conv2", (1, 28, 28), 62), ("vgg11", (3, 32, 32), 10), ("resnet18", (3, 168, 168), 100)],
)
def test_layers_are_those_of_our_model(
    model: str, input_shape: tuple[int, ...], classes: int
) -> None:
    with torch.device("meta"):
        ours = make_model(ModelSpec(name=model), input_shape, classes)
    shapes = [tuple(p.shape) for p in ours.parameters() if p.dim() > 1]
    # The 1x1 shortcuts of ResNet-18 are not pruned.
    shapes = [shape for shape in shapes if shape[2:] != (1, 1)]
    assert shapes == list(MODELS[model].shapes)


def test_another_link_changes_the_communication_alone() -> None:
    published, ones = full_round("conv2")
    names = list(ones)
    same = round_time("conv2", names, megabytes_per_second=1.438)
    fast = round_time("conv2", names, megabytes_per_second=14.38)
    assert same == published
    assert published.seconds(ones) - fast.seconds(ones) == pytest.approx(0.9 * 36.715, abs=1e-3)
    assert fast.constant_seconds == published.constant_seconds


def test_conventional_training_is_charged_six_percent_for_sparse_kernels_on_conv2() -> None:
    times, ones = full_round("conv2")
    dense = dense_round_seconds("conv2")
    assert dense == pytest.approx(5 * 2.2486 + 36.715, abs=1e-3)
    assert 1 - dense / times.seconds(ones) == pytest.approx(0.061, abs=1e-3)
    faster = dense_round_seconds("conv2", megabytes_per_second=14.38)
    assert dense - faster == pytest.approx(0.9 * 36.715, abs=1e-3)


def test_names_for_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="conv2 has 4 layers, not 3"):
        round_time("conv2", ["a", "b", "c"])
