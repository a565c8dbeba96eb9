"""Parts of a round on random masks, to see what they take here before any real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from coppice.kernels.choice import first_rows, inputs_of, time_layer
from coppice.kernels.layers import SparseLayer
from coppice.kernels.placement import Placement, sparse_layers
from coppice.layer_fit import LayerFit, LayerSample, fit_layer_cost
from coppice.masks import random_mask
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, buffers_of, parameters_of

#: Densities on which each layer is timed.
LAYER_DENSITIES = (0.5, 0.2, 0.05, 0.01)
#: Of all layers while the inputs of each are looked up, and while it is timed.
_DENSITY = 0.05


def random_weights(
    model: nn.Module, names: Collection[str], density: float, generator: torch.Generator
) -> Weights:
    """Weights with which the model can train, those of these names on random masks.

    A model without memory (`coppice.app.bare_model`) will do: its other parameters and buffers then
    are what norms and biases begin with.
    """
    weights: dict[str, Tensor | SparseTensor] = {}
    for name, tensor in (parameters_of(model) | buffers_of(model)).items():
        if name in names:
            mask = random_mask(tuple(tensor.shape), density, generator)
            weights[name] = SparseTensor(mask, _values(mask, generator))
        elif tensor.is_meta:
            weights[name] = _start(name, tensor)
        else:
            weights[name] = tensor.detach().clone()
    return weights


def time_layers(
    placement: Placement,
    names: Collection[str],
    batch: Tensor,
    generator: torch.Generator,
    clock: Callable[[], float],
) -> Iterator[tuple[str, LayerFit]]:
    """What a step costs in each of these layers, one after the other; it takes a while.

    Layers that can only be dense, and those that the model does not use, have no cost of their own:
    they are part of the rest of the step.
    """
    placement.assign(random_weights(placement.model, names, _DENSITY, generator), None, whole=True)
    layers = dict(sparse_layers(placement.model))
    inputs = inputs_of(placement.model, layers, batch)
    for name, given in inputs.items():
        layer = layers[name]
        timed = first_rows(layer.mask)
        masks = [random_mask(timed.shape, density, generator) for density in LAYER_DENSITIES]
        seconds = time_layer(layer, given, masks, clock)
        yield name, _fit(layer, masks, seconds)


def _fit(layer: SparseLayer, masks: Sequence[Mask], seconds: Sequence[float]) -> LayerFit:
    """The cost of the whole layer, from its first rows; the last time is that of a dense one."""
    times = layer.mask.size / max(1, masks[0].size)
    samples = [
        LayerSample(kept=round(times * mask.count), seconds=times * second)
        for mask, second in zip(masks, seconds[:-1], strict=True)
    ]
    return fit_layer_cost(samples, times * seconds[-1], layer.mask.size)


def _values(mask: Mask, generator: torch.Generator) -> Tensor:
    inputs = mask.count / max(1, mask.shape[0])
    return torch.empty(mask.count).normal_(
        0.0, 1 / math.sqrt(max(1.0, inputs)), generator=generator
    )


def _start(name: str, like: Tensor) -> Tensor:
    is_scale = name.endswith(("weight", "running_var"))
    return torch.full(tuple(like.shape), float(is_scale)).to(like.dtype)
