"""The weights that deep models of the registry start from."""

from __future__ import annotations

from torch import nn


def start_for_relu(model: nn.Module) -> None:
    """He et al. 2015: the signal keeps its size on its way through layers with ReLU.

    torch's own start loses it in models of this depth that have no norm.
    """
    for module in model.modules():
        # Where there is no memory there is nothing to draw, and torch would import sympy for it.
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
