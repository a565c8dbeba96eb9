"""What a device's link and memory afford it to report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coppice.device_cost import DeviceCost
from coppice.methods.prunefl.choice import Choice, choose
from coppice.methods.prunefl.profile import LayerProfile, Profile
from coppice.methods.prunefl.report import choose_with_report, report_bytes
from coppice.methods.prunefl.sample import MOST_EVERY
from coppice.methods.prunefl.terms import Terms
from tests.coppice.costs import BASE_BYTES, device_cost
from tests.coppice.methods.prunefl.small import FIRST, SECOND
from tests.coppice.toys import two_layers

COUNTS = {FIRST: (8, 16, 32), SECOND: (3, 12, 24)}
PROFILE = Profile(
    layers={
        name: LayerProfile(kept=kept, gains=tuple(map(float, kept)))
        for name, kept in COUNTS.items()
    },
    levels=1,
    base_gain=0.0,
)
#: Weights of the larger layer, and of a sample of every second one of both.
LARGEST, HALF = 32, 28
STEPS = 2
LONG = 1e3
#: Of the device's weights, when all are kept.
WHOLE_BYTES = device_cost(two_layers()).peak_bytes({FIRST: 32, SECOND: 24}) - BASE_BYTES


def decided(
    cost: DeviceCost, pace_seconds: float = LONG, pace: float = LONG
) -> tuple[Choice, int, Choice]:
    """The choice with a report, of how much that is, and the choice without."""
    chosen = choose(PROFILE, cost, pace, STEPS)
    assert chosen is not None
    terms = Terms(PROFILE, pace_seconds, STEPS, report_due=True)
    return *choose_with_report(terms, cost, pace, chosen), chosen


def sending(value_seconds: float) -> DeviceCost:
    cost = device_cost(two_layers())
    return replace(cost, time=replace(cost.time, seconds_per_value=value_seconds))


def with_room(room_bytes: float) -> DeviceCost:
    return device_cost(two_layers(), limit_bytes=BASE_BYTES + room_bytes)


def test_with_time_and_memory_for_it_all_is_reported() -> None:
    with_report, every, without = decided(with_room(WHOLE_BYTES + report_bytes(PROFILE, 1) + 1))
    assert (with_report, every) == (without, 1)


@pytest.mark.parametrize("afforded", [55.0, 28.0, 10.0, 4.0])
def test_sending_a_report_takes_no_longer_than_the_pace(afforded: float) -> None:
    cost = sending(LONG / afforded)
    _, every, _ = decided(cost, pace=1e9)
    values = sum(-(-size // every) for size in (32, 24))
    assert values * cost.time.seconds_per_value <= LONG
    # Twice as much would take longer.
    assert 2 * values > afforded - 2 * len(COUNTS)


def test_a_link_that_is_not_known_yet_is_no_limit() -> None:
    assert decided(sending(0.0))[1] == 1


def test_before_there_is_a_pace_sending_takes_no_longer_than_the_round() -> None:
    _, every, without = decided(sending(1.0), pace_seconds=0.0, pace=30.0)
    values = sum(-(-size // every) for size in (32, 24))
    assert every > 1
    assert values <= without.seconds


def test_a_link_too_slow_for_any_sample_reports_nothing() -> None:
    _, every, without = decided(sending(LONG), pace=1e9)
    assert every == 0
    assert without.kept == {FIRST: 32, SECOND: 24}


def test_less_memory_makes_the_sample_smaller_before_the_choice() -> None:
    room = 4.4 * (LARGEST + 2 * (HALF + 3))
    with_report, every, without = decided(with_room(WHOLE_BYTES + room))
    assert with_report == without
    assert every == 2
    assert report_bytes(PROFILE, every) <= room < report_bytes(PROFILE, 1)


def test_room_is_made_for_a_sample_no_larger_than_its_gradient() -> None:
    cost = with_room(WHOLE_BYTES)
    with_report, every, without = decided(cost)
    needed = report_bytes(PROFILE, every)
    assert every > 1
    assert needed <= 4.4 * 2 * LARGEST
    assert with_report.peak_bytes + needed <= cost.limit_bytes
    assert sum(with_report.kept.values()) < sum(without.kept.values())


def test_who_has_no_memory_for_a_report_keeps_its_choice() -> None:
    with_report, every, without = decided(with_room(22.0 * 12))
    assert (with_report, every) == (without, 0)


def test_largest_sample_there_is_stays_within_what_a_server_takes() -> None:
    for afforded in (2.01, 2.06, 2.1, 3.0):
        assert 0 <= decided(sending(LONG / afforded), pace=1e9)[1] <= MOST_EVERY
