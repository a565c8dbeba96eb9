"""Where a run goes on, from what the store holds and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import ClientId, EvaluationSpec, RunSpec, StopSpec, TaskKind
from server.records import NewTask, RunState, TaskRecord
from server.resumption import resume
from server.round_events import (
    Aggregate,
    EndRun,
    FailRound,
    FoldEvaluation,
    Instruction,
    OpenRound,
    Phase,
    SetDeadline,
)
from server.rounds import RoundMachine
from server.store import Store
from tests.server.run_samples import A, B, run_spec
from tests.server.store_samples import NOON, blob, new_client

SPEC = run_spec(rounds=3, quorum=2)
ON_CLIENTS = run_spec(rounds=3, on_clients=True)
ON_SERVER = replace(ON_CLIENTS, evaluation=EvaluationSpec(data="/data/test"))


class Past:
    """What happened to a run before the server was killed."""

    def __init__(self, store: Store, spec: RunSpec) -> None:
        self.store = store
        for name in (A, B):
            store.join_client(new_client(name, f"device-{name}"), NOON)
        self.run_id = store.submit_run(spec, NOON)
        store.start_run(self.run_id, blob("0"), NOON)

    def plan(
        self, number: int, *clients: ClientId, kind: TaskKind = TaskKind.TRAIN
    ) -> list[TaskRecord]:
        if kind is TaskKind.TRAIN:
            self.store.open_round(self.run_id, number, NOON)
        tasks = [NewTask(client, kind, blob("b"), None, {}, {}) for client in clients]
        return self.store.commit_tasks(self.run_id, number, "0" * 64, NOON + 600, tasks, NOON)

    def answer(self, *tasks: TaskRecord) -> None:
        for task in tasks:
            self.store.store_update(task.task_id, blob("c"), 1, 1, {}, NOON)

    def close(self, number: int, kind: TaskKind = TaskKind.TRAIN) -> None:
        self.store.close_tasks(self.run_id, number, kind, 0, NOON)

    def commit(self, number: int) -> None:
        tasks = self.plan(number, A, B)
        self.answer(*tasks)
        self.close(number)
        counted = [task.task_id for task in tasks]
        self.store.commit_round(self.run_id, number, blob("d"), {}, counted, NOON)

    def evaluate(self, number: int, where: str, value: float = 0.5) -> None:
        best = (value, blob("d"))
        self.store.record_evaluation(
            self.run_id, number, where, {"accuracy": value}, best, now=NOON
        )

    def resume(
        self, now: float = NOON + 100
    ) -> tuple[RoundMachine, list[Instruction], dict[ClientId, TaskRecord]]:
        record = self.store.run(self.run_id)
        machine = RoundMachine(record.spec)
        instructions, tasks = resume(machine, record, self.store, now)
        return machine, instructions, tasks


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path}/store.sqlite", durable=False)
    made.migrate()
    yield made
    made.close()


class TestOpenRound:
    def test_that_was_not_even_opened_is_opened(self, store: Store) -> None:
        machine, instructions, tasks = Past(store, SPEC).resume()
        assert (instructions, tasks) == ([OpenRound(1)], {})
        assert machine.round_number == 1

    def test_without_tasks_is_opened_again(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.store.open_round(past.run_id, 1, NOON)
        _, instructions, tasks = past.resume()
        assert (instructions, tasks) == ([OpenRound(1)], {})
        store.open_round(past.run_id, 1, NOON)

    def test_with_tasks_waits_for_the_missing_answers(self, store: Store) -> None:
        past = Past(store, SPEC)
        first, second = past.plan(1, A, B)
        past.answer(first)
        machine, instructions, tasks = past.resume()
        assert instructions == [SetDeadline(1, Phase.REPORTING, 500.0)]
        assert tasks == {B: second}
        assert (machine.awaited, machine.reported) == ({B}, [A])

    def test_with_all_answers_is_closed(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.answer(*past.plan(1, A, B))
        _, instructions, tasks = past.resume()
        assert instructions[1:] == [Aggregate(1)]
        assert tasks == {}

    def test_after_the_clock_was_set_back_waits_no_longer_than_a_round(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.plan(1, A, B)
        _, instructions, _ = past.resume(now=NOON - 10_000)
        assert instructions == [SetDeadline(1, Phase.REPORTING, 600.0)]

    @pytest.mark.parametrize("away_seconds", [590, 10_000])
    def test_past_its_deadline_waits_for_devices_to_come_back(
        self, store: Store, away_seconds: float
    ) -> None:
        past = Past(store, SPEC)
        past.plan(1, A, B)
        _, instructions, _ = past.resume(now=NOON + away_seconds)
        lost_after_seconds = SPEC.cohort.lost_after_seconds
        assert instructions == [SetDeadline(1, Phase.REPORTING, lost_after_seconds)]

    def test_past_its_deadline_waits_no_longer_than_a_round(self, store: Store) -> None:
        past = Past(store, run_spec(quorum=2, deadline_seconds=5.0))
        past.plan(1, A, B)
        _, instructions, _ = past.resume(now=NOON + 10_000)
        assert instructions == [SetDeadline(1, Phase.REPORTING, 5.0)]

    def test_for_one_client_that_was_killed_before_it_was_aggregated_is(self, store: Store) -> None:
        past = Past(store, run_spec(size=3, quorum=3))
        past.answer(*past.plan(1, B))
        past.close(1)
        machine, instructions, _ = past.resume()
        assert instructions == [Aggregate(1)]
        assert (machine.reported, machine.planned) == ([B], 1)

    def test_killed_while_it_was_aggregated_is_aggregated_again(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.answer(*past.plan(1, A, B))
        past.close(1)
        machine, instructions, tasks = past.resume()
        assert (instructions, tasks) == ([Aggregate(1)], {})
        assert machine.reported == [A, B]

    def test_killed_while_it_failed_is_not_aggregated(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.answer(past.plan(1, A, B)[0])
        past.close(1)
        _, instructions, tasks = past.resume()
        assert instructions == [FailRound(1, "1 updates came, 2 are needed"), OpenRound(2)]
        assert tasks == {}


class TestBetweenRounds:
    def test_after_a_commit_the_next_round_opens(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.commit(1)
        assert past.resume()[1:] == ([OpenRound(2)], {})

    def test_after_a_failure_the_next_round_opens(self, store: Store) -> None:
        past = Past(store, SPEC)
        past.plan(1, A, B)
        store.fail_round(past.run_id, 1, NOON)
        assert past.resume()[1:] == ([OpenRound(2)], {})

    def test_after_the_last_round_the_run_ends(self, store: Store) -> None:
        past = Past(store, replace(SPEC, stop=StopSpec(rounds=1)))
        past.commit(1)
        assert past.resume()[1] == [EndRun(RunState.FINISHED, "all 1 rounds are done")]


class TestEvaluation:
    def test_on_clients_goes_on(self, store: Store) -> None:
        past = Past(store, ON_CLIENTS)
        past.commit(1)
        first, second = past.plan(1, A, B, kind=TaskKind.EVALUATE)
        past.answer(second)
        machine, instructions, tasks = past.resume()
        assert instructions == [SetDeadline(1, Phase.EVALUATING, 500.0)]
        assert tasks == {A: first}
        assert machine.committed == 1

    def test_on_clients_that_was_being_folded_is_folded(self, store: Store) -> None:
        past = Past(store, ON_CLIENTS)
        past.commit(1)
        past.answer(past.plan(1, A, B, kind=TaskKind.EVALUATE)[0])
        past.close(1, TaskKind.EVALUATE)
        machine, instructions, tasks = past.resume()
        assert instructions[1:] == [FoldEvaluation(1)]
        assert tasks == {}
        assert machine.reported == [A]

    def test_on_clients_that_is_stored_is_done(self, store: Store) -> None:
        past = Past(store, ON_CLIENTS)
        past.commit(1)
        past.answer(*past.plan(1, A, B, kind=TaskKind.EVALUATE))
        past.evaluate(1, "clients")
        assert past.resume()[1:] == ([OpenRound(2)], {})

    def test_on_the_server_that_is_missing_is_done_beside_the_next_round(
        self, store: Store
    ) -> None:
        past = Past(store, ON_SERVER)
        past.commit(1)
        machine, instructions, _ = past.resume()
        assert machine.evaluating == {1}
        assert instructions == [OpenRound(2)]

    def test_on_the_server_that_is_stored_is_done(self, store: Store) -> None:
        past = Past(store, ON_SERVER)
        past.commit(1)
        past.evaluate(1, "server")
        assert past.resume()[0].evaluating == set()

    def test_on_the_server_is_not_missing_where_it_was_not_due(self, store: Store) -> None:
        spec = replace(ON_SERVER, evaluation=EvaluationSpec(data="/data/test", every=2))
        past = Past(store, spec)
        past.commit(1)
        assert past.resume()[0].evaluating == set()

    def test_of_the_last_round_is_waited_for(self, store: Store) -> None:
        past = Past(store, replace(ON_SERVER, stop=StopSpec(rounds=1)))
        past.commit(1)
        machine, (deadline,), _ = past.resume()
        assert machine.phase is Phase.CLOSING
        assert isinstance(deadline, SetDeadline)

    def test_of_the_last_good_round_is_made_up_for_when_a_later_one_failed(
        self, store: Store
    ) -> None:
        past = Past(store, ON_SERVER)
        past.commit(1)
        past.plan(2, A)
        store.fail_round(past.run_id, 2, NOON)
        machine, instructions, _ = past.resume()
        assert (machine.committed, machine.evaluating) == (1, {1})
        assert instructions == [OpenRound(3)]

    def test_of_a_model_that_no_round_changed_is_not_wanted(self, store: Store) -> None:
        past = Past(store, ON_SERVER)
        past.plan(1, A)
        store.fail_round(past.run_id, 1, NOON)
        machine, _, _ = past.resume()
        assert (machine.committed, machine.evaluating) == (0, set())

    def test_that_reached_the_target_was_the_last_one(self, store: Store) -> None:
        past = Past(store, replace(ON_SERVER, stop=StopSpec(rounds=9, target=0.8)))
        past.commit(1)
        past.evaluate(1, "server", 0.8)
        machine, instructions, tasks = past.resume()
        assert instructions == [EndRun(RunState.FINISHED, "the target was reached in round 1")]
        assert (machine.round_number, tasks) == (1, {})

    def test_below_the_target_was_not_the_last_one(self, store: Store) -> None:
        past = Past(store, replace(ON_SERVER, stop=StopSpec(rounds=9, target=0.8)))
        past.commit(1)
        past.evaluate(1, "server", 0.79)
        assert past.resume()[1] == [OpenRound(2)]
