"""The words: names, the parts of a run that must agree, cohorts, judging, seeds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.cohort import CohortSpec
from coppice.domain import (
    AppSpec,
    ClientId,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    ModelSpec,
    RunSpec,
    StopSpec,
    Workload,
    derive_seed,
    rank_clients,
    valid_name,
)

APP = AppSpec(name="my_app.py", digest="0" * 64)
MODEL = ModelSpec(name="mlp")
DATA = DataSpec(classes=("a", "b"), input_shape=(3, 8, 8))
METHOD = MethodSpec(name="fedavg")


def run(**fields: Any) -> RunSpec:
    needed: dict[str, Any] = {"name": "run", "app": APP, "method": METHOD}
    needed |= {"cohort": CohortSpec(size=2), "stop": StopSpec(rounds=10)}
    return RunSpec(**(needed | fields))


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "7", "pi-4.kitchen_2", "A" * 63, "a.", "a-"])
def test_names_that_are_allowed(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".a", "-a", "_a", "A" * 64, "a b", "a/b", "..", "ä", "a\n", "a\0", "a\r\n", "٣", "a,b"],
)
def test_names_that_are_not(name: str) -> None:
    assert not valid_name(name)
    with pytest.raises(ValueError, match="1 to 63 letters, digits"):
        Workload(name=name, app=APP, method=METHOD)


# ---- what must agree ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"model": MODEL}, {"data": DATA}])
def test_a_run_needs_something_to_train(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs .model. and .data., or an app"):
        Workload(name="run", method=METHOD, **fields)


@pytest.mark.parametrize(
    "fields", [{"model": MODEL}, {"data": DATA}, {"model": MODEL, "data": DATA}]
)
def test_a_run_trains_a_model_or_an_app_and_not_both(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"takes no .model. and no .data."):
        Workload(name="run", app=APP, method=METHOD, **fields)


def test_no_class_is_named_twice() -> None:
    with pytest.raises(ValueError, match="names a class twice"):
        DataSpec(classes=("a", "b", "a"), input_shape=(1,))


@pytest.mark.parametrize("key", ["mean", "std"])
def test_normalisation_has_one_value_or_one_for_each_channel(key: str) -> None:
    def replaced(*values: float) -> DataSpec:
        fields: dict[str, Any] = {key: values}
        return dataclasses.replace(DATA, **fields)

    assert replaced(0.5)
    assert replaced(0.1, 0.2, 0.3)
    for values in ((), (0.1, 0.2), (0.1,) * 8):
        message = rf"data\.{key} has {len(values)} values; .* 3 channels"
        with pytest.raises(ValueError, match=message):
            replaced(*values)


def test_only_the_workload_travels() -> None:
    spec = run(seed=5)
    assert spec.workload == Workload(name="run", seed=5, app=APP, method=METHOD)
    assert type(spec.workload) is Workload
    fields = {field.name for field in dataclasses.fields(RunSpec)}
    own = {field.name for field in dataclasses.fields(Workload)}
    assert fields - own == {"cohort", "stop", "evaluation", "warm_start", "protection"}
    # A field that a workload gains must be passed on.
    assert all(getattr(spec.workload, name) == getattr(spec, name) for name in own)


# ---- cohorts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "needed"), [(1, 1), (2, 1), (3, 2), (10, 5), (11, 6)])
def test_half_of_a_cohort_is_enough_unless_a_quorum_says_more(size: int, needed: int) -> None:
    assert CohortSpec(size=size).needed == needed
    assert CohortSpec(size=size, quorum=size).needed == size
    assert CohortSpec(size=size, quorum=1).needed == 1


def test_a_quorum_beyond_the_cohort_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quorum is 3; allowed is at most cohort.size \(2\)"):
        CohortSpec(size=2, quorum=3)


@pytest.mark.parametrize(
    ("size", "factor", "planned"),
    [(10, 1.0, 10), (10, 1.2, 12), (10, 1.25, 13), (1, 1.2, 1), (3, 1.2, 4), (10**5, 10.0, 10**6)],
)
def test_over_selection_plans_more_than_are_needed(size: int, factor: float, planned: int) -> None:
    assert CohortSpec(size=size, over_selection=factor).planned == planned


# ---- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "due"), [(1, list(range(1, 11))), (3, [3, 6, 9, 10]), (5, [5, 10]), (99, [10])]
)
def test_the_last_round_is_always_evaluated(every: int, due: list[int]) -> None:
    spec = run(evaluation=EvaluationSpec(every=every))
    assert [number for number in range(1, 11) if spec.evaluation_due(number)] == due


def test_the_best_is_the_first_of_the_best() -> None:
    top, low = EvaluationSpec(), EvaluationSpec(metric="loss", goal="min")
    assert top.better(0.0, None)
    assert top.better(0.6, 0.5)
    assert not top.better(0.5, 0.5)
    assert not top.better(0.4, 0.5)
    assert low.better(0.4, 0.5)
    assert not low.better(0.5, 0.5)


@pytest.mark.parametrize("goal", ["max", "min"])
def test_nan_is_never_the_best_and_reaches_nothing(goal: Any) -> None:
    spec = EvaluationSpec(goal=goal)
    assert not spec.better(math.nan, None)
    assert not spec.better(math.nan, 0.5)
    assert not spec.reaches(math.nan, 0.5)


def test_a_target_is_reached_exactly_or_passed() -> None:
    top, low = EvaluationSpec(), EvaluationSpec(goal="min")
    assert [top.reaches(value, 0.9) for value in (0.89, 0.9, 0.91)] == [False, True, True]
    assert [low.reaches(value, 0.9) for value in (0.89, 0.9, 0.91)] == [True, True, False]


# ---- seeds -------------------------------------------------------------------------------------


def test_seeds_stay_what_they_are() -> None:
    # A change would make every run of an older version another one.
    assert derive_seed(0) == 0x5FECEB66FFC86F38 >> 1
    assert derive_seed(7, "client-1", 3) == 1466312630480484287
    assert rank_clients(7, 1, map(ClientId, "abcde")) == list("aebcd")


@given(st.integers(0, 2**63 - 1), st.lists(st.text() | st.integers(), max_size=3))
def test_a_seed_fits_every_generator(seed: int, parts: list[str | int]) -> None:
    assert 0 <= derive_seed(seed, *parts) < 2**63


def test_every_part_counts() -> None:
    seeds = {
        derive_seed(seed, client, round_number)
        for seed in range(5)
        for client in ("a", "b", "1", "11")
        for round_number in range(12)
    }
    assert len(seeds) == 5 * 4 * 12
    assert len({derive_seed(1, *parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",))}) == 3


@given(st.permutations([ClientId(f"c{number}") for number in range(8)]))
def test_the_order_of_clients_depends_on_their_names_only(clients: list[ClientId]) -> None:
    assert rank_clients(3, 2, clients) == rank_clients(3, 2, sorted(clients))


def test_every_client_comes_first_equally_often() -> None:
    clients = [ClientId(f"c{number}") for number in range(4)]
    firsts = [rank_clients(0, round_number, clients)[0] for round_number in range(2000)]
    for client in clients:
        # Five standard deviations about 500.
        assert abs(firsts.count(client) - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_a_client_keeps_its_place_among_others_whoever_else_is_there() -> None:
    clients = [ClientId(f"c{number}") for number in range(9)]
    few = rank_clients(1, 4, clients[:5])
    assert [client for client in rank_clients(1, 4, clients) if client in few] == few
