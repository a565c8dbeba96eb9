"""The registry: sizes as published, shapes, norms, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coppice.domain import ModelSpec
from coppice.errors import RunFileError
from coppice.models import MODELS, make_model
from coppice.models.norms import norm_1d, norm_2d
from coppice.models.resnet import ResidualBlock

SHAPES = {
    "conv2": (1, 28, 28),
    "lenet": (1, 28, 28),
    "mlp": (1, 8, 8),
    "resnet18": (3, 32, 32),
    "vgg11": (3, 32, 32),
}


def make(name: str, *shape: int, classes: int = 10, **fields: Any) -> nn.Module:
    return make_model(ModelSpec(name=name, **fields), shape or SHAPES[name], classes)


def num_weights(model: nn.Module) -> int:
    """Weights of convolutions and linear layers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "weights"),
    [
        ("conv2", (1, 28, 28), 62, 6_601_504),
        ("vgg11", (3, 32, 32), 10, 9_747_136),
        ("lenet", (1, 28, 28), 10, 61_470),
        ("mlp", (1, 8, 8), 10, 64 * 200 + 200 * 10),
    ],
)
def test_weights_are_as_many_as_published(
    name: str, shape: tuple[int, ...], classes: int, weights: int
) -> None:
    with torch.device("meta"):
        assert num_weights(make(name, *shape, classes=classes)) == weights


def test_resnet18_has_the_published_weights_beside_its_shortcuts() -> None:
    with torch.device("meta"):
        model = make("resnet18", 3, 224, 224, classes=100)
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    shortcuts = sum(num_weights(block.shortcut) for block in blocks)
    assert num_weights(model) - shortcuts == 11_046_080


@pytest.mark.parametrize(("pixels", "stem"), [(32, 3), (64, 3), (65, 7)])
def test_resnet18_keeps_the_resolution_of_small_images(pixels: int, stem: int) -> None:
    with torch.device("meta"):
        model = make("resnet18", 3, pixels, pixels)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.kernel_size == (stem, stem)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_model_trains_with_every_norm(name: str, norm: Any) -> None:
    torch.manual_seed(0)
    model = make(name, norm=norm)
    outputs = model(torch.randn(3, *SHAPES[name]))
    assert outputs.shape == (3, 10)
    # A start from which training can go: the signal neither dies nor explodes. torch's own start
    # of the shallow models lets it shrink a little.
    least = 0.3 if name in ("resnet18", "vgg11") else 0.01
    assert least < float(outputs.detach().std()) < 10
    outputs.logsumexp(1).mean().backward()
    assert all(
        parameter.grad is not None and bool(parameter.grad.isfinite().all())
        for parameter in model.parameters()
    )
    norms = {type(module) for module in model.modules() if "Norm" in type(module).__name__}
    kinds = {"none": (), "batch": (nn.BatchNorm1d, nn.BatchNorm2d), "group": (nn.GroupNorm,)}
    assert norms <= set(kinds[norm])
    assert bool(norms) == (norm != "none")


@pytest.mark.parametrize("name", SHAPES)
def test_shape_and_classes_are_arguments(name: str) -> None:
    model = make(name, 2, 40, 33, classes=7)
    assert model(torch.zeros(2, 2, 40, 33)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "least"), [("conv2", 4), ("lenet", 12), ("resnet18", 8), ("vgg11", 32)]
)
def test_the_smallest_allowed_shape_works_and_a_smaller_one_is_refused(
    name: str, least: int
) -> None:
    model = make(name, 1, least, least)
    assert model(torch.zeros(2, 1, least, least)).shape == (2, 10)
    for shape in ((1, least, least - 1), (1, least - 1, least), (least, least), (1024,)):
        with pytest.raises(RunFileError) as caught:
            make(name, *shape)
        assert f"model {name!r} does not take data.input_shape {list(shape)}" in str(caught.value)
        assert f"at least {least}" in str(caught.value)


def test_mlp_takes_any_shape_and_the_hidden_layers_of_the_run() -> None:
    for shape in ((5,), (2, 3), (1, 2, 3, 4)):
        model = make("mlp", *shape, hidden=(6, 4))
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert [layer.out_features for layer in linear] == [6, 4, 10]


def test_hidden_layers_are_for_mlp_only() -> None:
    with pytest.raises(RunFileError, match=r"model\.hidden is for 'mlp' only"):
        make("conv2", hidden=(10,))


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(RunFileError) as caught:
        make("vgg12", 3, 32, 32)
    assert "'vgg12'" in str(caught.value)
    assert all(repr(name) in str(caught.value) for name in MODELS)


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (16, 1), (6, 1), (200, 1)])
def test_group_norm_takes_sixteen_channels_together_or_all(channels: int, groups: int) -> None:
    for layer in (norm_1d, norm_2d):
        norm = layer(ModelSpec(name="mlp", norm="group"), channels)
        assert isinstance(norm, nn.GroupNorm)
        assert norm.num_groups == groups
