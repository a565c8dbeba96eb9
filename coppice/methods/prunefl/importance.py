"""What weights are worth, folded on the server: squared gradients, weighed by examples.

In the released code there are two channels: kept weights' gradients are read off the updates, and
devices report pruned ones'. Either sum is divided by the examples that it stands for, so that
neither outweighs the other where not every device of the earlier rounds is there to report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coppice.method import Update
from coppice.sparse import SparseTensor
from coppice.tensors import Weights, dense_group, masks_of, weight_group

_MOST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Importance:
    """Sums over the rounds since the last reconfiguration."""

    #: Of kept weights, float32, in the order of the ones of their masks.
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    #: Of all parameters that are never pruned, together.
    base: float = 0.0
    #: Examples that both stand for.
    mass: float = 0.0


class Tally:
    """Folds what the updates of one round say into what was gathered before."""

    def __init__(self, gathered: Importance, weights: Weights) -> None:
        """`weights` are those that the updates started from."""
        self._masks = masks_of(weights)
        self._pruned_masks = {name: mask.complement() for name, mask in self._masks.items()}
        self._kept = {
            name: gathered.kept[name].to(torch.float64)
            if name in gathered.kept
            else torch.zeros(mask.count, dtype=torch.float64)
            for name, mask in self._masks.items()
        }
        self._base, self._mass = gathered.base, gathered.mass
        self._pruned: dict[str, Tensor] = {}
        self._pruned_mass = 0.0

    def add_delta(self, update: Update, learning_rate: float) -> None:
        """Read the sum of the gradients off an update: n · (Δw/η)², for plain SGD only."""
        for name, item in weight_group(update.payload, "delta").items():
            values = item.values if isinstance(item, SparseTensor) else item
            gradient = values.to(torch.float64) / learning_rate
            if name in self._masks:
                self._kept[name].addcmul_(gradient, gradient, value=update.num_examples)
            else:
                self._base += update.num_examples * float(gradient.square().sum())
        self._mass += update.num_examples

    def add_report(self, update: Update) -> None:
        """Take what a device reports: of its pruned weights, of its kept ones, or of all.

        What cannot be a sum of squares counts as 0: no device can stop a run with it.
        """
        base = dense_group(update.payload, "base")
        for name, item in weight_group(update.payload, "importance").items():
            if not isinstance(item, SparseTensor):
                self._add_kept(SparseTensor.take(item, self._masks[name]), name)
                self._add_pruned(SparseTensor.take(item, self._pruned_masks[name]), name)
            elif item.mask == self._masks[name]:
                self._add_kept(item, name)
            else:
                self._add_pruned(item, name)
        if "mass" in base:
            # No device has seen more examples than all have together.
            self._pruned_mass += min(max(0.0, float(base["mass"])), self._mass)
            return
        self._base += min(max(0.0, float(base["importance"])), _MOST)
        self._mass += update.num_examples
        self._pruned_mass += update.num_examples

    def _add_kept(self, item: SparseTensor, name: str) -> None:
        self._kept[name].add_(item.values.clamp(min=0))

    def _add_pruned(self, item: SparseTensor, name: str) -> None:
        total = self._pruned.setdefault(name, torch.zeros(item.mask.count, dtype=torch.float64))
        total.add_(item.values.clamp(min=0))

    def gathered(self) -> Importance:
        """The sums, to go on with in the next round."""
        kept = {name: _bounded(values) for name, values in self._kept.items()}
        return Importance(kept, self._base, self._mass)

    def importance(self) -> tuple[dict[str, Tensor], float]:
        """G of every weight, float32 and dense, and of all that is never pruned, per example."""
        dense: dict[str, Tensor] = {}
        for name, mask in self._masks.items():
            flat = torch.zeros(mask.size)
            if self._mass:
                flat[mask.positions] = _bounded(self._kept[name] / self._mass)
            if self._pruned_mass and name in self._pruned:
                pruned = _bounded(self._pruned[name] / self._pruned_mass)
                flat[self._pruned_masks[name].positions] = pruned
            dense[name] = flat.reshape(mask.shape)
        return dense, self._base / self._mass if self._mass else 0.0


def _bounded(sums: Tensor) -> Tensor:
    """As float32, which has no room for all that devices may claim."""
    return sums.clamp(max=_MOST).to(torch.float32)
