"""What the server believes of costs: what its own clock bears out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from coppice.device_cost import MOST_SECONDS, DeviceCost, LayerCost
from coppice.methods.prunefl.belief import TOLERANCE, believed
from coppice.tensors import masks_of, weight_group
from tests.coppice.methods.prunefl.own_masks import Run, cost
from tests.coppice.methods.prunefl.small import FIRST, SECOND

KEPT = {FIRST: 20, SECOND: 10}
STEPS = 3
HONEST = cost()
PREDICTED = HONEST.time.seconds(KEPT, STEPS)


def seconds(found: DeviceCost | None) -> float:
    assert found is not None
    return found.time.seconds(KEPT, STEPS)


@pytest.mark.parametrize("off", [1.01 / TOLERANCE, 1.0, TOLERANCE / 1.01])
def test_costs_near_what_was_measured_are_believed(off: float) -> None:
    assert believed(HONEST, KEPT, STEPS, off * PREDICTED, reported=False) is HONEST


@pytest.mark.parametrize("off", [1e-6, 0.99 / TOLERANCE, TOLERANCE * 1.01, 1e6])
def test_costs_far_from_what_was_measured_are_scaled_to_it(off: float) -> None:
    found = believed(HONEST, KEPT, STEPS, off * PREDICTED, reported=False)
    assert seconds(found) == pytest.approx(off * PREDICTED)
    assert found is not None
    assert replace(found, time=HONEST.time) == HONEST


def test_a_round_that_reported_importance_may_take_longer_but_not_be_shorter() -> None:
    assert believed(HONEST, KEPT, STEPS, 100 * PREDICTED, reported=True) is HONEST
    shorter = believed(HONEST, KEPT, STEPS, PREDICTED / 100, reported=True)
    assert seconds(shorter) == pytest.approx(PREDICTED / 100)


@pytest.mark.parametrize("measured", [None, 0.0])
def test_costs_are_believed_where_nothing_was_measured(measured: float | None) -> None:
    assert believed(HONEST, KEPT, STEPS, measured, reported=False) is HONEST


def test_costs_that_no_scale_makes_sense_of_are_not_believed() -> None:
    nothing = replace(HONEST, time=HONEST.time.times(0.0))
    assert believed(nothing, KEPT, STEPS, 1.0, reported=False) is None
    cliff = LayerCost(kept=(20, 21), sparse_seconds=(0.0, 1.0), dense_seconds=MOST_SECONDS)
    steep = replace(HONEST.time.times(1e-3), layers={**HONEST.time.layers, FIRST: cliff})
    for_ever = replace(HONEST, time=steep)
    assert believed(for_ever, KEPT, STEPS, 1e3, reported=False) is None


# ---- in a fleet ----------------------------------------------------------------------------------


def timed(run: Run, really: Mapping[str, DeviceCost]) -> float:
    """A round that the server times. Returns the pace after it."""
    updates = []
    for update in run.updates():
        masks = masks_of(weight_group(update.payload, "delta"))
        kept = {name: mask.count for name, mask in masks.items()}
        took = really[update.client_id].time.seconds(kept, update.steps)
        updates.append(replace(update, seconds=took))
    run.fold(updates)
    assert run.state.fleet is not None
    return run.state.fleet.pace_seconds


def test_a_device_that_claims_to_need_years_cannot_stall_the_others() -> None:
    really = {"fast": cost(), "slow": cost(8), "liar": cost()}
    claims = replace(cost(), time=replace(cost().time, round_seconds=1e8))
    honest, lied = Run(really), Run({**really, "liar": claims})
    pace = timed(lied, really)
    assert pace < 1.5 * timed(honest, really)
    # The pace is still one that the slow device can keep.
    assert pace >= really["slow"].time.seconds({FIRST: 8, SECOND: 3}, 1)
    assert lied.choices()["slow"].get("why") == "pace"


def test_a_device_that_claims_to_need_no_time_does_not_hurry_the_others() -> None:
    really = {"fast": cost(), "liar": cost(8)}
    paces = []
    for claims in (1e-6, 8):
        run = Run({**really, "liar": cost(claims)}, reconfigure_every=3)
        for _ in range(3):
            pace = timed(run, really)
        paces.append(pace)
    assert paces[0] > 0.9 * paces[1]
