"""SNIP's settings: what is allowed, and why the rest is not."""

from __future__ import annotations

from typing import Any

import pytest

from coppice.errors import InvalidPayload, RunFileError
from coppice.methods.snip.settings import Settings
from tests.coppice.methods.baseline_runs import simulation


@pytest.mark.parametrize("setting", ["momentum", "weight_decay", "proximal"])
def test_only_plain_sgd_is_allowed(setting: str) -> None:
    given: dict[str, Any] = {"local_steps": 1, "density": 0.5, setting: 0.1}
    with pytest.raises(ValueError, match="set momentum, weight_decay and proximal to 0"):
        Settings(**given)


def test_without_steps_there_are_no_gradients() -> None:
    with pytest.raises(ValueError, match="set local_steps to 1 or more"):
        Settings(local_steps=0, density=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "missing 1 required keyword-only argument: 'density'"),
        ({"density": 0}, "density is 0.0; allowed is more than 0"),
        ({"density": 1.1}, "density is 1.1; allowed is at most 1"),
        ({"density": 0.5, "local_steps": 1}, "give one of local_steps and local_epochs"),
        ({"density": 0.5, "momentum": 0.9}, "set momentum, weight_decay and proximal to 0"),
    ],
)
def test_a_run_with_wrong_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidPayload, match=message):
        simulation("snip", **settings)


@pytest.mark.parametrize("up", ["float16", "bfloat16", "int8"])
def test_rounded_updates_are_refused(up: str) -> None:
    with pytest.raises(RunFileError, match=r'set wire\.up to "float32"'):
        simulation("snip", density=0.5, up=up)


def test_a_weight_that_is_to_stay_dense_must_be_there() -> None:
    with pytest.raises(RunFileError, match=r"keep_dense names '9\.weight'"):
        simulation("snip", density=0.5, keep_dense=["9.weight"])
