"""Which layers are sparse, by measurement: each is timed both ways on the inputs that it gets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coppice.kernels.layers import SparseLayer, dense_like, make_sparse
from coppice.kernels.step import Step, Stepper
from coppice.sparse import Mask, SparseTensor

#: Of so many timed passes the shortest counts, after one that does not.
_PASSES = 5
#: Of the steps that are timed: they are to take their time, not to train.
_RATE = 1e-9
#: Dense has to be faster by this share.
_MARGIN = 0.1
#: The line is through what the layer's mask takes and what this share of it does.
_THINNED = 7
#: Of larger layers only the first rows are timed.
_LARGEST = 2**20
#: Values do not matter, but that none of them is denormal.
_VALUE = 1e-3


@dataclass(frozen=True)
class CostCurve:
    """What one step takes in a layer (forward, backward and the weights' step) by what is kept.

    A line where the layer is sparse, up to where dense is faster, whatever its mask.
    """

    #: Seconds of a sparse layer without weights.
    fixed: float
    #: Seconds of each weight more.
    per_weight: float
    #: Seconds of a dense layer.
    dense: float

    @staticmethod
    def through(kept: int, seconds: float, fewer: int, less: float, dense: float) -> CostCurve:
        """The curve through two measured points, the first exactly."""
        slope = (seconds - less) / (kept - fewer) if kept > fewer else 0.0
        # Of noise, perhaps: a weight more never takes less, nor can none take less than nothing.
        per_weight = min(max(0.0, slope), seconds / max(1, kept))
        return CostCurve(seconds - per_weight * kept, per_weight, dense)

    def sparse(self, kept: int) -> float:
        """Seconds of a sparse layer."""
        return self.fixed + self.per_weight * kept

    @property
    def crossover(self) -> float:
        """Kept weights from which on the layer should be dense; infinite when they cost nothing."""
        left = self.dense / (1 - _MARGIN) - self.fixed
        return left / self.per_weight if self.per_weight else math.copysign(math.inf, left)

    def is_sparse(self, kept: int) -> bool:
        """Whether the layer should be sparse, which takes less memory."""
        return (1 - _MARGIN) * self.sparse(kept) < self.dense

    def seconds(self, kept: int) -> float:
        """Seconds of the layer as it should be."""
        return self.sparse(kept) if self.is_sparse(kept) else self.dense


@dataclass(frozen=True)
class Input:
    """What a layer is given, but for its values."""

    shape: torch.Size
    strides: tuple[int, ...]
    wants_gradient: bool

    def make(self) -> Tensor:
        """Such a tensor, of ones."""
        size = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        memory = torch.ones(size + 1)
        return memory.as_strided(self.shape, self.strides).requires_grad_(self.wants_gradient)


def inputs_of(
    model: nn.Module, layers: Mapping[str, SparseLayer], batch: Tensor
) -> dict[str, Input]:
    """The inputs of each layer in a forward pass; of layers that are not used there are none."""
    seen: dict[str, Input] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
            (images,) = (*arguments, *named.values())
            seen[name] = Input(images.shape, images.stride(), images.requires_grad)

        return hook

    hooks = [
        layer.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        # As in evaluation: no running statistics change, and nothing is drawn.
        with in_mode(model, training=False):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def outputs_of(model: nn.Module, batch: Tensor) -> object:
    """What the model makes of a batch in evaluation, once it has done as much in training."""
    # Not what it makes there: dropout draws in the order of memory.
    with in_mode(model, training=True), torch.random.fork_rng(devices=[]):
        model(batch)
    with in_mode(model, training=False):
        return model(batch)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in this mode, and in its own after."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def measure(
    layer: SparseLayer, given: Input, clock: Callable[[], float] = time.perf_counter
) -> CostCurve:
    """Time the layer sparse, thinned and dense, in turns. The layer itself stays as it is."""
    # One of its own: a mask keeps its positions for as long as it is there.
    first = first_rows(layer.mask)
    mask = Mask(first.shape, first.packed)
    thin_bits = np.zeros(mask.size, np.bool_)
    thin_bits[mask.positions[::_THINNED]] = True
    thin_mask = Mask.of(torch.from_numpy(thin_bits.reshape(mask.shape)))
    times = layer.mask.shape[0] / max(1, mask.shape[0])
    timed = time_layer(layer, given, [mask, thin_mask], clock)
    whole, thinned, as_dense = (seconds * times for seconds in timed)
    fewer = round(times * thin_mask.count)
    return CostCurve.through(layer.mask.count, whole, fewer, thinned, as_dense)


def time_layer(
    layer: SparseLayer, given: Input, masks: Sequence[Mask], clock: Callable[[], float]
) -> list[float]:
    """Seconds of a step in such a layer on each of the masks, and dense, which is the last."""
    shape = masks[0].shape
    dense = dense_like(layer, torch.full(shape, _VALUE))
    ways = [*(_sparse_like(layer, mask) for mask in masks), dense]
    kept = masks[0].bits.numpy()
    inputs = given.make()
    with torch.no_grad():
        scale = torch.ones_like(ways[0](inputs))
    shortest = [math.inf] * len(ways)
    for number in range(_PASSES + 1):
        for index, way in enumerate(ways):
            began = clock()
            # Not a gradient given to `backward`: for that torch imports sympy. And not of the plain
            # sum: that is one number for all outputs, which has no layout.
            (way(inputs) * scale).sum().backward()
            if way is dense:
                _step(dense.get_parameter("weight"), kept)
            seconds = clock() - began
            inputs.grad = None
            if number > 0:
                shortest[index] = min(shortest[index], seconds)
    return shortest


def _sparse_like(layer: SparseLayer, mask: Mask) -> SparseLayer:
    empty = torch.empty(mask.shape, device="meta")
    values = torch.full((mask.count,), _VALUE)
    result = make_sparse(dense_like(layer, empty), SparseTensor(mask, values))
    result.stepper = Stepper(Step(_RATE))
    result.stepper.is_armed = True
    return result


def first_rows(mask: Mask) -> Mask:
    """What is timed of a large layer, not to need the memory of the whole one, dense."""
    entries = math.prod(mask.shape[1:])
    rows = max(1, _LARGEST // max(1, entries))
    if rows >= mask.shape[0]:
        return mask
    size = rows * entries
    packed = mask.packed[: -(-size // 8)].clone()
    if size % 8:
        packed[-1] &= (1 << size % 8) - 1
    return Mask((rows, *mask.shape[1:]), packed)


@torch.no_grad()
def _step(weight: nn.Parameter, kept: NDArray[np.bool_]) -> None:
    assert weight.grad is not None
    gradient = weight.grad.numpy()
    np.multiply(gradient, kept, out=gradient)
    weight.add_(weight.grad, alpha=-_RATE)
    weight.grad = None
