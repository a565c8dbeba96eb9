"""What rounds cost, corrected by rounds: quickly, within bounds, and never below a seen peak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coppice.batch_parts import BatchMemory
from coppice.cost_learning import LearnedCost, MeasuredRound, Overhead
from coppice.device_cost import LayerCost, RoundCost, StepMemory
from coppice.memory_fit import layer_memory

ONES = {"fc": 400}
#: A layer of 1 ms and 10 us a weight beside 5 ms: 10 ms a step with 400 weights.
KNOWN = LearnedCost(
    time=RoundCost(
        round_seconds=0.0,
        step_seconds=0.005,
        seconds_per_value=0.0,
        layers={"fc": LayerCost.line(0.001, 1e-5, dense=1.0, size=1000)},
    ),
    # 10 ms and 25 us a weight: 20 ms with 400 weights.
    overhead=Overhead(fixed_seconds=0.01, seconds_per_weight=25e-6),
    memory=StepMemory(base_bytes=1e8, layers={"fc": layer_memory((10, 100))}),
)
PEAK = KNOWN.peak_bytes(ONES)


def measured(**fields: Any) -> MeasuredRound:
    given: dict[str, Any] = {
        "steps": 5,
        "ones": ONES,
        "step_seconds": 0.05,
        "work_seconds": 0.07,
        "download_bytes": 10**6,
        "download_seconds": 2.0,
        "upload_bytes": 10**6,
        "upload_seconds": 4.0,
        "peak_bytes": round(PEAK),
        "is_new": False,
    }
    return MeasuredRound(**(given | fields))


def test_the_first_round_brings_the_link_and_what_rounds_take_on_masks_that_stay() -> None:
    # New masks were rehearsed; before there is anything else, masks that stay take half of it.
    assert KNOWN.compute_seconds(ONES, 5, is_new=True) == pytest.approx(0.07)
    assert KNOWN.compute_seconds(ONES, 5) == pytest.approx(0.06)
    after = KNOWN.after(measured(work_seconds=0.065))
    assert after.compute_seconds(ONES, 5) == pytest.approx(0.065)
    assert after.compute_seconds(ONES, 5, is_new=True) == pytest.approx(0.07)
    told = after.cost(2e8).time
    assert told.round_seconds == pytest.approx(0.75 * 0.01)
    assert told.seconds_per_value == pytest.approx(0.75 * 25e-6 + 4 * 6e-6)
    assert told.seconds(ONES, 5) == pytest.approx(0.065 + 400 * 24e-6)


def test_what_new_masks_and_reports_take_is_learned_apart() -> None:
    known = KNOWN.after(measured(work_seconds=0.065))
    known = known.after(measured(work_seconds=0.09, is_new=True))
    assert known.compute_seconds(ONES, 5) == pytest.approx(0.065)
    assert known.compute_seconds(ONES, 5, is_new=True) == pytest.approx(0.08)
    reported = known.after(measured(work_seconds=0.105, besides="report"))
    assert reported.compute_seconds(ONES, 5) == pytest.approx(0.065)
    assert reported.compute_seconds(ONES, 5, reports=True) == pytest.approx(0.105)
    again = reported.after(measured(work_seconds=0.145, besides="report"))
    assert again.compute_seconds(ONES, 5, reports=True) == pytest.approx(0.125)


@pytest.mark.parametrize("slowness", [0.5, 1.7, 4.0])
def test_a_device_of_another_speed_is_known_after_some_rounds(slowness: float) -> None:
    known = KNOWN
    errors = []
    for _ in range(8):
        known = known.after(measured(step_seconds=slowness * 0.05, work_seconds=slowness * 0.07))
        errors.append(abs(known.compute_seconds(ONES, 5) / (slowness * 0.07) - 1))
    assert errors[-1] < 0.02
    assert errors == sorted(errors, reverse=True)


def test_one_hiccup_does_not_turn_everything_around() -> None:
    hiccup = KNOWN.after(measured(step_seconds=50.0, work_seconds=50.02))
    assert hiccup.compute_seconds(ONES, 5) < 3 * 0.07


@pytest.mark.parametrize("fields", [{"steps": 0}, {"step_seconds": 0.0}])
def test_rounds_without_steps_say_nothing_about_them(fields: dict[str, Any]) -> None:
    after = KNOWN.after(measured(**fields))
    assert after.time.step_seconds == KNOWN.time.step_seconds
    assert after.time.layers == KNOWN.time.layers


def test_a_single_step_is_not_taken_twice() -> None:
    # 10 ms are predicted for it; the other 60 are the round's.
    after = KNOWN.after(measured(steps=1, step_seconds=0.0, work_seconds=0.07))
    assert after.compute_seconds(ONES, 1) == pytest.approx(0.07)


def test_few_steps_say_less_than_many() -> None:
    twice = {"work_seconds": 1.0}
    few = KNOWN.after(measured(steps=2, step_seconds=2 * 0.02, **twice))
    many = KNOWN.after(measured(steps=20, step_seconds=20 * 0.02, **twice))
    assert KNOWN.time.step_seconds < few.time.step_seconds < many.time.step_seconds < 0.01


def test_small_transfers_say_nothing_about_the_link() -> None:
    known = KNOWN.after(measured())
    after = known.after(measured(download_bytes=100, upload_bytes=100))
    assert after.cost(1.0).time.seconds_per_value == known.cost(1.0).time.seconds_per_value


def test_a_higher_peak_is_believed_at_once_and_a_lower_one_slowly() -> None:
    higher = KNOWN.after(measured(peak_bytes=round(PEAK) + 10**7))
    assert higher.peak_bytes(ONES) == pytest.approx(PEAK + 1e7)
    lower = KNOWN.after(measured(peak_bytes=round(PEAK) - 10**7))
    assert PEAK - 2e6 < lower.peak_bytes(ONES) < PEAK


def test_the_peak_of_a_report_says_nothing_about_training() -> None:
    for besides in ("report", "other"):
        after = KNOWN.after(measured(peak_bytes=10**9, besides=besides))
        assert after.memory == KNOWN.memory
        assert after.compute_seconds(ONES, 5) == KNOWN.compute_seconds(ONES, 5)


def test_the_limit_is_that_of_now() -> None:
    assert KNOWN.cost(123.0).limit_bytes == 123.0
    assert replace(KNOWN, rounds=3).cost(5.0).memory.training == KNOWN.memory


def test_a_round_in_parts_says_what_whole_batches_take() -> None:
    batch = BatchMemory(examples=20, bytes_per_example=1e6)
    known = replace(KNOWN, memory=replace(KNOWN.memory, batch=batch))
    assert known.peak_bytes(ONES, 4) == pytest.approx(PEAK - 15e6)
    more = known.after(measured(parts=4, peak_bytes=round(PEAK - 5e6)))
    assert more.peak_bytes(ONES, 4) == pytest.approx(PEAK - 5e6)
    assert more.peak_bytes(ONES) == pytest.approx(PEAK + 10e6)


def test_a_device_that_does_one_step_a_round_learns_that_steps_are_shorter() -> None:
    # 10 ms and 20 ms are known: it must be wrong by far, but not at once.
    known = KNOWN
    for _ in range(40):
        known = known.after(measured(steps=1, step_seconds=0.0, work_seconds=0.001))
    assert known.compute_seconds(ONES, 1) < 0.02
    # Nothing is said about what else a round takes while the steps are too long.
    first = KNOWN.after(measured(steps=1, step_seconds=0.0, work_seconds=0.001))
    assert first.overhead == KNOWN.overhead
    # A longer round than known may owe that to anything.
    longer = KNOWN.after(measured(steps=1, step_seconds=0.0, work_seconds=5.0))
    assert longer.time == KNOWN.time
