"""Gradient descent inside the backward pass: a layer's weights step as their gradient comes."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from coppice.kernels.layout import scratch
from coppice.kernels.library import Library, UpdateArrays, address

#: Gets a gradient of a layer's weight: of its kept entries, in the order of the weights, or dense.
Watch: TypeAlias = Callable[[Tensor], None]


@dataclass(frozen=True)
class Step:
    """velocity = momentum · velocity + gradient + decay · weight + pull · (weight - first weight);
    weight -= rate · velocity.
    """

    rate: float
    momentum: float = 0.0
    decay: float = 0.0
    pull: float = 0.0


class Stepper:
    """The steps of one layer's weights, and what is remembered from one to the next.

    A layer that a model uses several times takes one step for all of them, when the last has come
    back.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        #: Sees the next step's gradient before the step is taken.
        self.watch: Watch | None = None
        #: Whether that is the dense one.
        self.watches_pruned = False
        #: Whether this is the pass back that the step is for: a model may have others of its own.
        self.is_armed = False
        #: Whether the step is due with this pass: gradients of the ones before wait for it.
        self.is_last = True
        self._velocity: Tensor | None = None
        self._anchor: Tensor | None = None
        self._uses = 0
        self._gradient: Tensor | None = None
        self._dense_gradient: Tensor | None = None

    def used(self) -> None:
        """The layer went forward once more."""
        self._uses += 1

    def arrays(self, weight: Tensor) -> UpdateArrays:
        """What the library is to do with the gradient of the pass back that now begins."""
        if self.is_only_use and self.watch is None:
            return self._update(scratch("gradient", weight.numel()), weight)
        if self._gradient is None:
            self._gradient = torch.zeros_like(weight)
        return UpdateArrays(address(self._gradient))

    @property
    def is_only_use(self) -> bool:
        """Whether the pass back that now begins is the layer's only one of this step."""
        return self._uses == 1 and self._gradient is None and self.is_last

    @property
    def needs_dense(self) -> bool:
        """Whether `add_dense` is to be called for this pass back."""
        return self.watch is not None and self.watches_pruned

    def add_dense(self, gradient: Tensor) -> None:
        """The dense gradient of one pass back."""
        old = self._dense_gradient
        self._dense_gradient = gradient if old is None else old.add_(gradient)

    def came_back(self, found: Library, weight: Tensor) -> None:
        """The pass back has ended."""
        self._uses -= 1
        if self._uses == 0 and self.is_last:
            self.settle(found, weight)

    def settle(self, found: Library, weight: Tensor) -> None:
        """Take the step if it has not been taken; passes forward that never came back are over."""
        gradient, dense = self._gradient, self._dense_gradient
        self._uses, self._gradient, self._dense_gradient = 0, None, None
        if gradient is None:
            return
        if self.watch is not None:
            self.watch(gradient if dense is None else dense)
        update = self._update(gradient, weight)
        found.take_step(address(weight), byref(update), weight.numel())

    def add(self, gradient: Tensor, weight: Tensor) -> None:
        """Take the step of what else there is in the gradient: the model has used the weights
        otherwise than by the layer, to keep them small for example.
        """
        if self._velocity is not None:
            self._velocity.add_(gradient)
        weight.add_(gradient, alpha=-self._step.rate)

    def reordered(self, reorder: Callable[[Tensor], None]) -> None:
        """The weights have moved: so does what belongs to them."""
        for tensor in (self._velocity, self._anchor, self._gradient):
            if tensor is not None:
                reorder(tensor)

    def _update(self, gradient: Tensor, weight: Tensor) -> UpdateArrays:
        step = self._step
        if step.momentum and self._velocity is None:
            self._velocity = torch.zeros_like(weight)
        if step.pull and self._anchor is None:
            self._anchor = weight.clone()
        return UpdateArrays(
            address(gradient),
            address(self._velocity),
            address(self._anchor),
            step.rate,
            step.momentum,
            step.decay,
            step.pull,
        )
