"""Checks that a model of the registry takes the run's input shape."""

from __future__ import annotations

from coppice.domain import ModelSpec
from coppice.errors import RunFileError


def image_shape(spec: ModelSpec, input_shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """Channels, height and width; RunFileError unless both sides have at least `least` pixels."""
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise RunFileError(
            f"model {spec.name!r} does not take data.input_shape {list(input_shape)}; allowed is "
            f"[channels, height, width] with height and width of at least {least}"
        )
    channels, height, width = input_shape
    return channels, height, width
