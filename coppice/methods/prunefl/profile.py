"""What the shared order is worth, at a few counts of kept weights per layer: a device's terms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coppice.methods.prunefl.order import LayerOrder, Order
from coppice.section import Section

#: Points of the grid inside the core and beyond it: few, so that devices share what they are sent.
LEVELS = 16
STEPS_BEYOND = 16

MOST_POINTS = 1024
#: No sum of float32 importances is as large, and sums of such sums stay finite.
MOST_GAIN = 1e100


@dataclass(frozen=True, kw_only=True)
class LayerProfile(Section):
    """One layer's choice of counts."""

    #: How many weights may be kept, never fewer than before.
    kept: tuple[int, ...]
    #: Sum of the importance of as many, from the first of the order on.
    gains: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.kept) == len(self.gains) <= MOST_POINTS:
            raise ValueError(
                f"{len(self.kept)} counts and {len(self.gains)} gains; needed are as many of each, "
                f"1 to {MOST_POINTS}"
            )
        if self.kept[0] < 0 or any(a > b for a, b in pairwise(self.kept)):
            raise ValueError("the counts of kept weights fall, or begin below 0")
        # NaN is in no order.
        rises = all(a <= b for a, b in pairwise(self.gains))
        if not (rises and self.gains[0] >= 0 and self.gains[-1] <= MOST_GAIN):
            raise ValueError("the gains fall, begin below 0 or are too large")

    def up_to(self, count: int) -> LayerProfile:
        """The same without larger counts."""
        points = bisect_right(self.kept, count)
        return LayerProfile(kept=self.kept[:points], gains=self.gains[:points])


@dataclass(frozen=True, kw_only=True)
class Profile(Section):
    """What kept weights are worth to the fleet: all that a device needs to choose its own.

    The first `levels` counts of each layer cut into the protected core, all layers in proportion
    (layers go through them together); the one after them is the core, and from there on each layer
    is chosen for itself.
    """

    layers: Mapping[str, LayerProfile]
    levels: int
    #: What the parameters are worth that are never pruned.
    base_gain: float

    def __post_init__(self) -> None:
        if not 0 <= self.base_gain <= MOST_GAIN:
            raise ValueError(f"the importance of what is never pruned is {self.base_gain}")
        points = min((len(layer.kept) for layer in self.layers.values()), default=0)
        if not 0 <= self.levels < points:
            raise ValueError(f"{self.levels} levels do not fit layers of {points} counts")

    @property
    def least(self) -> dict[str, int]:
        """The fewest weights of each layer that may be kept."""
        return {name: layer.kept[0] for name, layer in self.layers.items()}

    def up_to(self, counts: Mapping[str, int]) -> Profile:
        """The same without counts beyond these; all of the core stays."""
        return replace(
            self,
            layers={
                name: layer.up_to(max(counts[name], layer.kept[self.levels]))
                for name, layer in self.layers.items()
            },
        )

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """ValueError when it is not of a model with these weights."""
        if unlike := sizes.keys() ^ self.layers.keys():
            raise ValueError(f"a profile of other parameters: {min(unlike)!r} differs")
        for name, layer in self.layers.items():
            if layer.kept[-1] > sizes[name]:
                raise ValueError(f"{name} has {sizes[name]} weights, not {layer.kept[-1]}")


def profile_of(
    order: Order,
    importance: Mapping[str, Tensor],
    base_gain: float,
    levels: int = LEVELS,
    beyond: int | None = STEPS_BEYOND,
) -> Profile:
    """The profile of an order by the importance that it was made with.

    Args:
        order: Of all layers.
        importance: G of every entry.
        base_gain: Sum of G over what is never pruned.
        levels: Counts inside the core.
        beyond: Counts from the core, which is one more, to all weights; None takes them all.
    """
    shares = _shares(order, levels)
    return Profile(
        layers={
            name: _layer(layer, importance[name], shares, beyond) for name, layer in order.items()
        },
        levels=levels,
        base_gain=base_gain,
    )


def _shares(order: Order, levels: int) -> NDArray[np.float64]:
    """Shares of the cores, geometric, from where every layer is at its least."""
    least = min((max(1, layer.least) / max(1, layer.core) for layer in order.values()), default=1.0)
    shares: NDArray[np.float64] = np.geomspace(min(1.0, least), 1.0, levels + 1)[:-1]
    return shares


def _layer(
    layer: LayerOrder, importance: Tensor, shares: NDArray[np.float64], beyond: int | None
) -> LayerProfile:
    levels = np.clip(np.floor(shares * layer.core).astype(np.int64), layer.least, layer.core)
    kept = np.concatenate([levels, _grid(layer.core, layer.size, beyond)])
    gains = importance.detach().reshape(-1).numpy()[layer.positions.numpy()]
    sums = np.concatenate([[0.0], np.cumsum(gains, dtype=np.float64)])
    return LayerProfile(kept=tuple(kept.tolist()), gains=tuple(sums[kept].tolist()))


def _grid(core: int, size: int, count: int | None) -> NDArray[Any]:
    """From `core` to `size`, both of them."""
    if count is None or size - core <= count:
        return np.arange(core, size + 1)
    counts = np.geomspace(max(1, core), size, count + 1).round().astype(np.int64)
    return np.unique(np.concatenate([[core], counts[1:]]))
