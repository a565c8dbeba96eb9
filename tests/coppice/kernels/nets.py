"""Small networks with layers of all kinds, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coppice.data import Examples
from coppice.masks import masked, prunable_names
from coppice.sparse import Mask
from coppice.tensors import Weights, buffers_of, parameters_of
from tests.coppice.toys import CLASSES


def convolutions() -> nn.Module:
    """Convolutions with and without stride, a pool, a norm and linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding="same"),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 20),
        nn.ReLU(),
        nn.Linear(20, CLASSES),
    )


class Twice(nn.Module):
    """Uses one layer two times, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(64, 16)
        self.again = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.into(inputs.flatten(1)).tanh()
        outputs: Tensor = self.out(self.again(self.again(hidden).tanh()).tanh())
        return outputs


def images(count: int) -> Examples:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    inputs = torch.randn(count, 1, 8, 8, generator=generator) + targets[:, None, None, None]
    return Examples(inputs, targets)


def start(model: nn.Module, density: float, seed: int = 0) -> Weights:
    """The model's weights and buffers, what can be pruned on random masks."""
    torch.manual_seed(seed)
    masks = {
        name: Mask.of(torch.rand(model.get_parameter(name).shape) < density)
        for name in prunable_names(model)
    }
    tensors = parameters_of(model) | buffers_of(model)
    return masked({name: tensor.clone() for name, tensor in tensors.items()}, masks)
