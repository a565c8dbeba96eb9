"""SNIP on the server: a dense round, then the weights that the loss is most sensitive to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coppice.domain import ClientId, Participant
from coppice.errors import RunFileError
from coppice.masked_averaging import MaskedAveraging, State, unpruned_state
from coppice.masks import keep_largest, sparse_weights
from coppice.method import InitContext, Task
from coppice.methods.snip.settings import Settings
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights

#: Of the dense parameters, in training: the model's own, those received, gradients, the delta.
_COPIES = 4


def dense_training_bytes(parameters: Weights) -> int:
    """Memory that a client needs at least to train the parameters dense.

    Four times their size: the model's own, those received, gradients and the delta. What the layers
    hold between them (activations), and the program, come on top; the server does not know them.
    """
    sizes = (
        item.mask.size * item.dtype.itemsize
        if isinstance(item, SparseTensor)
        else item.numel() * item.dtype.itemsize
        for item in parameters.values()
    )
    return _COPIES * sum(sizes)


class Server(MaskedAveraging):
    """Lee et al. 2019, as the released code of PruneFL has it in a federation."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings

    def init(self, context: InitContext) -> State:
        """The first model, everything kept."""
        return unpruned_state(context, self._settings.keep_dense)

    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        """Everybody the same task; before anything is pruned, who can train the dense model.

        Raises RunFileError when nobody can.
        """
        if state.rounds == 0:
            cohort = _able(cohort, dense_training_bytes(state.parameters))
        return super().plan(state, cohort, round_number)

    def next_masks(
        self, state: State, delta: Weights, moved: State, round_number: int
    ) -> Mapping[str, Mask] | None:
        """After the first round, the largest |w · g| of all tensors together.

        w is what the round began with and g its mean gradient, summed over the steps: the mean
        update by the learning rate. This scales all scores alike, so it is left out.
        """
        if state.rounds:
            return None
        changes = sparse_weights(delta)
        scores = {
            name: SparseTensor(item.mask, (item.values * changes[name].values).abs_())
            for name, item in sparse_weights(state.parameters).items()
        }
        size = sum(item.mask.size for item in scores.values())
        return keep_largest(scores, round(self._settings.density * size))


def _able(cohort: Sequence[Participant], needed_bytes: int) -> list[Participant]:
    able = [item for item in cohort if item.capability.memory_bytes >= needed_bytes]
    if cohort and not able:
        most = max(cohort, key=lambda item: item.capability.memory_bytes)
        raise RunFileError(
            "SNIP scores weights by a round of the dense model, for which a client needs "
            f"{_mebibytes(needed_bytes)} of memory; of the {len(cohort)} in this round, "
            f"{most.client_id} has most: {_mebibytes(most.capability.memory_bytes)}. "
            "Let a device with more join, or take a smaller model"
        )
    return able


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
