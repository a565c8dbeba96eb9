"""Tasks, updates, the ledger and live blobs in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from coppice.domain import (
    ClientId,
    TaskKind,
)
from coppice.errors import (
    RoundClosed,
    UnknownTask,
)
from server import tables
from server.records import (
    RunState,
    TaskRecord,
)
from server.store import Store
from tests.server.store_samples import (
    EVENT,
    EXPECTS,
    KINDS_OF_STORE,
    NOON,
    SPEC,
    blob,
    fresh_store,
    new_task,
    plan,
    start,
)


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        yield made


class TestTasks:
    def test_tasks_come_back_as_they_were_planned(self, store: Store) -> None:
        run_id = start(store)
        tasks = plan(store, run_id, "pi-2", "pi-1")
        assert [(task.client_id, task.position) for task in tasks] == [("pi-2", 0), ("pi-1", 1)]
        assert tasks[0] == TaskRecord(
            task_id=tasks[0].task_id,
            run_id=run_id,
            round_number=1,
            client_id=ClientId("pi-2"),
            kind=TaskKind.TRAIN,
            position=0,
            payload=blob("b", 100),
            masks=None,
            settings={"seed": 3},
            expects=EXPECTS,
            base="0" * 64,
            deadline_at=NOON + 60,
            closed=False,
        )
        assert store.tasks(run_id, 1) == store.open_tasks(run_id) == tasks
        assert store.task(tasks[1].task_id) == tasks[1]
        assert store.tasks(run_id, 1, TaskKind.EVALUATE) == []
        assert list(tasks[0].expects["delta"]) == ["w", "b"]

    def test_a_task_names_its_masks_and_its_update_does_too(self, store: Store) -> None:
        run_id = start(store)
        masks = blob("a", 7)
        new = [dataclasses.replace(new_task("pi-1"), masks=masks), new_task("pi-2")]
        with_masks, without = store.commit_tasks(run_id, 1, "0" * 64, NOON + 60, new, NOON + 3)
        assert (with_masks.masks, without.masks) == (masks, None)
        assert store.task(with_masks.task_id) == with_masks
        for task, expected in ((with_masks, masks), (without, None)):
            update = store.store_update(task.task_id, blob("c"), 1, 1, {}, NOON + 8)
            assert (update.masks, update.offered_at, update.received_at) == (
                expected,
                NOON + 3,
                NOON + 8,
            )
            assert store.update(task.task_id) == update
        assert [update.masks for update in store.updates(run_id, 1)] == [masks, None]

    def test_tasks_may_expect_different_things(self, store: Store) -> None:
        run_id = start(store)
        other = dataclasses.replace(new_task("pi-2"), expects={})
        tasks = store.commit_tasks(
            run_id, 1, "0" * 64, NOON, [new_task("pi-1"), other, new_task("pi-3")], NOON
        )
        assert [task.expects for task in tasks] == [EXPECTS, {}, EXPECTS]

    def test_one_client_gets_one_task_of_a_kind_and_round(self, store: Store) -> None:
        run_id = start(store)
        plan(store, run_id, "pi-1")
        with pytest.raises(IntegrityError):
            plan(store, run_id, "pi-2", "pi-1")
        assert [task.client_id for task in store.tasks(run_id, 1)] == ["pi-1"]

    def test_a_plan_without_tasks_is_a_plan(self, store: Store) -> None:
        run_id = start(store)
        assert plan(store, run_id) == []

    def test_a_task_that_was_never_given_is_unknown(self, store: Store) -> None:
        with pytest.raises(UnknownTask, match="no task 4"):
            store.task(4)
        with pytest.raises(UnknownTask, match="no task 4"):
            store.store_update(4, blob("u"), 1, 1, {}, NOON)
        assert store.update(4) is None

    def test_an_update_that_comes_twice_is_stored_once(self, store: Store) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        first = store.store_update(
            task.task_id, blob("u", 40), 10, 5, {"loss": 2.5}, NOON + 4, [EVENT]
        )
        again = store.store_update(
            task.task_id, blob("v", 60), 11, 6, {"loss": 0.0}, NOON + 5, [EVENT]
        )
        assert again == first == store.update(task.task_id)
        assert (first.client_id, first.blob, first.num_examples, first.steps) == (
            "pi-1",
            blob("u", 40),
            10,
            5,
        )
        assert (first.metrics, first.received_at, first.counted) == ({"loss": 2.5}, NOON + 4, False)
        assert len(store.events(None)) == 1
        opened = store.round(run_id, 1)
        assert opened is not None
        assert opened.bytes_up == 40

    def test_an_update_that_comes_again_after_the_commit_gets_its_receipt(
        self, store: Store
    ) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        store.store_update(task.task_id, blob("u"), 10, 5, {}, NOON)
        store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)
        again = store.store_update(task.task_id, blob("u"), 10, 5, {}, NOON + 9)
        assert (again.received_at, again.counted) == (NOON, True)

    def test_updates_come_in_plan_order(self, store: Store) -> None:
        run_id = start(store)
        tasks = plan(store, run_id, "pi-3", "pi-1", "pi-2")
        for task in reversed(tasks):
            store.store_update(task.task_id, blob("u"), 10, 5, {}, NOON)
        assert [update.client_id for update in store.updates(run_id, 1)] == ["pi-3", "pi-1", "pi-2"]

    def test_closed_tasks_take_no_update_and_keep_those_they_have(self, store: Store) -> None:
        run_id = start(store)
        in_time, late = plan(store, run_id, "pi-1", "pi-2")
        store.store_update(in_time.task_id, blob("u"), 10, 5, {}, NOON)
        store.close_tasks(run_id, 1, TaskKind.TRAIN, 300, NOON)
        with pytest.raises(RoundClosed):
            store.store_update(late.task_id, blob("v"), 10, 5, {}, NOON)
        assert [task.closed for task in store.tasks(run_id, 1)] == [True, True]
        store.commit_round(run_id, 1, blob("1"), {}, [in_time.task_id], NOON)
        assert [update.counted for update in store.updates(run_id, 1)] == [True]

    def test_the_ledger_says_what_became_of_each_task(self, store: Store) -> None:
        run_id = start(store)
        counted, uncounted, missing = plan(store, run_id, "pi-3", "pi-1", "pi-2")
        store.store_update(counted.task_id, blob("u"), 10, 5, {}, NOON)
        store.store_update(uncounted.task_id, blob("v"), 20, 5, {}, NOON)
        store.commit_round(run_id, 1, blob("1"), {}, [counted.task_id], NOON)
        store.open_round(run_id, 2, NOON)
        received = plan(store, run_id, "pi-1", "pi-2", round_number=2)[0]
        store.store_update(received.task_id, blob("w"), 30, 5, {}, NOON)
        assert [
            (row.round_number, row.client_id, row.outcome, row.num_examples)
            for row in store.ledger(run_id)
        ] == [
            (1, "pi-3", "counted", 10),
            (1, "pi-1", "uncounted", 20),
            (1, "pi-2", "missing", None),
            (2, "pi-1", "received", 30),
            (2, "pi-2", "missing", None),
        ]
        row = store.ledger(run_id)[2]
        assert (row.run_id, row.task_id, row.kind) == (run_id, missing.task_id, TaskKind.TRAIN)
        assert (row.base, row.digest) == ("0" * 64, None)


class TestLiveBlobs:
    def test_nothing_is_live_in_an_empty_store(self, store: Store) -> None:
        assert store.live_blobs() == set()

    def test_a_warm_start_lives_until_its_run_is_over(self, store: Store) -> None:
        run_id = store.submit_run(dataclasses.replace(SPEC, warm_start=blob("5")), NOON)
        assert store.live_blobs() == {"5" * 64}
        store.start_run(run_id, blob("0"), NOON)
        assert store.live_blobs() == {"5" * 64, "0" * 64}
        store.end_run(run_id, RunState.FINISHED, "", NOON)
        assert store.live_blobs() == {"0" * 64}

    def test_payloads_and_updates_live_as_long_as_their_round(self, store: Store) -> None:
        run_id = start(store)
        task, _ = plan(store, run_id, "pi-1", "pi-2")
        store.store_update(task.task_id, blob("c"), 1, 1, {}, NOON)
        during = {"0" * 64, "b" * 64, "c" * 64}
        assert store.live_blobs() == during
        store.close_tasks(run_id, 1, TaskKind.TRAIN, 300, NOON)
        assert store.live_blobs() == during
        store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)
        assert store.live_blobs() == {"1" * 64}

    def test_masks_live_as_long_as_their_round(self, store: Store) -> None:
        run_id = start(store)
        new = [dataclasses.replace(new_task("pi-1"), masks=blob("a"))]
        (task,) = store.commit_tasks(run_id, 1, "0" * 64, NOON, new, NOON)
        assert store.live_blobs() == {"0" * 64, "a" * 64, "b" * 64}
        store.store_update(task.task_id, blob("c"), 1, 1, {}, NOON)
        during = {"0" * 64, "a" * 64, "b" * 64, "c" * 64}
        assert store.live_blobs() == during
        store.close_tasks(run_id, 1, TaskKind.TRAIN, 0, NOON)
        # Who folds needs them to read the updates.
        assert store.live_blobs() == during
        store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)
        assert store.live_blobs() == {"1" * 64}

    def test_what_clients_evaluate_lives_beside_the_next_round(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        evaluate = [new_task("pi-1", TaskKind.EVALUATE, payload="e")]
        store.commit_tasks(run_id, 1, "1" * 64, NOON, evaluate, NOON)
        store.open_round(run_id, 2, NOON)
        assert store.live_blobs() == {"1" * 64, "e" * 64}
        store.record_evaluation(run_id, 1, "clients", {}, now=NOON)
        assert store.live_blobs() == {"1" * 64}

    def test_the_best_state_lives_beside_the_last(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        store.record_evaluation(run_id, 1, "server", {}, (0.9, blob("1")), now=NOON)
        store.open_round(run_id, 2, NOON)
        store.commit_round(run_id, 2, blob("2"), {}, [], NOON)
        store.end_run(run_id, RunState.FINISHED, "", NOON)
        assert store.live_blobs() == {"1" * 64, "2" * 64}


def test_second_answer_to_a_task_cannot_be_in_the_database(store: Store) -> None:
    run_id = start(store)
    (task,) = plan(store, run_id, "pi-1")
    store.store_update(task.task_id, blob("1"), 1, 1, {}, NOON)
    row = {
        "task_id": task.task_id,
        "digest": "2" * 64,
        "size_bytes": 1,
        "num_examples": 1,
        "steps": 1,
        "metrics": {},
        "received_at": NOON,
        "counted": False,
    }
    with pytest.raises(IntegrityError), store._write() as connection:
        connection.execute(tables.updates.insert().values(row))
