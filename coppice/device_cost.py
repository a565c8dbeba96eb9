"""What a round costs one device, in seconds and in bytes, as a function of the kept weights.

    T(M, e) = c + e · (t + Σ_l compute_l(a_l)) + s · Σ_l a_l

for e local steps and `a_l` kept weights of layer l: computing is paid for at each step, the link
once a round. A layer is sparse or, where that is clearly faster, dense, and its time and its memory
are both those of the way it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from coppice.batch_parts import BatchMemory
from coppice.section import Section

Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bits: TypeAlias = NDArray[np.bool_]

#: A layer is dense where that is faster by this share: sparse takes less memory.
DENSE_MARGIN = 0.1

#: No device says more: sums of such numbers stay finite.
MOST_SECONDS = 1e9
MOST_BYTES = 2**60
MOST_POINTS = 64


@dataclass(frozen=True, kw_only=True)
class LayerCost(Section):
    """Seconds of one step in a layer (forward, backward and the weights' step), by what is kept.

    A sparse layer's are a table with straight lines between its points, and the first and last
    value beyond them: a line is two points.
    """

    #: Kept weights, ascending; empty where the layer can only be dense.
    kept: tuple[int, ...]
    #: Seconds of the sparse layer at each, never less than before.
    sparse_seconds: tuple[float, ...]
    #: Seconds of the dense layer, whatever is kept.
    dense_seconds: float

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.sparse_seconds) or len(self.kept) > MOST_POINTS:
            raise ValueError(
                f"{len(self.kept)} counts and {len(self.sparse_seconds)} seconds are no table of "
                f"at most {MOST_POINTS} points"
            )
        if any(kept < 0 for kept in self.kept) or any(a >= b for a, b in pairwise(self.kept)):
            raise ValueError("the counts of kept weights do not ascend from 0 or more")
        if any(a > b for a, b in pairwise(self.sparse_seconds)):
            raise ValueError("a layer takes less time for more weights")
        for seconds in (*self.sparse_seconds, self.dense_seconds):
            _check("a step in a layer takes", seconds, MOST_SECONDS, "seconds")

    @staticmethod
    def line(fixed: float, per_weight: float, dense: float, size: int) -> LayerCost:
        """A layer of `size` weights whose sparse time is a line in those that are kept."""
        whole = fixed + per_weight * size
        return LayerCost(kept=(0, size), sparse_seconds=(fixed, whole), dense_seconds=dense)

    def times(self, factor: float) -> LayerCost:
        """The cost where everything takes so many times as long."""
        return LayerCost(
            kept=self.kept,
            sparse_seconds=tuple(factor * seconds for seconds in self.sparse_seconds),
            dense_seconds=factor * self.dense_seconds,
        )

    def sparse(self, kept: Counts) -> Floats:
        """Seconds of the sparse layer; infinite where it can only be dense."""
        if not self.kept:
            return np.full(np.shape(kept), math.inf)
        return np.interp(kept, self.kept, self.sparse_seconds)

    def is_dense(self, kept: Counts) -> Bits:
        """Where the layer is dense (`coppice.kernels.choice.CostCurve` decides the same)."""
        dense: Bits = (1 - DENSE_MARGIN) * self.sparse(kept) >= self.dense_seconds
        return dense

    def seconds(self, kept: Counts) -> Floats:
        """Seconds of the layer as it is.

        Not simply the smaller of the two: within the margin a layer stays sparse although dense
        would be faster, so just before it turns dense it takes up to a ninth more.
        """
        return np.where(self.is_dense(kept), self.dense_seconds, self.sparse(kept))


@dataclass(frozen=True, kw_only=True)
class RoundCost(Section):
    """Seconds of a round."""

    #: What a round takes besides steps and kept weights: waiting, dense values on the link (c).
    round_seconds: float
    #: What a step takes besides the layers that can be pruned (t).
    step_seconds: float
    #: What one kept weight adds to a round on the link, both ways (s).
    seconds_per_value: float
    #: By the name of the parameter.
    layers: Mapping[str, LayerCost]

    def __post_init__(self) -> None:
        for name in ("round_seconds", "step_seconds", "seconds_per_value"):
            _check(f"{name} is", getattr(self, name), MOST_SECONDS, "seconds")

    def times(self, factor: float) -> RoundCost:
        """The cost where everything takes so many times as long."""
        return RoundCost(
            round_seconds=factor * self.round_seconds,
            step_seconds=factor * self.step_seconds,
            seconds_per_value=factor * self.seconds_per_value,
            layers={name: layer.times(factor) for name, layer in self.layers.items()},
        )

    def seconds(self, ones: Mapping[str, int], steps: int) -> float:
        """Seconds of a round of so many steps; ValueError for other parameters' names."""
        _check_names(ones, self.layers)
        compute = math.fsum(
            float(layer.seconds(np.array(ones[name]))) for name, layer in self.layers.items()
        )
        link = self.seconds_per_value * sum(ones.values())
        return self.round_seconds + steps * (self.step_seconds + compute) + link

    def dense_layers(self, ones: Mapping[str, int]) -> list[str]:
        """Those that will be dense with so many kept weights."""
        return [name for name, kept in ones.items() if self.layers[name].is_dense(np.array(kept))]

    def steps_within(self, seconds: float, ones: Mapping[str, int], most: int) -> int:
        """The most steps, up to `most`, of a round that takes no longer; 0 where not one fits."""
        fewest, too_many = 0, most + 1
        while too_many - fewest > 1:
            middle = (fewest + too_many) // 2
            if self.seconds(ones, middle) <= seconds:
                fewest = middle
            else:
                too_many = middle
        return fewest


@dataclass(frozen=True, kw_only=True)
class LayerMemory(Section):
    """Bytes that a layer adds to the peak of a step."""

    #: Of a sparse layer without weights.
    fixed_bytes: float
    #: Of each kept weight more: its value, its index, what the step holds for it.
    bytes_per_weight: float
    #: Of a dense layer without weights: they are there all the same, as zeros.
    dense_bytes: float
    #: Of each kept weight of a dense layer more.
    dense_bytes_per_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "fixed_bytes", "bytes_per_weight", "dense_bytes", "dense_bytes_per_weight",
        ):  # fmt: skip
            _check(f"{name} is", getattr(self, name), MOST_BYTES, "bytes")

    def needed_bytes(self, kept: Counts, is_dense: Bits) -> Floats:
        """Bytes of the layer, sparse or dense."""
        dense = self.dense_bytes + self.dense_bytes_per_weight * kept
        return np.where(is_dense, dense, self.fixed_bytes + self.bytes_per_weight * kept)


@dataclass(frozen=True, kw_only=True)
class StepMemory(Section):
    """The peak of one kind of step: `base + Σ_l bytes_l(a_l)`."""

    #: What does not depend on what is kept; of an importance step, the largest gradient that is
    #: alive at a time is part of it.
    base_bytes: float
    #: By the name of the parameter.
    layers: Mapping[str, LayerMemory]
    #: What of the base is the batch's.
    batch: BatchMemory = field(default_factory=BatchMemory)

    def __post_init__(self) -> None:
        _check("base_bytes is", self.base_bytes, MOST_BYTES, "bytes")

    def peak_bytes(self, ones: Mapping[str, int], dense: Collection[str]) -> float:
        """Bytes at the peak, with these layers dense; ValueError for other parameters' names."""
        _check_names(ones, self.layers)
        return self.base_bytes + math.fsum(
            float(layer.needed_bytes(np.array(ones[name]), np.array(name in dense)))
            for name, layer in self.layers.items()
        )

    def in_parts(self, parts: int) -> StepMemory:
        """Of batches in so many parts, or in those that were measured where these are more."""
        if parts <= self.batch.parts:
            return self
        base = max(0.0, self.base_bytes - self.batch.saved_bytes(parts))
        return replace(self, base_bytes=base, batch=replace(self.batch, parts=parts))


@dataclass(frozen=True, kw_only=True)
class MemoryCost(Section):
    """Bytes at the peak of a round: of the larger of its kinds of step."""

    training: StepMemory
    #: None on a device that never reports importance.
    importance: StepMemory | None = None

    @property
    def steps(self) -> tuple[StepMemory, ...]:
        """The kinds of step that there are."""
        return (self.training,) if self.importance is None else (self.training, self.importance)

    def peak_bytes(self, ones: Mapping[str, int], dense: Collection[str] = ()) -> float:
        """Bytes at the peak, with these layers dense; ValueError for other parameters' names."""
        return max(step.peak_bytes(ones, dense) for step in self.steps)

    def in_parts(self, parts: int) -> MemoryCost:
        """Of batches in so many parts at least."""
        importance = None if self.importance is None else self.importance.in_parts(parts)
        return MemoryCost(training=self.training.in_parts(parts), importance=importance)


@dataclass(frozen=True, kw_only=True)
class DeviceCost(Section):
    """What rounds cost a device, and the memory that they may use."""

    time: RoundCost
    memory: MemoryCost
    limit_bytes: float

    def __post_init__(self) -> None:
        _check("limit_bytes is", self.limit_bytes, MOST_BYTES, "bytes")
        for step in self.memory.steps:
            _check_names(step.layers, self.time.layers)

    def peak_bytes(self, ones: Mapping[str, int]) -> float:
        """Bytes at the peak of a round, each layer sparse or dense as it will be."""
        _check_names(ones, self.time.layers)
        return self.memory.peak_bytes(ones, self.time.dense_layers(ones))

    def in_parts(self, parts: int) -> DeviceCost:
        """Of batches in so many parts at least. What the time is then is for rounds to tell."""
        return replace(self, memory=self.memory.in_parts(parts))

    def fewest_parts(self, ones: Mapping[str, int]) -> int:
        """Parts of a batch with which these fit the limit; the most where not even they will do."""
        parts = 1
        for parts in self.memory.training.batch.more_parts:
            if self.in_parts(parts).peak_bytes(ones) <= self.limit_bytes:
                break
        return parts

    def allows(self, ones: Mapping[str, int], steps: int, seconds: float) -> bool:
        """Whether a round of so many steps holds the memory limit and takes no longer."""
        in_memory = self.peak_bytes(ones) <= self.limit_bytes
        return in_memory and self.time.seconds(ones, steps) <= seconds


def _check(what: str, value: float, most: float, unit: str) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{what} {value} {unit}; allowed is 0 to {most:g}")


def _check_names(ones: Mapping[str, object], names: Mapping[str, object]) -> None:
    if unlike := ones.keys() ^ names.keys():
        raise ValueError(f"ones of other parameters: {min(unlike)!r} is in one of the two only")
