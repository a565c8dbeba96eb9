"""A multilayer perceptron for inputs of any shape."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from coppice.domain import ModelSpec
from coppice.models.norms import norm_1d

DEFAULT_HIDDEN = (200,)


class Mlp(nn.Module):
    """Linear layers with ReLU between them; 200 hidden units as in McMahan et al. 2017."""

    def __init__(self, spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *(spec.hidden or DEFAULT_HIDDEN)]
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(narrow, wide), norm_1d(spec, wide), nn.ReLU(inplace=True))
            for narrow, wide in pairwise(widths)
        )
        self.output = nn.Linear(widths[-1], num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, *input_shape) → (N, num_classes) logits."""
        values = inputs.flatten(1)
        for layer in self.hidden:
            values = layer(values)
        logits: Tensor = self.output(values)
        return logits
