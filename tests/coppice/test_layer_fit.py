"""A layer's cost from timed steps: recovered where it is a line, and a table where it is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from coppice.device_cost import LayerCost
from coppice.layer_fit import LayerSample, fit_layer_cost

SIZE = 50_000
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
#: Layers of several kinds: mostly fixed, mostly weights, turning dense early, late and never.
DEVICES = [
    LayerCost.line(fixed, whole / SIZE, dense, SIZE)
    for fixed, whole, dense in (
        (0.004, 0.020, 0.012),
        (0.0002, 0.050, 0.030),
        (0.010, 0.004, 0.025),
        (0.001, 0.040, 0.008),
    )
]


def timed(
    seconds: Callable[[int], float], noise: float = 0.0, seed: int = 0, repeats: int = 10
) -> list[LayerSample]:
    rng = np.random.default_rng(seed)
    return [
        LayerSample(kept=kept, seconds=seconds(kept) * (1 + noise * rng.standard_normal()))
        for kept in (round(density * SIZE) for density in DENSITIES)
        for _ in range(repeats)
    ]


def sparse_seconds(layer: LayerCost) -> Callable[[int], float]:
    return lambda kept: float(layer.sparse(np.array(kept)))


@pytest.mark.parametrize("device", DEVICES)
def test_curve_of_a_noisy_device_is_recovered(device: LayerCost) -> None:
    kept = np.linspace(SIZE // 100, SIZE, 60).astype(np.int64)
    errors = []
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        dense = device.dense_seconds * float(np.mean(1 + 0.03 * rng.standard_normal(10)))
        fit = fit_layer_cost(timed(sparse_seconds(device), 0.03, seed), dense, SIZE)
        assert fit.is_line
        assert fit.max_relative_residual < 0.1
        # Where the layer turns dense may differ a little.
        alike = fit.cost.is_dense(kept) == device.is_dense(kept)
        assert alike.mean() > 0.85
        errors.append(np.abs(fit.cost.seconds(kept) / device.seconds(kept) - 1)[alike])
    assert max(error.max() for error in errors) < 0.05


@pytest.mark.parametrize("device", DEVICES)
def test_device_without_noise_is_recovered_exactly(device: LayerCost) -> None:
    fit = fit_layer_cost(timed(sparse_seconds(device)), device.dense_seconds, SIZE)
    assert fit.cost.sparse_seconds == pytest.approx(device.sparse_seconds)
    assert fit.cost.kept == device.kept
    assert fit.cost.dense_seconds == device.dense_seconds
    assert fit.r_squared == pytest.approx(1.0)
    assert fit.max_relative_residual < 1e-9


def test_line_never_falls_and_never_begins_below_nothing() -> None:
    falling = fit_layer_cost(timed(lambda kept: 1 - kept / SIZE / 20), 9.0, SIZE).cost
    assert falling.sparse_seconds[0] == pytest.approx(falling.sparse_seconds[-1])
    steep = fit_layer_cost(timed(lambda kept: (kept - 50) * 1e-6), 9.0, SIZE)
    assert steep.is_line
    assert steep.cost.sparse_seconds[0] == 0.0


def steps_of_a_cache(kept: int) -> float:
    """Far from a line: much slower from where the weights do not fit in the cache."""
    return 0.001 + kept * 1e-7 if kept < SIZE // 8 else 0.006 + kept * 1e-7


def test_where_no_line_fits_a_table_that_rises_says_so() -> None:
    samples = timed(steps_of_a_cache)
    fit = fit_layer_cost(samples, 0.1, SIZE)
    assert not fit.is_line
    assert fit.max_relative_residual > 0.1
    for sample in samples:
        assert fit.cost.sparse(np.array(sample.kept)) == pytest.approx(sample.seconds)


def test_table_of_noisy_samples_rises() -> None:
    for seed in range(30):
        noisy = timed(steps_of_a_cache, 0.3, seed, repeats=1)
        fit = fit_layer_cost(noisy, 0.1, SIZE)
        assert not fit.is_line
        steps = fit.cost.sparse_seconds
        assert all(a <= b for a, b in itertools.pairwise(steps))
        low, high = min(s.seconds for s in noisy), max(s.seconds for s in noisy)
        assert low <= steps[0] <= steps[-2] <= high


def test_one_step_that_was_disturbed_does_not_count() -> None:
    samples = timed(sparse_seconds(DEVICES[0]))
    disturbed = [LayerSample(kept=s.kept, seconds=10 * s.seconds) for s in samples[::5]]
    fit = fit_layer_cost(samples + disturbed, DEVICES[0].dense_seconds, SIZE)
    assert fit.is_line
    assert fit.cost.sparse_seconds == pytest.approx(DEVICES[0].sparse_seconds)


def test_neighbours_out_of_order_are_pooled_nearest_to_both() -> None:
    samples = [
        LayerSample(kept=kept, seconds=seconds)
        for kept, seconds in ((1, 1.0), (2, 4.0), (3, 2.0), (4, 40.0))
    ]
    fit = fit_layer_cost(samples, 100.0, 4)
    # (1/4 + 1/2) / (1/16 + 1/4): the smallest sum of squared relative residuals.
    assert fit.cost.kept == (1, 2, 3, 4)
    assert fit.cost.sparse_seconds == pytest.approx((1.0, 2.4, 2.4, 40.0))


def test_outside_of_what_was_timed_a_table_promises_too_little() -> None:
    fit = fit_layer_cost([LayerSample(kept=100, seconds=2.0)] * 3, 100.0, 1000)
    assert not fit.is_line
    assert math.isnan(fit.r_squared)
    assert fit.cost.sparse(np.array([0, 100, 1000])) == pytest.approx([2.0, 2.0, 20.0])


def test_long_table_has_few_points() -> None:
    rng = np.random.default_rng(0)
    samples = [
        LayerSample(kept=kept, seconds=float(rng.uniform(0.5, 1.5)) * (1 + kept))
        for kept in range(500)
    ]
    fit = fit_layer_cost(samples, 1e6, 500)
    assert not fit.is_line
    assert fit.cost.kept[0] == 0
    assert fit.cost.kept[-1] == 500


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_impossible_steps_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="kept weights took"):
        fit_layer_cost([LayerSample(kept=1, seconds=seconds)], 1.0, 10)


def test_fit_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="needs timed steps"):
        fit_layer_cost([], 1.0, 10)
