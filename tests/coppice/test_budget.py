"""The round time of a device: what it says, and how it is fitted to timed rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from coppice import tree
from coppice.budget import Fit, RoundSample, RoundTime, fit_round_time
from coppice.errors import InvalidPayload

#: Weights of the layers of conv2.
SIZES = {"conv1": 800, "conv2": 51_200, "fc1": 6_422_528, "fc2": 126_976}
#: A device on which every layer counts: a second each where nothing is pruned.
DEVICE = RoundTime(
    constant_seconds=0.3, seconds_per_weight={name: 1 / size for name, size in SIZES.items()}
)


def at(density: float, **others: float) -> dict[str, int]:
    """Ones at one density, some layers at another."""
    return {name: round(size * others.get(name, density)) for name, size in SIZES.items()}


def design() -> list[dict[str, int]]:
    """All dense, one entry per layer, and each layer at four densities with the others at 0.1."""
    return [
        at(1.0),
        dict.fromkeys(SIZES, 1),
        *(at(0.1, **{name: d}) for name in SIZES for d in (0.5, 0.2, 0.1, 0.05)),
    ]


def timed(
    device: RoundTime, noise: float = 0.0, steps: int = 1, seed: int = 0
) -> list[RoundSample]:
    rng = np.random.default_rng(seed)
    return [
        RoundSample(ones=ones, seconds=device.seconds(ones) * (1 + noise * rng.standard_normal()))
        for ones in design()
        for _ in range(steps)
    ]


def relative(found: RoundTime, true: RoundTime) -> list[float]:
    """Each constant's error as a share of its value."""
    pairs = [
        (found.constant_seconds, true.constant_seconds),
        *((found.seconds_per_weight[n], t) for n, t in true.seconds_per_weight.items()),
    ]
    return [one / other - 1 for one, other in pairs]


# ---- what a round takes --------------------------------------------------------------------------


def test_round_takes_its_constant_and_a_price_per_one() -> None:
    times = RoundTime(constant_seconds=2.0, seconds_per_weight={"a": 0.5, "b": 0.001})
    assert times.seconds({"a": 3, "b": 2000}) == 5.5
    assert times.seconds({"b": 0, "a": 0}) == 2.0


def test_ones_of_other_parameters_are_refused() -> None:
    times = RoundTime(constant_seconds=2.0, seconds_per_weight={"a": 0.5, "b": 0.001})
    for ones in ({"a": 1}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(ValueError, match="ones of other parameters"):
            times.seconds(ones)


@pytest.mark.parametrize("wrong", [-1e-9, math.nan, math.inf])
def test_impossible_times_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="constant_seconds takes"):
        RoundTime(constant_seconds=wrong, seconds_per_weight={})
    with pytest.raises(ValueError, match="fc takes"):
        RoundTime(constant_seconds=0.0, seconds_per_weight={"fc": wrong})


def test_round_time_survives_storing_and_the_run_file() -> None:
    assert tree.load(RoundTime, tree.save(DEVICE)) == DEVICE
    adapter = TypeAdapter(RoundTime)
    assert adapter.validate_python(tree.to_plain(DEVICE)) == DEVICE
    plain = {"constant_seconds": 1.0, "seconds_per_weight": {"fc": -1.0}}
    with pytest.raises(ValidationError, match=r"fc takes -1\.0 seconds"):
        adapter.validate_python(plain)
    with pytest.raises(InvalidPayload, match=r"fc takes -1\.0 seconds"):
        tree.from_plain(RoundTime, plain)


# ---- the fit -------------------------------------------------------------------------------------


def test_constants_of_a_noisy_device_are_recovered() -> None:
    errors = []
    for seed in range(20):
        fit = fit_round_time(timed(DEVICE, noise=0.03, steps=10, seed=seed))
        assert fit.r_squared > 0.99
        errors.append(relative(fit.round_time, DEVICE))
        for density in (0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 1.0):
            true = DEVICE.seconds(at(density))
            assert fit.round_time.seconds(at(density)) == pytest.approx(true, rel=0.05)
    assert np.sqrt(np.mean(np.square(errors), axis=0)).max() < 0.05


def test_device_without_noise_is_recovered_exactly() -> None:
    fit = fit_round_time(timed(DEVICE))
    assert relative(fit.round_time, DEVICE) == pytest.approx([0.0] * 5, abs=1e-9)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    assert fit.max_relative_residual < 1e-9
    assert fit.is_usable


def test_a_layer_that_costs_nothing_is_not_given_a_negative_price() -> None:
    device = RoundTime(
        constant_seconds=0.3, seconds_per_weight={**DEVICE.seconds_per_weight, "conv1": 0.0}
    )
    prices = [
        fit_round_time(timed(device, noise=0.03, seed=seed)).round_time.seconds_per_weight["conv1"]
        for seed in range(20)
    ]
    assert min(prices) == 0.0
    assert max(prices) < 0.2 / 800


def test_no_other_constants_are_nearer_to_the_samples() -> None:
    bound = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ones = [{n: int(rng.integers(1, 10**k)) for k, n in enumerate("abcd", 2)} for _ in range(9)]
        samples = [RoundSample(ones=o, seconds=float(rng.uniform(1, 3))) for o in ones]
        fit = fit_round_time(samples)
        matrix = np.array([[1.0, *o.values()] for o in ones])
        matrix /= np.array([[sample.seconds] for sample in samples])
        found = [fit.round_time.constant_seconds, *fit.round_time.seconds_per_weight.values()]
        error = float(((matrix @ found - 1) ** 2).sum())
        assert error == pytest.approx(least_error(matrix), rel=1e-9)
        bound += 0.0 in found
    assert bound > 20


def least_error(matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    """The least sum of squares over all choices of the constants that are 0."""
    errors = []
    columns = range(matrix.shape[1])
    for size in range(1, len(columns) + 1):
        for free in itertools.combinations(columns, size):
            part = matrix[:, free]
            found = np.linalg.lstsq(part, np.ones(len(matrix)), rcond=None)[0]
            if found.min() >= 0:
                errors.append(float(((part @ found - 1) ** 2).sum()))
    return min(errors)


def test_quality_of_a_fit_is_that_of_its_residuals() -> None:
    samples = timed(DEVICE, noise=0.03)
    fit = fit_round_time(samples)
    model = np.array([fit.round_time.seconds(sample.ones) for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    assert fit.max_relative_residual == pytest.approx(np.abs(model / seconds - 1).max())
    explained = 1 - ((model - seconds) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    assert fit.r_squared == pytest.approx(explained)


def test_samples_that_all_take_as_long_have_no_price_per_one() -> None:
    fit = fit_round_time([RoundSample(ones=ones, seconds=2.0) for ones in design()])
    assert fit.round_time.seconds(at(0.7)) == pytest.approx(2.0)
    assert fit.r_squared == 1.0
    assert fit.is_usable


def test_device_that_no_line_describes_is_not_usable() -> None:
    samples = [
        RoundSample(ones=ones, seconds=0.1 + min(4 * ones["fc1"] / SIZES["fc1"], 0.5))
        for ones in (at(0.1, fc1=d) for d in (0.0, 0.05, 0.1, 0.2, 0.5, 1.0))
    ]
    others = [RoundSample(ones=at(0.2, **{n: 0.9}), seconds=0.6) for n in SIZES]
    fit = fit_round_time([*samples, *others])
    assert fit.max_relative_residual > 0.1
    assert not fit.is_usable


def test_a_tenth_is_the_largest_residual_that_is_usable() -> None:
    assert Fit(round_time=DEVICE, r_squared=0.9, max_relative_residual=0.1).is_usable
    assert not Fit(round_time=DEVICE, r_squared=0.9, max_relative_residual=0.1001).is_usable


# ---- samples that cannot be fitted ---------------------------------------------------------------


def test_fewer_different_samples_than_constants_are_refused() -> None:
    samples = timed(DEVICE, steps=10)[:40]
    with pytest.raises(ValueError, match=r"5 different ones are needed .* the samples have 4"):
        fit_round_time(samples)
    with pytest.raises(ValueError, match="there are none"):
        fit_round_time([])


def test_layers_that_always_change_together_are_refused() -> None:
    samples = [
        RoundSample(ones=at(density), seconds=DEVICE.seconds(at(density)))
        for density in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
    ]
    with pytest.raises(ValueError, match="do not tell the layers apart"):
        fit_round_time(samples)


def test_a_layer_that_never_has_ones_is_refused() -> None:
    samples = [
        RoundSample(ones={"a": count, "b": 0}, seconds=1.0 + count) for count in (1, 2, 3, 4)
    ]
    with pytest.raises(ValueError, match="do not tell the layers apart"):
        fit_round_time(samples)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_samples_without_a_time_are_refused(seconds: float) -> None:
    samples = [*timed(DEVICE), RoundSample(ones=at(0.3), seconds=seconds)]
    with pytest.raises(ValueError, match="a sample took"):
        fit_round_time(samples)


@pytest.mark.parametrize("ones", [{"conv1": 1}, {**SIZES, "other": 1}])
def test_samples_of_different_models_are_refused(ones: Mapping[str, int]) -> None:
    with pytest.raises(ValueError, match="ones of other parameters"):
        fit_round_time([*timed(DEVICE), RoundSample(ones=ones, seconds=1.0)])
