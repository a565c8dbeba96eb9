"""A memory model from measured peaks: near to them, and below none."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import pytest

from coppice.memory_fit import PeakSample, fit_memory, layer_memory

SHAPES = {"conv": (64, 32, 5, 5), "fc": (2048, 3136)}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}


def ones(density: float) -> dict[str, int]:
    return {name: round(density * size) for name, size in SIZES.items()}


def peak(kept: Mapping[str, int], dense: Collection[str], factor: float) -> int:
    """200 MB, and values and indices, or whole layers, so many times."""
    layers = {name: layer_memory(shape) for name, shape in SHAPES.items()}
    held = 0.0
    for name, count in kept.items():
        layer = layers[name]
        if name in dense:
            held += layer.dense_bytes + layer.dense_bytes_per_weight * count
        else:
            held += layer.bytes_per_weight * count
    return round(200e6 + factor * held)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
def test_base_and_factor_are_recovered_from_peaks(factor: float) -> None:
    cases = [(0.01, []), (0.05, []), (0.2, []), (0.5, ["fc"])]
    samples = [
        PeakSample(ones=ones(d), dense=dense, peak_bytes=peak(ones(d), dense, factor))
        for d, dense in cases
    ]
    fit = fit_memory(samples, SHAPES)
    assert fit.max_relative_residual < 1e-6
    unseen = ones(0.35)
    assert fit.memory.peak_bytes(unseen, []) == pytest.approx(peak(unseen, [], factor))
    whole = ones(1.0)
    assert fit.memory.peak_bytes(whole, SHAPES) == pytest.approx(peak(whole, SHAPES, factor))


def test_no_peak_that_was_measured_is_promised_to_be_less() -> None:
    noise = [0.97, 1.04, 0.99, 1.03]
    samples = [
        PeakSample(ones=ones(d), dense=[], peak_bytes=round(peak(ones(d), [], 1.0) * by))
        for d, by in zip((0.01, 0.05, 0.2, 0.4), noise, strict=True)
    ]
    fit = fit_memory(samples, SHAPES)
    for sample in samples:
        assert fit.memory.peak_bytes(sample.ones, []) >= sample.peak_bytes - 1
    assert 0 < fit.max_relative_residual < 0.1


def test_of_one_peak_the_careful_factor_is_taken() -> None:
    first = PeakSample(ones=ones(0.01), dense=[], peak_bytes=peak(ones(0.01), [], 1.0))
    fit = fit_memory([first], SHAPES)
    assert fit.memory.peak_bytes(first.ones, []) == pytest.approx(first.peak_bytes)
    more = ones(0.2)
    assert fit.memory.peak_bytes(more, []) > peak(more, [], 1.9)


def test_there_is_no_model_of_no_peaks() -> None:
    with pytest.raises(ValueError, match="none"):
        fit_memory([], SHAPES)
