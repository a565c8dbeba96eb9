"""Folding many updates into one, with memory that does not depend on how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from coppice.domain import Metrics
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Tensors, Weights


class WeightedMean:
    """A running weighted mean, name by name; sums are float64, results of the type that came.

    A coordinate of a sparse tensor is averaged over the updates that hold it. No update is made
    dense: what folding one costs is proportional to its values.
    """

    def __init__(self) -> None:
        self._sums: dict[str, _DenseSum | _SparseSum] = {}
        #: Updates folded so far.
        self.count = 0

    def add(self, weights: Weights, weight: float) -> None:
        """Fold one update's floating-point tensors; every update has the same names."""
        for name, item in weights.items():
            total = self._sums.get(name)
            if total is None:
                total = _SparseSum(item) if isinstance(item, SparseTensor) else _DenseSum(item)
                self._sums[name] = total
            total.add(item, weight)
        self.count += 1

    def value(self) -> dict[str, Tensor | SparseTensor]:
        """The mean, once and at the end; empty when no weight was folded.

        Each sum goes as its mean comes: the sums alone are twice the model.
        """
        means = {name: self._sums.pop(name).mean() for name in list(self._sums)}
        return {name: mean for name, mean in means.items() if mean is not None}


class _DenseSum:
    def __init__(self, like: Tensor) -> None:
        self._dtype = like.dtype
        self._sum: Tensor | None = None
        self._weight = 0.0

    def add(self, tensor: Tensor | SparseTensor, weight: float) -> None:
        assert isinstance(tensor, Tensor)
        if self._sum is None:
            self._sum = tensor.to(torch.float64, copy=True).mul_(weight)
        else:
            self._sum.add_(tensor, alpha=weight)
        self._weight += weight

    def spread(self, mask: Mask) -> tuple[Tensor, Tensor]:
        """Sum and weight of every coordinate of a tensor whose kept values these are the sum of."""
        total, weights = torch.zeros(2, mask.size, dtype=torch.float64)
        if self._sum is not None:
            total[mask.positions] = self._sum
            weights[mask.positions] = self._weight
        return total, weights

    def mean(self) -> Tensor | None:
        if self._sum is None or self._weight == 0.0:
            return None
        return self._sum.div_(self._weight).to(self._dtype)


class _SparseSum:
    """In the space of the values while all are on one mask, spread over all coordinates after."""

    def __init__(self, like: SparseTensor) -> None:
        self._mask = like.mask
        self._values = _DenseSum(like.values)
        self._dtype = like.dtype
        self._weight = 0.0
        #: Weighted sum and weight of each coordinate, float64; None while there is one mask.
        self._spread: tuple[Tensor, Tensor] | None = None

    def add(self, item: Tensor | SparseTensor, weight: float) -> None:
        assert isinstance(item, SparseTensor)
        self._weight += weight
        if self._spread is None and item.mask == self._mask:
            self._values.add(item.values, weight)
            return
        if self._spread is None:
            self._spread = self._values.spread(self._mask)
        total, weights = self._spread
        total.index_add_(0, item.mask.positions, item.values.to(torch.float64), alpha=weight)
        weights.index_add_(
            0, item.mask.positions, torch.full_like(item.values, weight, dtype=torch.float64)
        )

    def mean(self) -> SparseTensor | None:
        if self._weight == 0.0:
            return None
        if self._spread is None:
            values = self._values.mean()
            assert values is not None
            return SparseTensor(self._mask, values)
        total, weights = self._spread
        held = Mask.of((weights > 0).reshape(self._mask.shape))
        values = total[held.positions].div_(weights[held.positions])
        return SparseTensor(held, values.to(self._dtype))


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


def split_floating(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The floating-point tensors, and the rest."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    rest = {name: tensor for name, tensor in tensors.items() if name not in floating}
    return floating, rest
