"""What weights are worth where not every device reports every one of them."""

from __future__ import annotations

import torch
from torch import Tensor


def estimate(sums: Tensor, mass: Tensor, prior_mass: float) -> Tensor:
    """G of a layer's entries, `(S + κ · Ḡ) / (N + κ)`: float64, of the shape of `sums`.

    An entry that few devices report is drawn towards the layer's mean, and one that none reports
    has it: in expectation it ranks where its gradients do, not below for being seen less, and it
    seldom comes out on top by the chance of few examples.

    Args:
        sums: Squared gradients times examples, summed over who reported the entry (S).
        mass: The examples of these (N).
        prior_mass: How many examples the mean counts for (κ), about one device's.
    """
    sums, mass = sums.to(torch.float64), mass.to(torch.float64)
    total = float(mass.sum())
    mean = float(sums.sum()) / total if total > 0 else 0.0
    weight = mass + prior_mass
    estimated = (sums + prior_mass * mean) / weight
    return torch.where(weight > 0, estimated, mean)
