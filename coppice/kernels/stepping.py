"""The sparse layers of a model while it trains: their weights step in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from coppice.kernels.layers import SparseLayer
from coppice.kernels.layout import forget_scratch
from coppice.kernels.library import library
from coppice.kernels.placement import sparse_layers
from coppice.kernels.step import Step, Stepper
from coppice.sparse import SparseTensor


@dataclass(frozen=True)
class Watch:
    """Sees the gradients of the parameters before the steps, by name and in any order.

    The memory of a gradient is the next one's.
    """

    see: Callable[[str, Tensor | SparseTensor], None]
    #: Of parameters that have a mask: all of the gradient, or what the mask keeps.
    pruned_too: bool = False
    #: Only the gradients of the last step, or those of each.
    last_only: bool = False


class Stepping:
    """What a training loop says to the layers that step by themselves."""

    def __init__(self, layers: dict[str, SparseLayer]) -> None:
        self._layers = layers
        #: Names of the parameters that need nobody else to step.
        self.names = layers.keys()

    def watch(self, watch: Watch | None) -> None:
        """Show the gradients of the next step."""
        for name, layer in self._layers.items():
            assert layer.stepper is not None
            layer.stepper.watch = None if watch is None else _shown(watch, name, layer)
            layer.stepper.watches_pruned = watch is not None and watch.pruned_too

    @contextmanager
    def going_back(self, *, is_last: bool = True) -> Iterator[None]:
        """The pass back by which the weights step, or one of several that do so with the last.

        By others, of the model's own, they do not.
        """
        for layer in self._layers.values():
            assert layer.stepper is not None
            layer.stepper.is_armed, layer.stepper.is_last = True, is_last
        yield
        for layer in self._layers.values():
            _settle(layer)


def _settle(layer: SparseLayer) -> None:
    found, stepper, weight = library(), layer.stepper, layer.weight
    assert found is not None
    assert stepper is not None
    stepper.is_armed = False
    if not stepper.is_last:
        return
    stepper.settle(found, weight.detach())
    if weight.grad is not None:
        stepper.add(weight.grad, weight.detach())


@contextmanager
def stepping(model: nn.Module, step: Step) -> Iterator[Stepping]:
    """Let the model's sparse layers take this step in each backward pass."""
    layers = dict(sparse_layers(model))
    for layer in layers.values():
        layer.stepper = Stepper(step)
    try:
        yield Stepping(layers)
    finally:
        for layer in layers.values():
            layer.stepper = None
        forget_scratch()


def _shown(watch: Watch, name: str, layer: SparseLayer) -> Callable[[Tensor], None]:
    def show(gradient: Tensor) -> None:
        watch.see(name, gradient if watch.pruned_too else layer.in_order(gradient))

    return show
