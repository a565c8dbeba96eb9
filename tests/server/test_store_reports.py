"""What devices measured of their rounds, in the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import ClientId, Forecast, RoundReport, TaskKind
from server.records import ReportRecord
from server.store import Store
from tests.server.store_samples import (
    EVENT,
    KINDS_OF_STORE,
    NOON,
    SPEC,
    blob,
    fresh_store,
    new_task,
    plan,
    start,
)

ONE, TWO = ClientId("pi-1"), ClientId("pi-2")
REPORT = RoundReport(
    round_number=1,
    steps=12,
    density=0.25,
    download_seconds=0.5,
    compute_seconds=12.25,
    upload_seconds=0.75,
    peak_bytes=2**40,
    budget_bytes=2**41,
    bound_by="memory.max of /a",
    forecast=Forecast(0.25, 11.5, 1.25, 2**39, "memory"),
)


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        yield made


def answered(store: Store, run_id: int, *clients: str, round_number: int = 1) -> None:
    """A round in which these clients sent their updates."""
    for task in plan(store, run_id, *clients, round_number=round_number):
        store.store_update(task.task_id, blob("u"), 1, 1, {}, NOON)


def two_rounds(store: Store) -> int:
    run_id = start(store)
    answered(store, run_id, ONE, TWO)
    store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
    store.open_round(run_id, 2, NOON)
    answered(store, run_id, ONE, TWO, round_number=2)
    return run_id


def test_a_report_is_kept_as_it_came(store: Store) -> None:
    run_id = two_rounds(store)
    plain = replace(REPORT, round_number=2, forecast=None)
    first = store.store_report(run_id, ONE, REPORT, NOON, [EVENT])
    second = store.store_report(run_id, ONE, plain, NOON + 1)
    assert first == ReportRecord(1, run_id, ONE, REPORT, NOON)
    assert second == ReportRecord(2, run_id, ONE, plain, NOON + 1)
    assert store.reports(run_id) == [first, second]
    assert store.reports(run_id + 1) == []
    assert len(store.events(None)) == 1


def test_the_newest_report_on_a_round_counts(store: Store) -> None:
    run_id = two_rounds(store)
    again = replace(REPORT, steps=13)
    store.store_report(run_id, ONE, REPORT, NOON)
    store.store_report(run_id, TWO, REPORT, NOON)
    changed = store.store_report(run_id, ONE, again, NOON + 1)
    assert changed == ReportRecord(1, run_id, ONE, again, NOON + 1)
    assert [record.report.steps for record in store.reports(run_id)] == [13, 12]


def test_only_a_round_that_has_the_client_s_update_takes_a_report(store: Store) -> None:
    run_id = two_rounds(store)
    evaluate = [new_task("pi-3", TaskKind.EVALUATE)]
    (task,) = store.commit_tasks(run_id, 2, "0" * 64, NOON, evaluate, NOON)
    store.store_update(task.task_id, blob("e"), 1, 0, {}, NOON)
    plan(store, run_id, "pi-4", round_number=2)
    assert store.store_report(run_id, ONE, replace(REPORT, round_number=3), NOON) is None
    assert store.store_report(run_id + 1, ONE, REPORT, NOON) is None
    for name in ("pi-3", "pi-4", "pi-5"):
        report = replace(REPORT, round_number=2)
        assert store.store_report(run_id, ClientId(name), report, NOON, [EVENT]) is None
    assert store.reports(run_id) == []
    assert store.events(None) == []


def test_reports_come_in_pages(store: Store) -> None:
    run_id = two_rounds(store)
    for number in (1, 2):
        for name in (ONE, TWO):
            store.store_report(run_id, name, replace(REPORT, round_number=number), NOON)

    def numbers(after: int = 0, limit: int = 1000, newest: bool = False) -> list[int]:
        return [record.report_id for record in store.reports(run_id, after, limit, newest=newest)]

    assert numbers() == [1, 2, 3, 4]
    assert numbers(after=1, limit=2) == [2, 3]
    assert numbers(limit=2, newest=True) == [3, 4]
    assert numbers(after=4) == []


def test_the_last_report_of_each_client_is_found(store: Store) -> None:
    assert store.newest_reports() == []
    first = two_rounds(store)
    store.store_report(first, ONE, REPORT, NOON)
    store.store_report(first, TWO, REPORT, NOON)
    second = store.submit_run(SPEC, NOON)
    store.start_run(second, blob("0"), NOON)
    store.open_round(second, 1, NOON)
    answered(store, second, ONE)
    store.store_report(second, ONE, REPORT, NOON)
    found = {record.client_id: record.run_id for record in store.newest_reports()}
    assert found == {ONE: second, TWO: first}


def test_last_tasks_of_each_client_are_told_with_what_they_took(store: Store) -> None:
    run_id = start(store)
    for number in (1, 2, 3):
        if number > 1:
            store.open_round(run_id, number, NOON)
        one, two = plan(store, run_id, ONE, TWO, round_number=number)
        # Offered three seconds after noon.
        store.store_update(one.task_id, blob("u"), 1, 5, {}, NOON + 3 + 10 * number)
        if number == 1:
            store.store_update(two.task_id, blob("u"), 1, 7, {}, NOON + 4)
        store.commit_round(run_id, number, blob("1"), {}, [], NOON)
    timed = store.timed_tasks(run_id, 2)
    assert [(item.client_id, item.seconds) for item in timed] == [
        (TWO, 1.0),
        (ONE, 20.0),
        (ONE, 30.0),
    ]
    assert {item.kind for item in timed} == {TaskKind.TRAIN}
    assert [item.work.steps for item in timed] == [7, 5, 5]
    assert all(item.work.down_bytes > 0 and item.work.up_bytes > 0 for item in timed)
    assert store.timed_tasks(run_id + 1, 2) == []
