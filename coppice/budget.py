"""What a round costs a device: seconds as a function of the kept weights, and its fit to timings.

PruneFL (Jiang et al. 2022) models the time of a round as a constant and a price per kept weight of
each layer: `T = c + Σ_l t_l · a_l`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from coppice.section import Section

#: A fit whose model misses a sample by a larger share of its time does not describe the device.
MAX_RELATIVE_RESIDUAL = 0.1

_Floats: TypeAlias = NDArray[np.float64]

# Columns of unit length whose smallest singular value is this much below the largest are taken
# for dependent; correlations with the rest below the second are rounding, not a direction.
_INDEPENDENT = 1e-6
_NOISE = 1e-12


@dataclass(frozen=True, kw_only=True)
class RoundTime(Section):
    """Seconds of a device's round, linear in the kept weights of each layer."""

    #: What a round takes without a single kept weight (c).
    constant_seconds: float
    #: What one kept weight adds to a round (t_l), by the name of the parameter.
    seconds_per_weight: Mapping[str, float]

    def __post_init__(self) -> None:
        values = {"constant_seconds": self.constant_seconds, **self.seconds_per_weight}
        for name, value in values.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} takes {value} seconds; allowed is 0 or more, and finite")

    def seconds(self, ones: Mapping[str, int]) -> float:
        """Seconds of a round with so many kept weights; ValueError for other parameters' names."""
        _check_names(ones, self.seconds_per_weight)
        return self.constant_seconds + math.fsum(
            price * ones[name] for name, price in self.seconds_per_weight.items()
        )


@dataclass(frozen=True, kw_only=True)
class RoundSample:
    """One timed round."""

    #: Kept weights by the name of the parameter.
    ones: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A round-time model and how well it describes the samples that it comes from."""

    round_time: RoundTime
    #: Share of the samples' variance that the model explains, at most 1; 1 of equal samples.
    r_squared: float
    #: The largest difference between model and sample, as a share of the sample.
    max_relative_residual: float

    @property
    def is_usable(self) -> bool:
        """Whether the model misses no sample by more than a tenth."""
        return self.max_relative_residual <= MAX_RELATIVE_RESIDUAL


def fit_round_time(samples: Sequence[RoundSample]) -> Fit:
    """The round time that is nearest to the samples, with no negative constant.

    Nearest in the sum of squared relative residuals: timing noise grows with the time, and it is
    the relative residual by which a fit is judged (see `Fit.is_usable`).

    Each layer has a constant of its own and the round has one more. Samples that cannot tell them
    apart, too few with different ones or layers that always change together, are a ValueError:
    any answer would be an invention.
    """
    if not samples:
        raise ValueError("a fit needs timed rounds; there are none")
    names = list(samples[0].ones)
    for sample in samples:
        _check_names(sample.ones, names)
        if not 0 < sample.seconds < math.inf:
            raise ValueError(f"a sample took {sample.seconds} seconds")
    unknowns = 1 + len(names)
    different = {tuple(sample.ones[name] for name in names) for sample in samples}
    if len(different) < unknowns:
        raise ValueError(
            f"{unknowns} different ones are needed to tell {len(names)} layers and the constant "
            f"apart; the samples have {len(different)}"
        )
    matrix = np.array([[1.0, *(float(sample.ones[name]) for name in names)] for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    constant, *prices = _solve(matrix / seconds[:, None], np.ones(len(samples))).tolist()
    residuals = matrix @ np.array([constant, *prices]) - seconds
    variance = float(((seconds - seconds.mean()) ** 2).sum())
    return Fit(
        round_time=RoundTime(
            constant_seconds=constant, seconds_per_weight=dict(zip(names, prices, strict=True))
        ),
        r_squared=1 - float((residuals**2).sum()) / variance if variance else 1.0,
        max_relative_residual=float(np.abs(residuals / seconds).max()),
    )


def _check_names(ones: Mapping[str, int], names: Mapping[str, float] | Sequence[str]) -> None:
    if unlike := ones.keys() ^ set(names):
        raise ValueError(f"ones of other parameters: {min(unlike)!r} is in one of the two only")


def _solve(matrix: _Floats, target: _Floats) -> _Floats:
    """The x ≥ 0 for which `|matrix @ x - target|` is smallest (Lawson and Hanson 1974).

    Free variables solve the unconstrained problem, the others are 0; one at a time is freed while
    that can help, and bound again when it would turn negative. Columns are scaled to unit length:
    a layer's ones are millions beside the constant's 1.
    """
    scale: _Floats = np.linalg.norm(matrix, axis=0)
    columns = matrix / np.where(scale > 0, scale, 1.0)
    strengths = np.linalg.svd(columns, compute_uv=False)
    if strengths[-1] < _INDEPENDENT * strengths[0]:
        raise ValueError("the samples do not tell the layers apart: vary them one by one")
    solution = np.zeros(columns.shape[1])
    free = np.zeros(columns.shape[1], dtype=bool)
    # In exact arithmetic no set of free variables comes back; the bound is against rounding.
    for _ in range(10 * free.size):
        pull = np.where(free, 0.0, columns.T @ (target - columns @ solution))
        if pull.max() <= _NOISE * np.linalg.norm(target):
            break
        free[pull.argmax()] = True
        solution = _feasible(columns, target, solution, free)
    return solution / scale


def _feasible(
    columns: _Floats, target: _Floats, start: _Floats, free: NDArray[np.bool_]
) -> _Floats:
    """The solution over the free variables; those that it would make negative are bound."""
    while True:
        solution = np.zeros_like(start)
        solution[free] = np.linalg.lstsq(columns[:, free], target, rcond=None)[0]
        negative = free & (solution < 0)
        if not negative.any():
            return solution
        # As far towards the solution as all stay non-negative; the first to reach 0 is bound.
        steps = np.full(start.size, np.inf)
        steps[negative] = start[negative] / (start[negative] - solution[negative])
        start = np.maximum(start + steps.min() * (solution - start), 0.0)
        free[steps.argmin()] = False
        start[~free] = 0.0
