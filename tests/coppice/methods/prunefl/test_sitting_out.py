"""Who cannot keep the pace: how many have to, and how long the others sit out."""

from __future__ import annotations

from typing import Any

import pytest

from coppice.cohort import CohortSpec
from coppice.device_cost import DeviceCost
from coppice.methods.prunefl.device_scope import FleetRound
from tests.coppice.methods.prunefl.own_masks import Run, cost, kept
from tests.coppice.methods.prunefl.small import FIRST, SECOND

LEAST = {FIRST: 8, SECOND: 3}


def shortest(device: DeviceCost) -> float:
    return device.time.seconds(LEAST, 1)


def paced(cohort: CohortSpec, slowness: float = 1000, **fields: Any) -> tuple[Run, float]:
    """A run of two alike and a slow one, after its first round."""
    costs = {"fast": cost(), "other": cost(), "slow": cost(slowness)}
    run = Run(costs, cohort, reconfigure_every=50, **fields)
    run.round()
    assert run.state.fleet is not None
    return run, run.state.fleet.pace_seconds


@pytest.mark.parametrize(("quorum", "takes_part"), [(2, False), (3, True)])
def test_as_many_can_keep_the_pace_as_the_quorum_of_the_run(quorum: int, takes_part: bool) -> None:
    run, pace = paced(CohortSpec(size=3, quorum=quorum), include="quorum")
    assert (pace >= shortest(cost(1000))) == takes_part
    assert ("slow" in run.round()) == takes_part


def test_of_more_devices_than_a_cohort_has_as_large_a_share_can_keep_the_pace() -> None:
    """Any of them may be in the next cohort."""

    def needed(devices: int, cohort: CohortSpec) -> int:
        return FleetRound(1, 1, 0.1, is_due=True, cohort=cohort).quorum_of(devices)

    cohort = CohortSpec(size=10, quorum=7)
    assert [needed(devices, cohort) for devices in (5, 10, 11, 100)] == [7, 7, 8, 70]


def test_who_sat_out_often_enough_does_the_least_and_may_sit_out_again() -> None:
    run, _ = paced(CohortSpec(size=3, quorum=2), include="quorum", most_rounds_out=2)
    took_part = []
    for _ in range(7):
        tasks = run.round()
        took_part.append("slow" in tasks)
        if "slow" in tasks:
            assert kept(tasks["slow"]) == LEAST
            assert tasks["slow"].settings["steps"] == 1
            assert not tasks["slow"].settings["report"]
    assert took_part == [False, False, True, False, False, True, False]


def test_a_device_without_the_memory_sits_out_for_ever() -> None:
    run, _ = paced(CohortSpec(size=3, quorum=2), include="quorum", most_rounds_out=1)
    run.costs["slow"] = cost(room=0.0)
    for _ in range(4):
        assert "slow" not in run.round()


def test_no_pace_comes_near_the_deadline_of_a_round() -> None:
    """A device that needs longer does the least, and the others do not wait with more to do."""
    least = shortest(cost(1000))
    run, pace = paced(CohortSpec(size=3, deadline_seconds=2.1 * least))
    assert pace >= least
    run, pace = paced(CohortSpec(size=3, deadline_seconds=1.9 * least))
    assert 0 < pace < least / 50
    assert kept(run.round()["slow"]) == LEAST
