"""What local steps of a run cost this device, in time and memory: tried before the first round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter

import numpy as np
import torch

from coppice.batch_parts import BatchMemory, most_parts, part_size
from coppice.cost_learning import Overhead
from coppice.device_cost import (
    DeviceCost,
    LayerCost,
    LayerMemory,
    MemoryCost,
    RoundCost,
    StepMemory,
)
from coppice.domain import WireSpec
from coppice.layer_fit import LayerFit
from coppice.memory import forget_peak, give_back, peak_resident_bytes, resident_bytes
from coppice.memory_fit import MemoryFit, PeakSample, fit_memory
from coppice.method import ClientHalf, Local, Update
from coppice.sparse import SparseTensor
from coppice.tensors import weight_group
from coppice.wire.exchange import encode_update

#: Of the rounds that are rehearsed, ascending: what one took says whether the next one fits.
DENSITIES = (0.01, 0.02, 0.05, 0.2, 0.5, 1.0)
#: Steps of a rehearsal; the first ones do not count: memory is found, caches fill.
_STEPS, _UNCOUNTED = 7, 2
#: Where only the memory counts.
_FEW_STEPS = 4
#: Share of the memory that a rehearsal may be predicted to need: the prediction may be wrong.
_CAREFUL_SHARE = 0.9

#: Layers in a step take so many times what they take by themselves; else it was noise.
_LEAST_FACTOR, _MOST_FACTOR = 0.8, 3.0
#: No clock tells less from nothing.
_LEAST_REST = 1e-4
#: A layer that can only be dense costs nothing by itself: it is part of the rest of the step.
_DENSE_ONLY = LayerCost(kept=(), sparse_seconds=(), dense_seconds=0.0)


@dataclass(frozen=True)
class Rehearsal:
    """One round that was tried."""

    density: float
    #: Kept weights by the name of the parameter.
    ones: Mapping[str, int]
    #: Median of the steps.
    seconds_per_step: float
    #: What it took besides them.
    rest_seconds: float
    #: Resident memory of the process at its peak.
    peak_bytes: int
    #: What it held for a while only, after the first step: before, random masks are made.
    moment_bytes: int
    #: What it holds afterwards.
    held_bytes: int


@dataclass(frozen=True)
class Probe:
    """What was found."""

    #: How well lines describe the layers that were timed.
    layers: Mapping[str, LayerFit]
    #: Of the steps.
    time: RoundCost
    #: Of a round, besides; rounds correct it.
    overhead: Overhead
    memory: MemoryFit
    rehearsals: tuple[Rehearsal, ...]
    #: The memory that there was.
    budget_bytes: int

    @property
    def batch(self) -> BatchMemory:
        """The parts that batches were rehearsed in, and what their examples take."""
        return self.memory.memory.batch

    def seconds_per_step(self, ones: Mapping[str, int]) -> float:
        """As predicted, with so many kept weights in each layer."""
        return self.time.seconds(ones, steps=1)

    def peak_bytes(self, ones: Mapping[str, int]) -> float:
        """As predicted, of a round of plain training."""
        return self.memory.memory.peak_bytes(ones, self.time.dense_layers(ones))

    @property
    def max_relative_residual(self) -> float:
        """The largest difference between a rehearsed step and its prediction, as a share of it."""
        return max(
            abs(self.seconds_per_step(item.ones) / item.seconds_per_step - 1)
            for item in self.rehearsals
        )


class Prober:
    """Tries what a run asks of this device."""

    def __init__(
        self,
        half: ClientHalf,
        local: Local,
        wire: WireSpec,
        budget_bytes: Callable[[], int],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`budget_bytes` says up to what resident memory this process may grow."""
        self._half = half
        self._local = local
        self._wire = wire
        self._budget_bytes = budget_bytes
        self._clock = clock

    def probe(self, tell: Callable[[str], None]) -> Probe | None:
        """Time the layers and rehearse rounds, as far as memory goes; `tell` hears what was done.

        None where there is nothing to rehearse: no examples, or a method that has no such rounds.
        """
        budget_bytes = self._budget_bytes()
        parts, least = self._careful_batch(tell)
        local = replace(self._local, parts=parts)
        batch = BatchMemory(examples=max(1, self._half.examples_per_step(local)), parts=parts)
        fits: dict[str, LayerFit] = {}
        for name, fit in self._half.layer_costs(local, self._clock):
            fits[name] = fit
            tell(f"timed {name}")
        give_back()
        # Layers are dense in rehearsals where they will be in rounds, and timed only once.
        local = replace(local, cost=_cost_of_layers(fits))
        rehearsals: list[Rehearsal] = []
        shapes: dict[str, tuple[int, ...]] = {}
        for density in DENSITIES:
            if rehearsals:
                ones = {name: round(density * np.prod(shape)) for name, shape in shapes.items()}
                so_far = self._result(fits, shapes, rehearsals, budget_bytes, batch)
                predicted = so_far.peak_bytes(ones)
                if predicted > _CAREFUL_SHARE * self._budget_bytes():
                    break
            rehearsed = self._rehearse(local, density, shapes, _STEPS)
            if rehearsed is None:
                return None
            rehearsals.append(rehearsed)
            if least is not None and len(rehearsals) == 1:
                batch = _learned(batch, least, rehearsed)
            tell(f"rehearsed a round of density {density:g}")
        return self._result(fits, shapes, rehearsals, budget_bytes, batch)

    def _careful_batch(self, tell: Callable[[str], None]) -> tuple[int, Rehearsal | None]:
        """The fewest parts in which batches are sure to fit, and a rehearsal of one of the most.

        It begins with few examples and goes on to twice as many, while those fit even if all that
        the last ones took grows with their number.
        """
        examples = self._half.examples_per_step(self._local)
        parts = most_parts(examples)
        least = None
        while parts > 1:
            size, more = part_size(examples, parts), part_size(examples, parts // 2)
            few = replace(self._local, train=self._local.train.subset(torch.arange(size)))
            found = self._rehearse(few, DENSITIES[0], {}, _FEW_STEPS)
            if found is None:
                break
            tell(f"rehearsed a batch of {size}")
            least = least or found
            worst = found.held_bytes + more / size * found.moment_bytes
            if worst > _CAREFUL_SHARE * self._budget_bytes():
                break
            parts //= 2
        return parts, least

    def _rehearse(
        self, local: Local, density: float, shapes: dict[str, tuple[int, ...]], steps: int
    ) -> Rehearsal | None:
        """Try a round; `shapes` learns of the weights on masks."""
        meter = _Steps(self._clock)
        give_back()
        _begin_peak()
        began = self._clock()
        update = self._half.rehearse(replace(local, meter=meter), density, steps)
        if update is None:
            return None
        sparse = {
            name: item
            for name, item in weight_group(update.payload, "delta").items()
            if isinstance(item, SparseTensor)
        }
        shapes |= {name: item.shape for name, item in sparse.items()}
        self._encode(update, sparse)
        seconds = self._clock() - began
        ones = {name: item.mask.count for name, item in sparse.items()}
        peak_bytes = peak_resident_bytes()
        del update, sparse
        give_back()
        held_bytes = resident_bytes()
        return Rehearsal(
            density=density,
            ones=ones,
            seconds_per_step=meter.median_seconds,
            rest_seconds=max(0.0, seconds - steps * meter.median_seconds),
            peak_bytes=max(meter.first_peak_bytes, peak_bytes),
            moment_bytes=max(0, peak_bytes - held_bytes),
            held_bytes=held_bytes,
        )

    def _encode(self, update: Update, sparse: Mapping[str, SparseTensor]) -> None:
        # For its memory: what it makes is not sent.
        known = {item.mask.fingerprint: item.mask for item in sparse.values()}
        encode_update(update.payload, known, self._wire, NoPrivate(), self._local.generator)

    def _result(
        self,
        fits: Mapping[str, LayerFit],
        shapes: Mapping[str, tuple[int, ...]],
        rehearsals: Sequence[Rehearsal],
        budget_bytes: int,
        batch: BatchMemory,
    ) -> Probe:
        layers = {name: fits[name].cost if name in fits else _DENSE_ONLY for name in shapes}
        rest, factor = _rest(layers, rehearsals)
        time = RoundCost(
            round_seconds=0.0,
            step_seconds=rest,
            seconds_per_value=0.0,
            layers={name: layer.times(factor) for name, layer in layers.items()},
        )
        peaks = [
            PeakSample(
                ones=item.ones, dense=time.dense_layers(item.ones), peak_bytes=item.peak_bytes
            )
            for item in rehearsals
        ]
        fit = fit_memory(peaks, shapes)
        return Probe(
            layers=fits,
            time=time,
            overhead=_overhead(rehearsals),
            memory=replace(fit, memory=replace(fit.memory, batch=batch)),
            rehearsals=tuple(rehearsals),
            budget_bytes=budget_bytes,
        )


def _cost_of_layers(fits: Mapping[str, LayerFit]) -> DeviceCost:
    """Before anything else is known of a round."""
    time = RoundCost(
        round_seconds=0.0,
        step_seconds=0.0,
        seconds_per_value=0.0,
        layers={name: fit.cost for name, fit in fits.items()},
    )
    none = LayerMemory(fixed_bytes=0.0, bytes_per_weight=0.0, dense_bytes=0.0)
    memory = StepMemory(base_bytes=0.0, layers=dict.fromkeys(fits, none))
    return DeviceCost(time=time, memory=MemoryCost(training=memory), limit_bytes=0.0)


def _learned(batch: BatchMemory, least: Rehearsal, whole: Rehearsal) -> BatchMemory:
    """What an example takes, by two rehearsals that differ in their number.

    The line between the two promises no more than what splitting saves: where a small batch's peak
    is of something else, it is too flat.
    """
    fewest = part_size(batch.examples, most_parts(batch.examples))
    more = part_size(batch.examples, batch.parts) - fewest
    grown = max(0, whole.moment_bytes - least.moment_bytes)
    return replace(batch, bytes_per_example=grown / more if more else 0.0)


def _rest(layers: Mapping[str, LayerCost], rehearsals: Sequence[Rehearsal]) -> tuple[float, float]:
    """Seconds of a step besides the layers, and by how much longer than when timed those take.

    A layer by itself was timed at its best; in a step, others use the caches, too.
    """
    timed = [
        sum(float(layers[name].seconds(np.array(kept))) for name, kept in item.ones.items())
        for item in rehearsals
    ]
    if max(timed) == 0:
        return statistics.median(item.seconds_per_step for item in rehearsals), 1.0
    seconds = np.array([item.seconds_per_step for item in rehearsals])
    columns = np.stack([np.ones(len(timed)), np.array(timed)], axis=1) / seconds[:, None]
    rest, factor = np.linalg.lstsq(columns, np.ones(len(timed)), rcond=None)[0]
    if len(rehearsals) == 1 or not _LEAST_FACTOR <= factor <= _MOST_FACTOR or rest < 0:
        factor = float(np.clip(np.median(seconds / np.array(timed)), 1.0, _MOST_FACTOR))
        rest = max(0.0, float(np.median(seconds - factor * np.array(timed))))
    return float(rest), float(factor)


def _overhead(rehearsals: Sequence[Rehearsal]) -> Overhead:
    """The line through what rounds took besides their steps, in the relative sense."""
    kept = np.array([sum(item.ones.values()) for item in rehearsals], dtype=np.float64)
    seconds = np.array([max(item.rest_seconds, _LEAST_REST) for item in rehearsals])
    if len(rehearsals) == 1:
        return Overhead(fixed_seconds=float(seconds[0]), seconds_per_weight=0.0)
    columns = np.stack([np.ones(len(kept)), kept], axis=1) / seconds[:, None]
    fixed, per_weight = np.linalg.lstsq(columns, np.ones(len(kept)), rcond=None)[0]
    if fixed < 0 or per_weight < 0:
        fixed = seconds.min()
        per_weight = np.median((seconds - fixed) / np.maximum(kept, 1))
    return Overhead(fixed_seconds=float(fixed), seconds_per_weight=float(per_weight))


def _begin_peak() -> None:
    with suppress(OSError):
        # Else the peak is that of the process's whole life, which is too careful.
        forget_peak()


class _Steps:
    """A meter that keeps when each step was done, and the peak until the first one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._done: list[float] = []
        self.first_peak_bytes = 0

    def step_done(self) -> None:
        if not self._done:
            self.first_peak_bytes = peak_resident_bytes()
            _begin_peak()
        self._done.append(self._clock())

    @property
    def median_seconds(self) -> float:
        steps = [after - before for before, after in pairwise(self._done)]
        return statistics.median(steps[_UNCOUNTED:])


class NoPrivate:
    """Private state that is none."""

    def read(self, kind: type[object]) -> None:
        """There never is any."""

    def stage(self, value: object) -> None:
        """Forgotten at once."""
