"""Iterative magnitude pruning on the server: after some of the rounds, the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping

from coppice.masked_averaging import MaskedAveraging, State, unpruned_state
from coppice.masks import keep_largest, sparse_weights
from coppice.method import InitContext
from coppice.methods.iterative.settings import Settings
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights


class Server(MaskedAveraging):
    """Han et al. 2015, with the schedule of the comparison in PruneFL (Jiang et al. 2022)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings

    def init(self, context: InitContext) -> State:
        """The first model, everything kept."""
        return unpruned_state(context, self._settings.keep_dense)

    def next_masks(
        self, state: State, delta: Weights, moved: State, round_number: int
    ) -> Mapping[str, Mask] | None:
        """When a step is due, the largest magnitudes of all tensors together.

        A round that failed is made up for: the next one takes its step, too.
        """
        weights = sparse_weights(moved.parameters)
        size = sum(item.mask.size for item in weights.values())
        count = self._settings.kept_after(round_number, size)
        if count == sum(item.mask.count for item in weights.values()):
            return None
        magnitudes = {
            name: SparseTensor(item.mask, item.values.abs()) for name, item in weights.items()
        }
        return keep_largest(magnitudes, count)
