"""The one order of each layer's weights in which all devices keep them, and the masks cut from it.

A device keeps the first `k_l` of layer l, so inside a layer the masks of any two devices are
nested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coppice.methods.prunefl.reconfigure import protected_core
from coppice.sparse import Mask, SparseTensor


@dataclass(frozen=True)
class LayerOrder:
    """All entries of one weight, those first that are kept the longest.

    The largest of each output unit, then the rest of the protected core, both by magnitude, then
    the candidates by importance. Units without a weight in the core have none to begin with.
    """

    shape: tuple[int, ...]
    #: Row-major positions, one-dimensional; int32 where that is enough.
    positions: Tensor
    #: Those that no cut goes without: one for each output unit that the core has weights of.
    least: int
    #: Those of the protected core.
    core: int

    @property
    def size(self) -> int:
        """All entries."""
        return self.positions.numel()


#: By the name of the parameter.
Order = Mapping[str, LayerOrder]


def shared_order(
    weights: Mapping[str, SparseTensor], importance: Mapping[str, Tensor], prune_share: float
) -> dict[str, LayerOrder]:
    """The order of each layer; of equal entries the first comes first.

    Args:
        weights: The values on their present masks.
        importance: G of every entry, not negative, of the weight's shape.
        prune_share: As for `reconfigure`: what of a layer's ones the core does not protect.
    """
    return {name: _order(item, importance[name], prune_share) for name, item in weights.items()}


def cut(order: Order, kept: Mapping[str, int]) -> dict[str, Mask]:
    """The masks of the first `kept` entries of each layer.

    Raises ValueError for other names, and for fewer than a weight of each output unit or more than
    there are.
    """
    if unlike := order.keys() ^ kept.keys():
        raise ValueError(f"a cut of other parameters: {min(unlike)!r} is in one of the two only")
    return {name: _cut(name, layer, kept[name]) for name, layer in order.items()}


def nearest(order: Order, kept: Mapping[str, int]) -> dict[str, int]:
    """The counts of a cut of this order that are nearest to those of one of an older order."""
    return {name: min(max(layer.least, kept[name]), layer.size) for name, layer in order.items()}


def _cut(name: str, layer: LayerOrder, kept: int) -> Mask:
    if not layer.least <= kept <= layer.size:
        raise ValueError(f"a cut of {name} keeps {kept}, not {layer.least} to {layer.size}")
    bits = torch.zeros(layer.size, dtype=torch.bool)
    bits[layer.positions[:kept]] = True
    return Mask.of(bits.reshape(layer.shape))


def _order(weight: SparseTensor, importance: Tensor, prune_share: float) -> LayerOrder:
    core = protected_core(weight, prune_share)
    magnitudes = weight.dense().abs().reshape(-1).numpy()
    inside = _descending(np.flatnonzero(core), magnitudes)
    # Descending, so the first of a unit is its largest.
    units = inside // max(1, core.size // max(1, weight.shape[0]))
    first = np.zeros(inside.size, dtype=np.bool_)
    first[np.unique(units, return_index=True)[1]] = True
    gains = importance.detach().reshape(-1).numpy()
    outside = _descending(np.flatnonzero(~core), gains)
    positions = np.concatenate([inside[first], inside[~first], outside])
    kind = np.int32 if core.size < 2**31 else np.int64
    return LayerOrder(
        shape=weight.shape,
        positions=torch.from_numpy(positions.astype(kind)),
        least=int(np.count_nonzero(first)),
        core=inside.size,
    )


def _descending(positions: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    return positions[np.argsort(-scores[positions], kind="stable")]
