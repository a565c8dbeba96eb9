"""Who is in a cohort."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.domain import ClientId
from server.selection import cohort_wanted, has_labels, ranked
from tests.server.run_samples import run_spec

NAMES = [ClientId(f"pi-{index}") for index in range(20)]


def test_order_does_not_depend_on_who_came_first() -> None:
    spec = run_spec(size=5)
    assert ranked(spec, 3, NAMES) == ranked(spec, 3, reversed(NAMES))
    assert sorted(ranked(spec, 3, NAMES)) == sorted(NAMES)


def test_every_round_takes_another_order() -> None:
    spec = run_spec(size=5)
    assert len({tuple(ranked(spec, number, NAMES)) for number in range(1, 21)}) == 20


def test_every_client_has_its_turn() -> None:
    spec = run_spec(size=5)
    taken = {name for number in range(1, 60) for name in cohort_wanted(spec, number, NAMES)}
    assert taken == set(NAMES)


@given(st.sets(st.sampled_from(NAMES), min_size=2), st.integers(1, 50))
def test_who_leaves_does_not_change_the_order_of_the_others(
    there: set[ClientId], number: int
) -> None:
    spec = run_spec(size=5)
    left = min(there)
    order = [name for name in ranked(spec, number, there) if name != left]
    assert ranked(spec, number, there - {left}) == order


@pytest.mark.parametrize(
    ("size", "over_selection", "planned"), [(10, 1.0, 10), (10, 1.2, 12), (3, 1.5, 5), (1, 1.4, 1)]
)
def test_over_selection_asks_for_more(size: int, over_selection: float, planned: int) -> None:
    spec = run_spec(size=size, over_selection=over_selection)
    cohort = cohort_wanted(spec, 1, NAMES)
    assert len(cohort) == planned
    assert list(cohort) == ranked(spec, 1, NAMES)[:planned]


def test_small_fleet_is_wanted_whole() -> None:
    assert set(cohort_wanted(run_spec(size=50), 1, NAMES)) == set(NAMES)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"room": "7"}, True),
        ({"room": "7", "site": "barn"}, True),
        ({"room": "8"}, False),
        ({"room": "7", "floor": ""}, False),
        ({"Room": "7"}, False),
    ],
)
def test_client_needs_every_label_that_is_asked_for(wanted: dict[str, str], fits: bool) -> None:
    assert has_labels({"room": "7", "site": "barn", "extra": "x"}, wanted) is fits
