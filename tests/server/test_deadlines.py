"""Deadlines from what clients took: robust, long enough for who is slow, never above the most."""

from __future__ import annotations

from typing import Any

import pytest

from coppice.cohort import CohortSpec
from coppice.domain import ClientId, TaskKind
from server.deadlines import KEPT, Deadlines, usual_seconds
from server.records import TimedTask, Work
from tests.server.run_samples import A, B, C

WORK = Work(1000, 10, 1000)
LONGEST = 10_000.0


def deadlines(**cohort: Any) -> Deadlines:
    settings = {"size": 2, "deadline_seconds": LONGEST, "deadline_shortest_seconds": 1.0}
    return Deadlines(CohortSpec(**(settings | cohort)))


def play(made: Deadlines, *rounds: dict[ClientId, float], work: Work = WORK) -> None:
    """Rounds in which these clients answered after so many seconds."""
    for took in rounds:
        made.planned(TaskKind.TRAIN, dict.fromkeys(took, work))
        made.closed(took, max(took.values()))


def plan(made: Deadlines, *clients: ClientId, work: Work = WORK) -> float:
    return made.planned(TaskKind.TRAIN, dict.fromkeys(clients, work))


def test_without_a_measurement_it_is_the_longest() -> None:
    assert plan(deadlines(), A, B) == LONGEST


def test_one_client_without_a_measurement_is_enough_for_that() -> None:
    made = deadlines()
    play(made, {A: 10.0})
    assert plan(made, A) < LONGEST
    assert plan(made, A, C) == LONGEST


def test_follows_what_was_measured() -> None:
    made = deadlines()
    play(made, *({A: 10.0, B: 12.0} for _ in range(5)))
    assert plan(made, A, B) == 24.0, "twice what the slower one takes, where nothing spreads"


def test_the_slowest_that_is_planned_decides_however_many_are_fast() -> None:
    made = deadlines()
    play(made, *({A: 10.0, B: 11.0, C: 300.0} for _ in range(5)))
    assert plan(made, A, B, C) >= 600.0
    assert plan(made, A, B) < 30.0


def test_spread_makes_it_longer() -> None:
    steady, spread = deadlines(), deadlines()
    play(steady, *({A: 100.0} for _ in range(7)))
    play(spread, *({A: seconds} for seconds in (40.0, 160.0, 55.0, 150.0, 60.0, 140.0, 100.0)))
    assert plan(steady, A) == 200.0
    assert plan(spread, A) > 300.0


def test_one_outlier_is_forgotten_with_the_next_round() -> None:
    made = deadlines()
    play(made, *({A: 10.0} for _ in range(5)), {A: 1000.0})
    assert plan(made, A) == 2000.0
    play(made, {A: 10.0})
    assert plan(made, A) == 20.0


def test_only_the_last_rounds_count() -> None:
    made = deadlines()
    play(made, *({A: 100.0} for _ in range(KEPT)), *({A: 10.0} for _ in range(KEPT)))
    assert plan(made, A) == 20.0


def test_who_missed_it_gets_twice_as_long_until_it_answers() -> None:
    made = deadlines()
    play(made, *({A: 10.0, B: 10.0} for _ in range(3)))
    waited = plan(made, A, B)
    for _ in range(3):
        made.closed({A: 10.0}, waited)
        again = plan(made, A, B)
        assert again == 2 * waited
        waited = again
    made.closed({A: 10.0, B: 90.0}, 90.0)
    assert plan(made, A, B) == 180.0


@pytest.mark.parametrize(
    ("work", "times"),
    [
        (Work(1000, 30, 1000), 3),
        (Work(2000, 10, 1000), 2),
        (Work(2000, 30, 1000), 6),
        (Work(1000, 10, 5000), 5),
        (Work(10, 1, 10), 1),
        (Work(1000, None, 1000), 1),
    ],
)
def test_more_work_gets_as_many_times_as_much(work: Work, times: int) -> None:
    made = deadlines()
    play(made, {A: 10.0}, {A: 10.0})
    assert plan(made, A, work=work) == 20.0 * times


def test_is_between_the_shortest_and_the_longest() -> None:
    made = deadlines(deadline_seconds=100.0, deadline_shortest_seconds=30.0)
    play(made, {A: 1.0, B: 80.0})
    assert plan(made, A) == 30.0
    assert plan(made, B) == 100.0
    low = deadlines(deadline_seconds=5.0, deadline_shortest_seconds=30.0)
    play(low, {A: 1.0})
    assert plan(low, A) == 5.0


def test_fixed_is_fixed() -> None:
    made = deadlines(deadline="fixed")
    play(made, *({A: 10.0} for _ in range(5)))
    assert plan(made, A) == LONGEST


def test_each_kind_of_task_has_its_own() -> None:
    made = deadlines()
    play(made, {A: 10.0})
    assert made.planned(TaskKind.EVALUATE, {A: WORK}) == LONGEST


def test_takes_up_what_the_store_knows() -> None:
    made = deadlines()
    made.load([TimedTask(TaskKind.TRAIN, A, 10.0, WORK)] * 3)
    assert plan(made, A) == 20.0


def test_a_clock_that_was_set_back_tells_nothing() -> None:
    made = deadlines()
    play(made, {A: -5.0})
    assert plan(made, A) == LONGEST


def test_answers_to_tasks_from_before_the_start_are_not_asked_about() -> None:
    made = deadlines()
    made.closed({A: 5.0}, 5.0)
    assert plan(made, A) == LONGEST


def test_no_spreads_is_what_it_usually_takes() -> None:
    assert usual_seconds([10.0, 20.0, 12.0], 0.0) == 12.0
