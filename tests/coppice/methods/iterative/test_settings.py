"""Iterative pruning's settings: what is allowed, and how many weights are kept when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from coppice.errors import InvalidPayload
from coppice.methods.iterative.settings import Settings
from tests.coppice.methods.baseline_runs import simulation


def kept(size: int, last: int, **settings: Any) -> list[int]:
    """After each round, from none to `last`."""
    made = Settings(local_steps=1, **settings)
    return [made.kept_after(round_number, size) for round_number in range(last + 1)]


def test_every_step_takes_equally_many() -> None:
    found = kept(100, 6, density=0.2, pruning_steps=4, pruning_rounds=4)
    assert found == [100, 80, 60, 40, 20, 20, 20]


def test_steps_are_spread_over_the_rounds() -> None:
    found = kept(100, 8, density=0.4, pruning_steps=2, pruning_rounds=6)
    assert found == [100, 100, 100, 70, 70, 70, 40, 40, 40]
    # Where they do not divide them: after rounds 2, 4 and 5.
    assert kept(10, 5, density=0.4, pruning_steps=3, pruning_rounds=5) == [10, 10, 8, 8, 6, 4]


def test_steps_differ_by_one_weight_at_most_and_end_at_the_density() -> None:
    found = kept(6_603_710, 500, density=0.134, pruning_rounds=500)
    falls = {before - after for before, after in pairwise(found)} - {0}
    assert len(set(found)) == 21
    assert max(falls) - min(falls) <= 1
    assert found[-1] == round(0.134 * 6_603_710) != found[-2]


def test_a_density_is_rounded_to_the_nearest_number_of_weights() -> None:
    assert kept(100, 1, density=0.29, pruning_steps=1, pruning_rounds=1) == [100, 29]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.5}, "missing 1 required keyword-only argument: 'pruning_rounds'"),
        ({"pruning_rounds": 20}, "missing 1 required keyword-only argument: 'density'"),
        ({"density": 0, "pruning_rounds": 20}, "density is 0.0; allowed is more than 0"),
        ({"density": 0.5, "pruning_rounds": 19}, "allowed is at least pruning_steps (20)"),
        ({"density": 0.5, "pruning_rounds": 9, "pruning_steps": 0}, "pruning_steps is 0"),
        ({"density": 0.5, "pruning_rounds": 20, "local_steps": 1}, "give one of local_steps"),
    ],
)
def test_a_run_with_wrong_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        simulation("iterative", **settings)
    assert message in str(caught.value)
