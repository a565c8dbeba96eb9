"""FedNova: the mean of updates of unequal numbers of steps, each coordinate over its holders.

Wang et al. 2020: client i's update is `-η · G_i a_i` for gradients G_i and an accumulation vector
a_i. Divided by `n_i = ‖a_i‖₁` it is a direction, and the mean direction is gone as far as the mean
of the norms says: `Δ = (Σ p_i n_i / Σ p_i) · (Σ p_i Δ_i/n_i / Σ p_i)`. Norms that are all equal
leave the plain mean, to the last bit.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights

#: What becomes of a coordinate that not all clients hold.
Absent = Literal["skip", "zero"]


def accumulation_norm(
    steps: int,
    learning_rate: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
) -> float:
    """`‖a‖₁` of so many local steps, as `coppice.training.train` does them.

    That is how far they move for each unit of a gradient that stays the same: the number of steps
    for plain SGD, `Σ_k (1 - m^k) / (1 - m)` with momentum m, `Σ_k (1 - ημ)^k` with a proximal term
    or weight decay μ. Raises ValueError where the settings move nowhere.
    """
    velocity = moved = 0.0
    pull = learning_rate * (weight_decay + proximal)
    for _ in range(steps):
        velocity = momentum * velocity + 1 - pull * moved
        moved += velocity
    if not 0 < moved < math.inf:
        raise ValueError(f"{steps} steps move by {moved}: their update has no direction")
    return moved


class NovaMean:
    """A running FedNova mean, name by name; sums are float64, results of the type that came."""

    def __init__(self, absent: Absent = "skip", least_share: float = 0.0) -> None:
        """How coordinates are averaged that not all clients hold.

        Args:
            absent: "skip" averages over who holds one, "zero" counts the others as no change.
            least_share: With "skip", who holds one counts for this share of all at least, so that
                a few do not move it as if they were all; 1 is "zero".
        """
        self._least_share = 1.0 if absent == "zero" else least_share
        self._sums: dict[str, _Sum] = {}
        self._first_norm: float | None = None
        #: Updates folded so far.
        self.count = 0

    def add(self, weights: Weights, weight: float, norm: float) -> None:
        """Fold one client's update, with its weight p and the norm of its accumulation vector."""
        if not 0 < norm < math.inf:
            raise ValueError(f"the norm of an accumulation vector is {norm}")
        # Relative to the first, equal norms are exactly 1 and change no bit.
        self._first_norm = self._first_norm or norm
        relative = norm / self._first_norm
        for name, item in weights.items():
            total = self._sums.setdefault(name, _Sum(item))
            total.add(item, weight, relative)
        self.count += 1

    def value(self) -> dict[str, Tensor | SparseTensor]:
        """The mean, once and at the end, on all coordinates that anyone holds; empty without any.

        Each sum goes as its mean comes.
        """
        means = {name: self._sums.pop(name).mean(self._least_share) for name in list(self._sums)}
        return {name: mean for name, mean in means.items() if mean is not None}


class _Sum:
    """Of one tensor: numbers while all clients hold the same coordinates, one for each after."""

    def __init__(self, like: Tensor | SparseTensor) -> None:
        self._mask = like.mask if isinstance(like, SparseTensor) else None
        self._dtype = like.dtype
        #: Σ p Δ/n, of the values that the mask keeps, then of all. To -0 all can be added as it is.
        self._moves = torch.full_like(_values(like), -0.0, dtype=torch.float64)
        #: Σ p and Σ p n of each coordinate, where they differ.
        self._held: tuple[Tensor, Tensor] | None = None
        self._weight = self._steps = 0.0

    def add(self, item: Tensor | SparseTensor, weight: float, norm: float) -> None:
        if isinstance(item, SparseTensor):
            assert self._mask is not None
            if item.mask != self._mask and self._held is None:
                self._held = self._spread(self._mask)
        self._weight += weight
        self._steps += weight * norm
        if self._held is None:
            self._moves.add_(_values(item), alpha=weight / norm)
            return
        assert isinstance(item, SparseTensor)
        at, values = item.mask.positions, item.values.to(torch.float64)
        self._moves.index_add_(0, at, values, alpha=weight / norm)
        for sums, value in zip(self._held, (weight, weight * norm), strict=True):
            sums.index_add_(0, at, torch.full_like(values, value))

    def _spread(self, mask: Mask) -> tuple[Tensor, Tensor]:
        moves, weights, steps = torch.zeros(3, mask.size, dtype=torch.float64)
        moves[mask.positions] = self._moves
        weights[mask.positions] = self._weight
        steps[mask.positions] = self._steps
        self._moves = moves
        return weights, steps

    def mean(self, least_share: float) -> Tensor | SparseTensor | None:
        if self._weight == 0.0:
            return None
        if self._held is None:
            scale = self._steps / self._weight
            values = self._moves.div_(self._weight).mul_(scale).to(self._dtype)
            return values if self._mask is None else SparseTensor(self._mask, values)
        assert self._mask is not None
        weights, steps = self._held
        held = Mask.of((weights > 0).reshape(self._mask.shape))
        at = held.positions
        own = weights[at]
        divisor = own.clamp(min=least_share * self._weight)
        values = self._moves[at].div_(divisor).mul_(steps[at].div_(own))
        return SparseTensor(held, values.to(self._dtype))


def _values(item: Tensor | SparseTensor) -> Tensor:
    return item.values if isinstance(item, SparseTensor) else item
