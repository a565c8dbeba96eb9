"""Refused updates in the store: once for each task, with the figures, and what they count as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import ClientId
from coppice.errors import StoreUnusable, UpdateRefused
from coppice.protection import Finding
from server.records import RunState, TaskRecord
from server.store import Store
from server.store_read import QUARANTINED
from tests.server.store_samples import (
    EVENT,
    KINDS_OF_STORE,
    NOON,
    blob,
    fresh_store,
    new_client,
    new_task,
    plan,
    start,
)

ONE, TWO = ClientId("pi-1"), ClientId("pi-2")
FINDING = Finding("size", "it is too large", {"times": 1000.5})


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        made.join_client(new_client(), NOON)
        yield made


@pytest.fixture
def tasks(store: Store) -> list[TaskRecord]:
    """Of both clients in round 1 of run 1."""
    return plan(store, start(store), ONE, TWO)


def refused_when_it_came(store: Store, task: TaskRecord) -> None:
    store.refuse_update(task, blob("u", 7), FINDING, NOON + 9, [EVENT])


def test_a_refusal_is_kept_with_its_figures(store: Store, tasks: list[TaskRecord]) -> None:
    refused_when_it_came(store, tasks[0])
    (found,) = store.refusals(1)
    assert found == store.refusal(tasks[0].task_id)
    assert (found.run_id, found.round_number, found.client_id) == (1, 1, ONE)
    assert (found.finding, found.blob, found.refused_at) == (FINDING, blob("u", 7), NOON + 9)
    assert store.refusal(tasks[1].task_id) is None
    assert store.refused_tasks(1, 1) == {tasks[0].task_id}
    assert [row.outcome for row in store.ledger(1)] == ["refused", "missing"]
    assert [event.kind for event in store.events(1)] == [EVENT.kind]
    client = store.client(ONE)
    assert client is not None
    assert client.refusals == 1


def test_the_first_word_on_a_task_stays(store: Store, tasks: list[TaskRecord]) -> None:
    refused_when_it_came(store, tasks[0])
    store.refuse_update(tasks[0], blob("v"), Finding("claims", "another"), NOON)
    with pytest.raises(UpdateRefused, match="it is too large"):
        store.store_update(tasks[0].task_id, blob("g"), 1, 1, {}, NOON)
    stored = store.store_update(tasks[1].task_id, blob("g"), 1, 1, {}, NOON)
    refused_when_it_came(store, tasks[1])
    assert [item.finding for item in store.refusals(1)] == [FINDING]
    assert store.update(tasks[1].task_id) == stored
    client = store.client(ONE)
    assert client is not None
    assert client.refusals == 1


def test_a_round_is_committed_with_its_verdicts(store: Store, tasks: list[TaskRecord]) -> None:
    for task in tasks:
        store.store_update(task.task_id, blob("u"), 1, 1, {}, NOON)
    one, two = (task.task_id for task in tasks)
    for counted in ([one, two], [one]):
        with pytest.raises(StoreUnusable, match="refused or not stored"):
            store.commit_round(1, 1, blob("1"), {}, counted, NOON, refused={one: FINDING})
    assert store.refusals(1) == []
    store.commit_round(1, 1, blob("1"), {}, [two], NOON, refused={one: FINDING})
    assert [row.outcome for row in store.ledger(1)] == ["refused", "counted"]
    assert store.rounds(1)[0].num_updates == 1
    # Once more is no round that is open.
    with pytest.raises(StoreUnusable, match="is not open"):
        store.commit_round(1, 1, blob("1"), {}, [two], NOON, refused={one: FINDING})
    assert len(store.refusals(1)) == 1


def test_strikes_are_of_rounds_that_were_committed(store: Store, tasks: list[TaskRecord]) -> None:
    refused_when_it_came(store, tasks[0])
    assert store.strikes(1) == {}
    store.commit_round(1, 1, blob("1"), {}, [], NOON)
    assert store.strikes(1) == {ONE: 1}
    store.open_round(1, 2, NOON)
    for task in plan(store, 1, ONE, TWO, round_number=2):
        refused_when_it_came(store, task)
    store.fail_round(1, 2, NOON)
    assert store.strikes(1) == {ONE: 1}
    assert store.strikes(2) == {}


def test_refusals_come_in_pages_and_by_client(store: Store, tasks: list[TaskRecord]) -> None:
    for task in tasks:
        refused_when_it_came(store, task)
    first, second = store.refusals(1)
    assert store.refusals(1, first.refusal_id) == [second]
    assert store.refusals(1, limit=1) == [first]
    assert store.refusals(1, limit=1, newest=True) == [second]
    assert store.refusals(1, client_id=TWO) == [second]
    assert store.refusals(2) == []


def test_clients_are_remembered_until_their_run_is_over(
    store: Store, tasks: list[TaskRecord]
) -> None:
    refused_when_it_came(store, tasks[1])
    assert store.refused_clients() == {TWO}
    store.end_run(1, RunState.STOPPED, "", NOON)
    assert store.refused_clients() == set()


def test_the_bytes_of_the_newest_are_kept_while_the_run_is_open(store: Store) -> None:
    names = [f"pi-{number}" for number in range(QUARANTINED + 2)]
    made = plan(store, start(store), *names)
    store.commit_round(1, 1, blob("1"), {}, [], NOON)
    store.open_round(1, 2, NOON)
    for number, task in enumerate(made):
        store.refuse_update(task, blob(f"{number:x}"[-1], number), FINDING, NOON)
    digests = [item.blob.digest for item in store.refusals(1)]
    assert set(digests[2:]) <= store.live_blobs()
    store.end_run(1, RunState.STOPPED, "", NOON)
    states = {blob("0").digest, blob("1").digest}
    assert not (set(digests) - states) & store.live_blobs()


def test_what_a_task_allows_to_claim_is_kept(store: Store) -> None:
    run_id = start(store)
    new = [replace(new_task(ONE), most_examples=2**40, most_steps=7), new_task(TWO)]
    store.commit_tasks(run_id, 1, "0" * 64, NOON, new, NOON)
    found = [(task.most_examples, task.most_steps) for task in store.tasks(run_id, 1)]
    assert found == [(2**40, 7), (None, None)]
