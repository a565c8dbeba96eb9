"""Runs, rounds and evaluations in the store: what happened is there, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coppice.domain import (
    TaskKind,
)
from coppice.errors import (
    RoundClosed,
    StoreUnusable,
    UnknownRun,
)
from server.records import (
    EvaluationRecord,
    RoundState,
    RunState,
)
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


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        yield made


class TestRuns:
    def test_a_submitted_run_waits_in_the_queue(self, store: Store) -> None:
        first, second = store.submit_run(SPEC, NOON), store.submit_run(SPEC, NOON + 1)
        assert first != second
        run = store.next_run()
        assert run is not None
        assert (run.run_id, run.spec, run.state) == (first, SPEC, RunState.QUEUED)
        assert (run.submitted_at, run.started_at, run.ended_at) == (NOON, None, None)
        assert (run.round_number, run.state_blob, run.best_blob) == (0, None, None)
        assert store.open_run() is None
        assert [run.run_id for run in store.runs()] == [first, second]

    def test_a_started_run_is_the_open_one(self, store: Store) -> None:
        run_id = store.submit_run(SPEC, NOON)
        store.start_run(run_id, blob("0"), NOON + 1)
        run = store.open_run()
        assert run == store.run(run_id)
        assert run is not None
        assert (run.started_at, run.state_blob) == (NOON + 1, blob("0"))
        assert store.next_run() is None
        assert store.round_state(run_id, 0) == blob("0")

    def test_a_run_starts_only_once(self, store: Store) -> None:
        run_id = start(store)
        with pytest.raises(StoreUnusable, match="it is running"):
            store.start_run(run_id, blob("9"), NOON)
        assert store.run(run_id).state_blob == blob("0")

    def test_a_run_that_was_never_submitted_is_unknown(self, store: Store) -> None:
        for operation in (
            lambda: store.run(4),
            lambda: store.start_run(4, blob("0"), NOON),
            lambda: store.open_round(4, 1, NOON),
            lambda: store.end_run(4, RunState.STOPPED, "", NOON),
            lambda: store.round_state(4, 1),
        ):
            with pytest.raises(UnknownRun, match="no run 4"):
                operation()

    def test_the_end_of_a_run_ends_its_round_and_its_tasks(self, store: Store) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        store.end_run(run_id, RunState.STOPPED, "stopped by hand", NOON + 9)
        run, last = store.run(run_id), store.round(run_id, 1)
        assert (run.state, run.reason, run.ended_at) == (
            RunState.STOPPED,
            "stopped by hand",
            NOON + 9,
        )
        assert (run.round_number, run.state_blob) == (1, blob("0"))
        assert last is not None
        assert (last.state, last.closed_at) == (RoundState.FAILED, NOON + 9)
        assert store.open_tasks(run_id) == []
        with pytest.raises(RoundClosed):
            store.store_update(task.task_id, blob("u"), 1, 1, {}, NOON)

    def test_the_end_of_a_run_ends_its_evaluation_too(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        evaluate = [new_task("pi-1", TaskKind.EVALUATE)]
        store.commit_tasks(run_id, 1, "1" * 64, NOON, evaluate, NOON)
        store.end_run(run_id, RunState.FINISHED, "", NOON)
        assert store.open_tasks(run_id) == []
        assert store.run(run_id).state_blob == blob("1")

    def test_the_first_end_of_a_run_stays(self, store: Store) -> None:
        run_id = store.submit_run(SPEC, NOON)
        store.end_run(run_id, RunState.STOPPED, "by hand", NOON + 1)
        store.end_run(run_id, RunState.FAILED, "late", NOON + 2, [EVENT])
        assert store.run(run_id).reason == "by hand"
        assert store.run(run_id).state is RunState.STOPPED
        assert store.events(None) == []


class TestRounds:
    def test_opening_an_open_round_again_changes_nothing(self, store: Store) -> None:
        run_id = start(store)
        store.open_round(run_id, 1, NOON + 99, [EVENT])
        opened = store.round(run_id, 1)
        assert opened is not None
        assert (opened.state, opened.opened_at) == (RoundState.OPEN, NOON + 2)
        assert store.rounds(run_id) == [opened]
        assert store.events(None) == []

    @pytest.mark.parametrize("round_number", [0, 2, 3])
    def test_only_the_next_round_can_open(self, store: Store, round_number: int) -> None:
        run_id = start(store)
        with pytest.raises(StoreUnusable, match="cannot open"):
            store.open_round(run_id, round_number, NOON)

    def test_a_round_of_a_queued_run_cannot_open(self, store: Store) -> None:
        run_id = store.submit_run(SPEC, NOON)
        with pytest.raises(StoreUnusable, match="is queued"):
            store.open_round(run_id, 1, NOON)

    def test_a_commit_counts_each_update_once(self, store: Store) -> None:
        run_id = start(store)
        first, second, late = plan(store, run_id, "pi-1", "pi-2", "pi-3")
        for task in (second, first):
            store.store_update(task.task_id, blob("u", 40), 10, 5, {"loss": 2.5}, NOON + 4)
        counted = [first.task_id, second.task_id]
        store.close_tasks(run_id, 1, TaskKind.TRAIN, 300, NOON + 4)
        store.commit_round(run_id, 1, blob("1"), {"loss": 2.5}, counted, NOON + 5)

        committed, run = store.round(run_id, 1), store.run(run_id)
        assert committed is not None
        assert committed.state is RoundState.COMMITTED
        assert (committed.num_updates, committed.metrics) == (2, {"loss": 2.5})
        assert (committed.bytes_down, committed.bytes_up) == (300, 80)
        assert (committed.opened_at, committed.closed_at) == (NOON + 2, NOON + 5)
        assert (run.round_number, run.state_blob) == (1, blob("1"))
        assert [update.counted for update in store.updates(run_id, 1)] == [True, True]
        with pytest.raises(RoundClosed, match="round 1 is over"):
            store.store_update(late.task_id, blob("l"), 1, 1, {}, NOON + 6)

    def test_a_second_commit_is_refused_and_changes_nothing(self, store: Store) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        store.store_update(task.task_id, blob("u"), 10, 5, {}, NOON)
        store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)
        with pytest.raises(StoreUnusable, match="not open: it is committed"):
            store.commit_round(run_id, 1, blob("2"), {}, [task.task_id], NOON, [EVENT])
        assert store.run(run_id).state_blob == blob("1")
        assert store.events(None) == []

    def test_an_update_of_an_earlier_round_cannot_count_again(self, store: Store) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        store.store_update(task.task_id, blob("u"), 10, 5, {}, NOON)
        store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)
        store.open_round(run_id, 2, NOON)
        with pytest.raises(StoreUnusable, match="counts an update twice"):
            store.commit_round(run_id, 2, blob("2"), {}, [task.task_id], NOON)
        assert store.run(run_id).round_number == 1

    def test_an_update_cannot_count_twice_in_one_round(self, store: Store) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        store.store_update(task.task_id, blob("u"), 10, 5, {}, NOON)
        with pytest.raises(StoreUnusable, match="counts an update twice"):
            store.commit_round(run_id, 1, blob("1"), {}, [task.task_id] * 2, NOON)

    def test_an_update_that_is_not_stored_cannot_count(self, store: Store) -> None:
        run_id = start(store)
        task = plan(store, run_id, "pi-1")[0]
        with pytest.raises(StoreUnusable, match="not stored"):
            store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)

    def test_an_answer_to_an_evaluation_cannot_count(self, store: Store) -> None:
        run_id = start(store)
        evaluate = [new_task("pi-1", TaskKind.EVALUATE)]
        (task,) = store.commit_tasks(run_id, 1, "0" * 64, NOON, evaluate, NOON)
        store.store_update(task.task_id, blob("u"), 10, 0, {}, NOON)
        with pytest.raises(StoreUnusable, match="not stored for this round"):
            store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        assert store.open_tasks(run_id) == [task]

    def test_a_failed_round_leaves_the_state_as_it_was(self, store: Store) -> None:
        run_id = start(store)
        plan(store, run_id, "pi-1")
        store.fail_round(run_id, 1, NOON + 5)
        failed, run = store.round(run_id, 1), store.run(run_id)
        assert failed is not None
        assert (failed.state, failed.num_updates) == (RoundState.FAILED, 0)
        assert (run.round_number, run.state_blob) == (1, blob("0"))
        assert store.open_tasks(run_id) == []
        store.open_round(run_id, 2, NOON + 6)
        with pytest.raises(StoreUnusable, match="it is failed"):
            store.fail_round(run_id, 1, NOON + 7)

    def test_rounds_are_listed_from_a_number_on(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        store.open_round(run_id, 2, NOON)
        store.fail_round(run_id, 2, NOON)
        store.open_round(run_id, 3, NOON)
        assert [item.round_number for item in store.rounds(run_id)] == [1, 2, 3]
        assert [item.round_number for item in store.rounds(run_id, after=1)] == [2, 3]
        assert store.round(run_id, 4) is None

    def test_each_round_keeps_the_state_after_it(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        store.open_round(run_id, 2, NOON)
        store.fail_round(run_id, 2, NOON)
        store.open_round(run_id, 3, NOON)
        store.commit_round(run_id, 3, blob("3"), {}, [], NOON)
        store.open_round(run_id, 4, NOON)
        states = [store.round_state(run_id, number) for number in range(5)]
        assert states == [None, blob("1"), blob("1"), blob("3"), None]

    def test_what_is_not_finite_is_kept_as_it_is(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {"loss": float("inf")}, [], NOON)
        committed = store.round(run_id, 1)
        assert committed is not None
        assert committed.metrics == {"loss": float("inf")}


class TestEvaluations:
    def test_the_first_evaluation_of_a_place_stays(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        best = (0.5, blob("1"))
        others = {"cut-0.5": {"accuracy": 0.4}, "cut-0.1": {}}
        store.record_evaluation(run_id, 1, "server", {"accuracy": 0.5}, best, others, now=NOON)
        store.record_evaluation(
            run_id, 1, "server", {"accuracy": 0.9}, (0.9, blob("9")), {}, now=NOON, events=[EVENT]
        )
        store.record_evaluation(run_id, 1, "clients", {"accuracy": 0.4}, now=NOON)
        assert store.evaluations(run_id) == [
            EvaluationRecord(run_id, 1, "clients", {"accuracy": 0.4}, {}),
            EvaluationRecord(run_id, 1, "server", {"accuracy": 0.5}, others),
        ]
        run = store.run(run_id)
        assert (run.best_round, run.best_value, run.best_blob) == (1, 0.5, blob("1"))
        assert store.events(None) == []

    def test_an_evaluation_on_clients_closes_their_tasks_only(self, store: Store) -> None:
        run_id = start(store)
        store.commit_round(run_id, 1, blob("1"), {}, [], NOON)
        evaluate = [new_task(name, TaskKind.EVALUATE) for name in ("pi-1", "pi-2")]
        tasks = store.commit_tasks(run_id, 1, "1" * 64, NOON, evaluate, NOON)
        store.open_round(run_id, 2, NOON)
        train = plan(store, run_id, "pi-3", round_number=2)
        store.store_update(tasks[0].task_id, blob("u"), 10, 0, {"accuracy": 0.4}, NOON)
        answers = store.updates(run_id, 1, TaskKind.EVALUATE)
        assert [answer.metrics for answer in answers] == [{"accuracy": 0.4}]

        store.record_evaluation(run_id, 1, "server", {}, now=NOON)
        assert len(store.open_tasks(run_id)) == 3
        store.record_evaluation(run_id, 1, "clients", {"accuracy": 0.4}, now=NOON)
        assert store.open_tasks(run_id) == train
        outcomes = [row.outcome for row in store.ledger(run_id)]
        assert outcomes == ["received", "missing", "missing"]
