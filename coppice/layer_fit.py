"""What a layer costs by its kept weights, from timed steps: a line, or a table where none fits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coppice.budget import Fit, RoundSample, fit_round_time
from coppice.device_cost import MOST_POINTS, Floats, LayerCost

#: The only name in a fit of one layer.
_LAYER = "layer"


@dataclass(frozen=True, kw_only=True)
class LayerSample:
    """One timed step in a sparse layer."""

    kept: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """A layer's cost and how well a line describes the samples that it comes from."""

    cost: LayerCost
    #: Whether the cost is the line; else it is a table, for the line misses a median by more than
    #: `MAX_RELATIVE_RESIDUAL` of its time or there is none.
    is_line: bool
    #: Of the line: share of the medians' variance that it explains; NaN where there is none.
    r_squared: float
    #: Of the line: largest difference to a median, as a share of it; NaN where there is none.
    max_relative_residual: float


def fit_layer_cost(samples: Sequence[LayerSample], dense_seconds: float, size: int) -> LayerFit:
    """The cost of a layer of `size` weights that is nearest to the timed steps.

    Of steps with equal counts the median is taken: how much they vary says nothing against a line.
    Raises ValueError without samples, and for what no step can take.
    """
    medians = _medians(samples)
    line = _line(medians)
    if line is None or not line.is_usable:
        cost = _table(medians, dense_seconds, size)
    else:
        prices = line.round_time.seconds_per_weight
        cost = LayerCost.line(line.round_time.constant_seconds, prices[_LAYER], dense_seconds, size)
    return LayerFit(
        cost=cost,
        is_line=line is not None and line.is_usable,
        r_squared=line.r_squared if line else math.nan,
        max_relative_residual=line.max_relative_residual if line else math.nan,
    )


def _medians(samples: Sequence[LayerSample]) -> dict[int, float]:
    """Seconds by kept weights, ascending."""
    if not samples:
        raise ValueError("a fit needs timed steps; there are none")
    seconds: dict[int, list[float]] = {}
    for sample in sorted(samples, key=lambda sample: sample.kept):
        if sample.kept < 0 or not 0 < sample.seconds < math.inf:
            raise ValueError(f"{sample.kept} kept weights took {sample.seconds} seconds")
        seconds.setdefault(sample.kept, []).append(sample.seconds)
    return {kept: statistics.median(times) for kept, times in seconds.items()}


def _line(medians: Mapping[int, float]) -> Fit | None:
    """The line, or None where the samples are of one count."""
    if len(medians) == 1:
        return None
    return fit_round_time(
        [RoundSample(ones={_LAYER: kept}, seconds=seconds) for kept, seconds in medians.items()]
    )


def _table(medians: Mapping[int, float], dense_seconds: float, size: int) -> LayerCost:
    """The rising table that is nearest to the samples, relative to them.

    Below the fewest kept weights that were timed nothing is gained, and above the most, time grows
    as their number does: to be wrong is to promise too little.
    """
    kept = np.array(list(medians))
    seconds = np.array(list(medians.values()))
    rising = _rising(seconds, seconds**-2.0)
    if kept[-1] < size:
        rising = np.append(rising, rising[-1] * size / max(1, kept[-1]))
        kept = np.append(kept, size)
    if kept.size > MOST_POINTS:
        chosen = np.unique(np.linspace(0, kept.size - 1, MOST_POINTS).round().astype(np.int64))
        kept, rising = kept[chosen], rising[chosen]
    return LayerCost(
        kept=tuple(kept.tolist()),
        sparse_seconds=tuple(rising.tolist()),
        dense_seconds=dense_seconds,
    )


def _rising(values: Floats, weights: Floats) -> Floats:
    """The sequence that never falls and is nearest to the values (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (low, light, few), (high, heavy, many) = blocks.pop(), blocks.pop()
            total = light + heavy
            blocks.append(((low * light + high * heavy) / total, total, few + many))
    return np.repeat([value for value, _, _ in blocks], [count for _, _, count in blocks])
