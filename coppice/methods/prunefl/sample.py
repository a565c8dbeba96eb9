"""Which entries a device reports the importance of: every so-manieth of each layer.

A report of every weight takes as long as a dense update and as much memory. A sample is as good on
average, since an entry's importance is the mean over who reported it (`estimate`): from a random
first entry on, all entries are reported equally often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coppice.masks import sparse_weights
from coppice.sparse import Item
from coppice.tensors import Weights

#: Of fewer entries than one in so many a report is not worth its round.
MOST_EVERY = 1024
#: Random first entries are below this; far above MOST_EVERY, so that each is as likely.
_FIRSTS = 2**31


@dataclass(frozen=True)
class Sample:
    """The entries of one report."""

    #: One entry in so many, or fewer, of each layer; 1 is all.
    every: int
    #: Where it begins, of each layer modulo its stride.
    first: int

    def __post_init__(self) -> None:
        if not (1 <= self.every <= MOST_EVERY and 0 <= self.first < _FIRSTS):
            raise ValueError(f"no sample is of every {self.every}th entry from {self.first} on")

    @staticmethod
    def draw(every: int, generator: torch.Generator) -> Sample:
        """One of the samples of this size, each as likely; nothing is drawn for the only one."""
        first = 0 if every == 1 else int(torch.randint(_FIRSTS, (), generator=generator))
        return Sample(every, first)

    def of(self, gradient: Tensor) -> Tensor:
        """The entries of a layer's gradient, of `reported_shape`; of all, it is the gradient."""
        if self.every == 1:
            return gradient
        (count,) = reported_shape(gradient.shape, self.every)
        taken = self.entries(gradient)
        return functional.pad(taken, (0, count - len(taken)))

    def entries(self, layer: Tensor) -> Tensor:
        """The entries of a layer, in a row: a view, if the layer is contiguous."""
        stride = _stride(layer.shape, self.every)
        # A layer of fewer entries has one of them reported all the same.
        first = self.first % max(1, min(stride, layer.numel()))
        return layer.reshape(-1)[first::stride]

    def to_tensors(self) -> dict[str, Tensor]:
        """To report."""
        return {"every": torch.tensor(self.every), "first": torch.tensor(self.first)}

    @staticmethod
    def from_tensors(
        group: Mapping[str, Tensor], values: Mapping[str, Tensor], weights: Weights
    ) -> Sample | None:
        """As it was reported with these values; None when they cannot be of such a sample."""
        try:
            sample = Sample(int(group["every"]), int(group["first"]))
        except ValueError:
            return None
        fits = all(
            tuple(item.shape) == reported_shape(weights[name].shape, sample.every)
            for name, item in values.items()
        )
        return sample if fits else None


def reported_shape(shape: tuple[int, ...], every: int) -> tuple[int, ...]:
    """What a layer's report is like: in a row, the last one 0 where the sample ends before."""
    return tuple(shape) if every == 1 else (-(-math.prod(shape) // _stride(shape, every)),)


def report_of(weights: Weights, every: int) -> dict[str, Mapping[str, Item]]:
    """What a report of such a sample looks like; it holds no values."""
    values = {
        name: torch.empty(reported_shape(item.shape, every), device="meta")
        for name, item in sparse_weights(weights).items()
    }
    return {"importance": values, "base": {"importance": torch.zeros((), dtype=torch.float64)}}


def _stride(shape: tuple[int, ...], every: int) -> int:
    # With a factor in common, all output units would report on the same few inputs.
    unit = max(1, math.prod(shape[1:]))
    stride = every
    while math.gcd(stride, unit) > 1:
        stride += 1
    return stride
