"""Folding many updates into one, with memory that does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coppice.domain import Metrics
from coppice.tensors import Tensors


class WeightedMean:
    """A running weighted mean of tensors, name by name; sums are float64, results as they came."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0
        #: Updates folded so far.
        self.count = 0

    def add(self, tensors: Tensors, weight: float) -> None:
        """Fold one update's floating-point tensors; every update has the same names."""
        for name, tensor in tensors.items():
            total = self._sums.get(name)
            if total is None:
                self._dtypes[name] = tensor.dtype
                self._sums[name] = tensor.to(torch.float64, copy=True).mul_(weight)
            else:
                total.add_(tensor, alpha=weight)
        self._weight += weight
        self.count += 1

    def value(self) -> dict[str, Tensor]:
        """The mean, once and at the end; empty when no weight was folded.

        Each sum goes as its mean comes: the sums alone are twice the model.
        """
        if self._weight == 0.0:
            return {}
        return {
            name: self._sums.pop(name).div_(self._weight).to(self._dtypes[name])
            for name in list(self._sums)
        }


class Maximum:
    """The element-wise maximum: what becomes of integer state, which is never averaged.

    For counters (batch norm's `num_batches_tracked`) it is the one that has counted furthest, and
    like the mean it does not depend on the order of the updates.
    """

    def __init__(self) -> None:
        self._largest: dict[str, Tensor] = {}

    def add(self, tensors: Tensors) -> None:
        """Fold one update's integer or bool tensors."""
        for name, tensor in tensors.items():
            largest = self._largest.get(name)
            self._largest[name] = (
                tensor.clone() if largest is None else torch.maximum(largest, tensor)
            )

    def value(self) -> dict[str, Tensor]:
        """The maximum; empty when nothing was folded."""
        return dict(self._largest)


class MeanMetrics:
    """The weighted mean of metrics, each over those that reported it."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Metrics, weight: float) -> None:
        """Fold one client's metrics."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def value(self) -> dict[str, float]:
        """The means of the metrics that have any weight."""
        return {
            name: total / self._weights[name]
            for name, total in self._sums.items()
            if self._weights[name] > 0
        }


def split_floating(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The floating-point tensors, and the rest."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    rest = {name: tensor for name, tensor in tensors.items() if name not in floating}
    return floating, rest
