"""The registry: models by name, with norm, input shape and number of classes as arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from coppice.domain import ModelSpec
from coppice.errors import RunFileError
from coppice.models.conv2 import Conv2
from coppice.models.lenet import LeNet
from coppice.models.mlp import Mlp
from coppice.models.resnet import ResNet18
from coppice.models.vgg import Vgg11

MODELS: Mapping[str, Callable[[ModelSpec, tuple[int, ...], int], nn.Module]] = {
    "conv2": Conv2,
    "lenet": LeNet,
    "mlp": Mlp,
    "resnet18": ResNet18,
    "vgg11": Vgg11,
}


def make_model(spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A fresh model with logits as outputs; weights come from torch's global generator.

    Raises RunFileError when there is no such model, or when it does not take the input shape.
    """
    if spec.name not in MODELS:
        raise RunFileError(
            f"model.name is {spec.name!r}; allowed are {', '.join(map(repr, MODELS))}"
        )
    if spec.hidden is not None and spec.name != "mlp":
        raise RunFileError(f"model.hidden is for 'mlp' only; leave it out for {spec.name!r}")
    return MODELS[spec.name](spec, input_shape, num_classes)
