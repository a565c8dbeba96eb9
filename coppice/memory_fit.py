"""What a round's peak of memory depends on, from peaks that were measured at a few densities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coppice.device_cost import LayerMemory, StepMemory

#: Bytes that a round holds for a kept weight at its peak, by where they come from: received, in the
#: model, its gradient, the difference, and that as it is sent.
_VALUES = 5 * 4
#: A sparse layer's index, of convolutions and of linear layers.
_INDEX, _LINEAR_INDEX = 8, 2
_LINEAR_DIMENSIONS = 2
#: A dense layer has its whole weight and its whole gradient.
_DENSE = 2 * 4
#: Measured peaks say by how much more (or less) than that it is, within these bounds.
_LEAST_FACTOR, _MOST_FACTOR = 0.5, 2.0


@dataclass(frozen=True, kw_only=True)
class PeakSample:
    """One round whose peak was measured."""

    #: Kept weights by the name of the parameter.
    ones: Mapping[str, int]
    #: Layers that were dense.
    dense: Collection[str]
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """A memory model and how well it describes the samples that it comes from."""

    memory: StepMemory
    #: The largest difference to a sample, as a share of it.
    max_relative_residual: float


def layer_memory(shape: Sequence[int], factor: float = 1.0) -> LayerMemory:
    """What a layer of this weight adds to a round's peak, before anything was measured."""
    index = _LINEAR_INDEX if len(shape) == _LINEAR_DIMENSIONS else _INDEX
    return LayerMemory(
        fixed_bytes=0.0,
        bytes_per_weight=factor * (_VALUES + index),
        dense_bytes=factor * _DENSE * math.prod(shape),
        dense_bytes_per_weight=factor * (_VALUES - _DENSE),
    )


def fit_memory(samples: Sequence[PeakSample], shapes: Mapping[str, Sequence[int]]) -> MemoryFit:
    """The memory model that is nearest to the peaks, and below none of them.

    All layers' bytes are those of `layer_memory` times one factor, beside a base. A single sample
    cannot tell the two apart: then the factor is the largest. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("a fit needs measured peaks; there are none")
    unit = StepMemory(
        base_bytes=0.0, layers={name: layer_memory(shape) for name, shape in shapes.items()}
    )
    units = np.array([unit.peak_bytes(sample.ones, sample.dense) for sample in samples])
    peaks = np.array([float(sample.peak_bytes) for sample in samples])
    factor = _MOST_FACTOR
    if np.ptp(units) > 0:
        factor = float(np.clip(np.polyfit(units, peaks, 1)[0], _LEAST_FACTOR, _MOST_FACTOR))
    # A promise that was broken once would be broken again: it is the base that gives.
    base = max(0.0, float((peaks - factor * units).max()))
    memory = StepMemory(
        base_bytes=base,
        layers={name: layer_memory(shape, factor) for name, shape in shapes.items()},
    )
    residuals = np.abs(base + factor * units - peaks) / peaks
    return MemoryFit(memory=memory, max_relative_residual=float(residuals.max()))
