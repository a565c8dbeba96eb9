"""The lottery-ticket checks on the server: masks of a pruned model, and weights that are new."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from coppice.domain import derive_seed
from coppice.errors import RunFileError
from coppice.masked_averaging import MaskedAveraging, State
from coppice.masks import masked, shuffled
from coppice.method import InitContext
from coppice.methods.lottery.settings import Settings
from coppice.model_server import first_model
from coppice.sparse import Mask
from coppice.tensors import buffers_of, masks_of, parameters_of


class Server(MaskedAveraging):
    """Frankle and Carbin 2019; the masks stay as they are."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings

    def init(self, context: InitContext) -> State:
        """The weights that the settings say, on masks like those of the warm start.

        Raises RunFileError when there is no warm start or none with masks, InvalidPayload when it
        is another model's.
        """
        masks = _masks(context)
        # Whatever becomes of its values, the file must fit the run's model.
        model = first_model(context)
        if self._settings.weights == "original":
            model = context.make_model()
        elif self._settings.weights == "new":
            model = context.make_model(seed=derive_seed(context.seed, "lottery", "weights"))
        if self._settings.mask == "random":
            generator = torch.Generator()
            generator.manual_seed(derive_seed(context.seed, "lottery", "mask"))
            masks = {name: shuffled(mask, generator) for name, mask in masks.items()}
        return State(masked(parameters_of(model), masks), buffers_of(model))


def _masks(context: InitContext) -> Mapping[str, Mask]:
    if context.warm_start is None:
        raise RunFileError(
            'method "lottery" trains on the masks of a pruned model: give its file as warm_start'
        )
    masks = masks_of(context.warm_start)
    if not masks:
        raise RunFileError(
            'method "lottery" trains on the masks of a pruned model, and the one in warm_start has '
            "none: give the file of a run that pruned"
        )
    return masks
