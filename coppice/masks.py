"""The masks of a model: which weights can be pruned, how dense they are, and the largest scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coppice.errors import RunFileError
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights

#: Layers whose weights can be pruned; biases and all other layers stay dense.
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
#: Entries, whole bytes of bits.
_PIECE = 2**16


def prunable_names(model: nn.Module, keep_dense: Iterable[str] = ()) -> list[str]:
    """Names of the weights that can be pruned, in the model's order.

    A weight of another type than float32 cannot, nor one that a layer of another kind shares (a
    tied embedding). Raises RunFileError when `keep_dense` names none of them.
    """
    owners: dict[nn.Parameter, list[bool]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            prunable = isinstance(module, PRUNABLE) and name == "weight"
            owners.setdefault(parameter, []).append(prunable and parameter.dtype == torch.float32)
    found = [name for name, parameter in model.named_parameters() if all(owners[parameter])]
    if unknown := set(keep_dense) - set(found):
        raise RunFileError(
            f"method.keep_dense names {min(unknown)!r}; the weights that can be pruned are "
            f"{', '.join(found)}"
        )
    return [name for name in found if name not in set(keep_dense)]


def full_masks(model: nn.Module, names: Iterable[str]) -> dict[str, Mask]:
    """Masks that keep all of the parameters of these names."""
    return {name: Mask.full(tuple(model.get_parameter(name).shape)) for name in names}


def masked(parameters: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> Weights:
    """The parameters, those that have a mask on it."""
    return {
        name: SparseTensor.take(tensor, masks[name]) if name in masks else tensor
        for name, tensor in parameters.items()
    }


def sparse_weights(weights: Weights) -> dict[str, SparseTensor]:
    """Those that are on masks."""
    return {name: item for name, item in weights.items() if isinstance(item, SparseTensor)}


def density(masks: Iterable[Mask]) -> float:
    """Share of the entries that are kept, over all masks; 1 without any entries."""
    listed = list(masks)
    size = sum(mask.size for mask in listed)
    return sum(mask.count for mask in listed) / size if size else 1.0


def remask(weights: Weights, masks: Mapping[str, Mask], values: Mapping[str, Tensor]) -> Weights:
    """The weights on new masks; what a mask newly keeps has the value in `values`, or else 0."""
    moved: dict[str, Tensor | SparseTensor] = {}
    for name, item in weights.items():
        if isinstance(item, SparseTensor):
            dense = values[name].clone() if name in values else torch.zeros(item.shape)
            dense = dense.to(item.dtype)
            dense.view(-1)[item.mask.positions] = item.values
            item = SparseTensor.take(dense, masks[name])
        moved[name] = item
    return moved


def keep_largest(scores: Mapping[str, SparseTensor], count: int) -> dict[str, Mask]:
    """The masks of the `count` largest scores of all tensors together.

    Only the ones of a score's mask compete, so no mask gains any; when all of them are no more than
    `count`, all are kept. Of equal scores the first is larger, by the order of the tensors and then
    of their entries. Memory is a few times that of the scores. Raises ValueError when one is NaN.
    """
    if not scores:
        return {}
    chosen = largest(np.concatenate([item.values.numpy() for item in scores.values()]), count)
    parts = np.split(chosen, np.cumsum([item.mask.count for item in scores.values()])[:-1])
    return {
        name: _only(item.mask, part)
        for (name, item), part in zip(scores.items(), parts, strict=True)
    }


def random_mask(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Mask:
    """A mask that keeps each entry with this probability."""
    size = math.prod(shape)
    # A piece at a time: the numbers for a large layer are more than the layer.
    parts = [
        np.packbits(
            (torch.rand(min(_PIECE, size - begin), generator=generator) < density).numpy(),
            bitorder="little",
        )
        for begin in range(0, size, _PIECE)
    ]
    return Mask(shape, torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *parts])))


def shuffled(mask: Mask, generator: torch.Generator) -> Mask:
    """A mask with as many ones, at random places."""
    bits = torch.zeros(mask.size, dtype=torch.bool)
    bits[torch.randperm(mask.size, generator=generator)[: mask.count]] = True
    return Mask.of(bits.reshape(mask.shape))


def largest(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Which scores are the `count` largest; of equal ones, the first. ValueError for a NaN."""
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    if count >= scores.size:
        return np.ones(scores.size, dtype=np.bool_)
    if count == 0:
        return np.zeros(scores.size, dtype=np.bool_)
    least = np.partition(scores, -count)[-count]
    best: NDArray[np.bool_] = scores > least
    best[np.flatnonzero(scores == least)[: count - np.count_nonzero(best)]] = True
    return best


def _only(mask: Mask, chosen: NDArray[np.bool_]) -> Mask:
    """The mask, of its ones those that are chosen."""
    bits = torch.zeros(mask.size, dtype=torch.bool)
    bits[mask.positions[torch.from_numpy(chosen)]] = True
    return Mask.of(bits.reshape(mask.shape))
