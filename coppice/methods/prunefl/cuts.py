"""The models of a fleet: the union of what all devices keep, and the cuts that they held last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from coppice.masks import remask
from coppice.methods.prunefl.order import Order, cut, nearest
from coppice.tensors import Weights

#: Cuts that are named: more would cost evaluations and files that nobody compares.
MOST_CUTS = 5


class Cuts(Mapping[str, Weights]):
    """The union as "global" and cuts by their density, "cut-0.127", from the sparsest.

    Cuts as dense to three digits are one tier, which the densest of them stands for. Of more tiers
    than `MOST_CUTS` the outermost are named and, evenly by rank, some between. A cut is made when
    it is asked for, so only one need be in memory.
    """

    def __init__(self, union: Weights, order: Order, held: Iterable[Mapping[str, int]]) -> None:
        """`held` are the weights of each layer that devices keep, in this order or an older one."""
        self._union = union
        self._order = order
        size = sum(layer.size for layer in order.values())
        counts = {tuple(nearest(order, kept).values()) for kept in held}
        tiers = {
            f"cut-{sum(kept) / size:.3g}": dict(zip(order, kept, strict=True))
            for kept in sorted(counts, key=lambda kept: (sum(kept), kept))
        }
        self._tiers = {name: tiers[name] for name in _spread(list(tiers))}

    def __getitem__(self, name: str) -> Weights:
        """One of the models."""
        if name == "global":
            return self._union
        return remask(self._union, cut(self._order, self._tiers[name]), {})

    def __iter__(self) -> Iterator[str]:
        """The union's name comes first."""
        yield "global"
        yield from self._tiers

    def __len__(self) -> int:
        """How many models there are."""
        return 1 + len(self._tiers)


def _spread(names: list[str]) -> list[str]:
    if len(names) <= MOST_CUTS:
        return names
    last = MOST_CUTS - 1
    return [names[rank * (len(names) - 1) // last] for rank in range(MOST_CUTS)]
