"""The round machine: lists of instructions, from the first round to the last."""

from __future__ import annotations

from typing import Any

import pytest

from coppice.domain import ClientId, TaskKind
from server.records import RunState
from server.round_events import (
    Aggregate,
    ClientGone,
    DeadlinePassed,
    EndRun,
    EvaluationDone,
    Event,
    FailRound,
    FoldEvaluation,
    OpenRound,
    Phase,
    PlanTasks,
    RoundCommitted,
    RoundOpened,
    SetDeadline,
    TaskDropped,
    TasksCommitted,
    UpdateStored,
)
from server.rounds import RoundMachine
from tests.server.run_samples import (
    SPEC,
    A,
    B,
    C,
    D,
    aggregating,
    arrive,
    gathering,
    reporting,
    run_spec,
    tell,
    waits_for,
    wanted,
)


class TestWalk:
    def test_run_of_two_rounds_from_start_to_end(self) -> None:
        machine = RoundMachine(SPEC)
        assert machine.start() == [OpenRound(1)]
        assert machine.handle(RoundOpened(1, False)) == [SetDeadline(1, Phase.GATHERING, 30.0)]
        assert arrive(machine, A) == []
        cohort = wanted(machine, A, B)
        assert arrive(machine, B) == [PlanTasks(1, TaskKind.TRAIN, cohort)]
        assert machine.handle(TasksCommitted(1, cohort)) == [SetDeadline(1, Phase.REPORTING, 600.0)]
        assert machine.handle(UpdateStored(1, A)) == []
        assert machine.handle(UpdateStored(1, B)) == [Aggregate(1)]
        assert machine.handle(RoundCommitted(1, False)) == [OpenRound(2)]
        assert arrive(machine, A, B) == []
        second = wanted(machine, A, B)
        assert machine.handle(RoundOpened(2, False)) == [
            SetDeadline(2, Phase.GATHERING, 30.0),
            PlanTasks(2, TaskKind.TRAIN, second),
        ]
        machine.handle(TasksCommitted(2, second))
        assert tell(machine, UpdateStored(2, B), UpdateStored(2, A)) == [Aggregate(2)]
        assert machine.handle(RoundCommitted(2, False)) == [
            EndRun(RunState.FINISHED, "all 2 rounds are done")
        ]
        assert machine.phase is Phase.ENDED

    def test_cohort_is_what_the_seed_picks_of_all_that_are_known(self) -> None:
        machine = gathering(run_spec(size=2), A)
        machine.known |= {B, C, D}
        cohort = wanted(machine, A, B, C, D)
        assert len(cohort) == 2
        told = [arrive(machine, client) for client in (B, C, D)]
        # The round waits for the clients it would rather have, not for the first ones.
        assert [PlanTasks(1, TaskKind.TRAIN, cohort)] in told
        assert machine.phase is Phase.PLANNING

    def test_clients_that_poll_between_two_rounds_are_planned_at_once(self) -> None:
        machine = aggregating()
        assert arrive(machine, A, B) == []
        assert machine.handle(RoundCommitted(1, False)) == [OpenRound(2)]
        assert PlanTasks(2, TaskKind.TRAIN, wanted(machine, A, B)) in machine.handle(
            RoundOpened(2, False)
        )

    def test_only_clients_with_a_task_are_awaited(self) -> None:
        machine = gathering(SPEC, A, B)
        machine.handle(TasksCommitted(1, (A,)))
        assert machine.awaited == {A}
        assert machine.present == {B}
        assert machine.handle(UpdateStored(1, A)) == [Aggregate(1)]

    def test_a_round_in_which_nobody_has_a_task_fails_and_the_next_begins_after_a_while(
        self,
    ) -> None:
        machine = gathering(SPEC, A, B)
        assert machine.handle(TasksCommitted(1, ())) == [
            FailRound(1, "nobody was given a task"),
            SetDeadline(1, Phase.RESTING, SPEC.cohort.gather_seconds),
        ]
        assert arrive(machine, A, B) == []
        assert "in the last round none could" in waits_for(machine)
        assert machine.handle(DeadlinePassed(1, Phase.RESTING)) == [OpenRound(2)]


class TestReserved:
    """Rounds that are for one client."""

    def opened(self, *present: ClientId, **cohort: Any) -> RoundMachine:
        """A machine whose first round is for b, of which these clients are there."""
        machine = RoundMachine(run_spec(**({"size": 3, "quorum": 2} | cohort)))
        machine.start()
        arrive(machine, *present)
        machine.handle(RoundOpened(1, False, B))
        return machine

    def test_gathers_the_one_client_whoever_else_is_there(self) -> None:
        machine = self.opened(A, C, D)
        assert machine.phase is Phase.GATHERING
        assert waits_for(machine).startswith("b, the one client that the round is for")
        assert arrive(machine, B) == [PlanTasks(1, TaskKind.TRAIN, (B,))]

    def test_begins_at_once_where_the_client_is_there(self) -> None:
        machine = RoundMachine(SPEC)
        machine.start()
        arrive(machine, B)
        assert machine.handle(RoundOpened(1, False, B)) == [
            SetDeadline(1, Phase.GATHERING, 30.0),
            PlanTasks(1, TaskKind.TRAIN, (B,)),
        ]

    def test_waits_on_when_the_gathering_time_is_over(self) -> None:
        machine = self.opened(A, C, D)
        for _ in range(3):
            told = machine.handle(DeadlinePassed(1, Phase.GATHERING))
            assert told == [SetDeadline(1, Phase.GATHERING, 30.0)]
        # It was not for a cohort that it waited.
        assert not machine.patience_spent
        assert arrive(machine, B) == [PlanTasks(1, TaskKind.TRAIN, (B,))]

    def test_one_update_is_a_quorum(self) -> None:
        machine = self.opened(A, B)
        machine.handle(TasksCommitted(1, (B,)))
        assert waits_for(machine) == "1 of 1: b"
        assert machine.handle(UpdateStored(1, B)) == [Aggregate(1)]

    @pytest.mark.parametrize(
        "end", [DeadlinePassed(1, Phase.REPORTING), TaskDropped(1, B), ClientGone(B)]
    )
    def test_without_its_one_update_fails(self, end: Event) -> None:
        machine = self.opened(A, B)
        machine.handle(TasksCommitted(1, (B,)))
        assert machine.handle(end) == [
            FailRound(1, "0 updates came, 1 are needed"),
            OpenRound(2),
        ]

    def test_next_round_is_a_cohort_s_again(self) -> None:
        machine = self.opened(A, B, C)
        tell(machine, TasksCommitted(1, (B,)), UpdateStored(1, B))
        assert machine.handle(RoundCommitted(1, False)) == [OpenRound(2)]
        arrive(machine, B)
        cohort = wanted(machine, A, B, C)
        assert PlanTasks(2, TaskKind.TRAIN, cohort) in machine.handle(RoundOpened(2, False))

    def test_client_that_goes_is_waited_for(self) -> None:
        machine = self.opened(A)
        assert tell(machine, ClientGone(A), ClientGone(B)) == []
        assert arrive(machine, B) == [PlanTasks(1, TaskKind.TRAIN, (B,))]


class TestDeadlines:
    def test_quorum_at_the_deadline_is_enough(self) -> None:
        machine = reporting(run_spec(size=3), A, B, C)
        tell(machine, UpdateStored(1, A), UpdateStored(1, C))
        assert machine.handle(DeadlinePassed(1, Phase.REPORTING)) == [Aggregate(1)]

    def test_round_without_quorum_fails_and_the_next_one_opens(self) -> None:
        machine = reporting(run_spec(size=3), A, B, C)
        machine.handle(UpdateStored(1, A))
        assert machine.handle(DeadlinePassed(1, Phase.REPORTING)) == [
            FailRound(1, "1 updates came, 2 are needed"),
            OpenRound(2),
        ]
        assert (machine.round_number, machine.phase) == (2, Phase.OPENING)
        assert (machine.awaited, machine.reported) == (set(), [])

    def test_quorum_of_the_run_file_decides(self) -> None:
        machine = reporting(run_spec(size=3, quorum=1), A, B, C)
        machine.handle(UpdateStored(1, A))
        assert machine.handle(DeadlinePassed(1, Phase.REPORTING)) == [Aggregate(1)]

    def test_deadline_of_the_run_file_is_set(self) -> None:
        machine = gathering(run_spec(deadline_seconds=5.0, gather_seconds=2.0), A, B)
        assert machine.handle(TasksCommitted(1, (A, B))) == [SetDeadline(1, Phase.REPORTING, 5.0)]
        tell(machine, DeadlinePassed(1, Phase.REPORTING))
        assert machine.handle(RoundOpened(2, False)) == [SetDeadline(2, Phase.GATHERING, 2.0)]

    def test_deadline_of_the_plan_is_set(self) -> None:
        machine = gathering(SPEC, A, B)
        told = machine.handle(TasksCommitted(1, (A, B), 120.0))
        assert told == [SetDeadline(1, Phase.REPORTING, 120.0)]


class TestGone:
    def test_in_gathering_the_next_best_client_takes_its_place(self) -> None:
        machine = gathering(run_spec(size=2))
        machine.known = {A, B, C}
        missing = wanted(machine, A, B, C)[0]
        here = {A, B, C} - {missing}
        assert arrive(machine, *here) == []
        assert machine.handle(ClientGone(missing)) == [
            PlanTasks(1, TaskKind.TRAIN, wanted(machine, *here))
        ]

    def test_in_reporting_the_round_goes_on_without_it(self) -> None:
        machine = reporting(SPEC)
        assert machine.handle(UpdateStored(1, A)) == []
        assert machine.handle(ClientGone(B)) == [Aggregate(1)]

    def test_in_reporting_all_of_them_fail_the_round_before_its_deadline(self) -> None:
        machine = reporting(SPEC)
        assert machine.handle(ClientGone(A)) == []
        assert machine.handle(ClientGone(B)) == [
            FailRound(1, "0 updates came, 1 are needed"),
            OpenRound(2),
        ]

    @pytest.mark.parametrize("phase", [Phase.OPENING, Phase.PLANNING, Phase.AGGREGATING])
    def test_elsewhere_it_only_is_not_there_any_more(self, phase: Phase) -> None:
        machine = {
            Phase.OPENING: RoundMachine(SPEC),
            Phase.PLANNING: gathering(SPEC, A, B),
            Phase.AGGREGATING: aggregating(SPEC),
        }[phase]
        if phase is Phase.OPENING:
            machine.start()
            arrive(machine, A, B)
        assert machine.phase is phase
        assert machine.handle(ClientGone(A)) == []
        assert A not in machine.known | machine.present
        assert machine.phase is phase

    def test_in_evaluating_its_answer_is_not_awaited(self) -> None:
        machine = aggregating(run_spec(on_clients=True))
        tell(machine, RoundCommitted(1, False), TasksCommitted(1, (A, B)))
        assert machine.handle(UpdateStored(1, A)) == []
        assert machine.handle(ClientGone(B)) == [FoldEvaluation(1)]

    def test_lost_and_back_its_answer_counts_while_the_round_is_open(self) -> None:
        machine = reporting(run_spec(size=3), A, B, C)
        assert tell(machine, ClientGone(A), UpdateStored(1, B)) == []
        assert machine.handle(UpdateStored(1, A)) == []
        assert machine.reported == [B, A]
        assert machine.handle(UpdateStored(1, C)) == [Aggregate(1)]

    def test_lost_and_back_too_late_waits_for_the_next_round(self) -> None:
        machine = reporting(SPEC)
        tell(machine, UpdateStored(1, A), ClientGone(B))
        assert machine.handle(UpdateStored(1, B)) == []
        assert arrive(machine, B) == []
        assert machine.present == {B}


class TestOverSelection:
    def test_plans_more_and_closes_with_the_first_of_them(self) -> None:
        spec = run_spec(size=2, over_selection=1.5)
        machine = gathering(spec, A, B)
        assert machine.phase is Phase.PLANNING, "a small fleet does not have to be over-selected"
        machine = gathering(spec)
        machine.known = {A, B, C}
        arrive(machine, A, B)
        assert machine.phase is Phase.GATHERING
        cohort = wanted(machine, A, B, C)
        assert len(cohort) == 3
        assert arrive(machine, C) == [PlanTasks(1, TaskKind.TRAIN, cohort)]
        machine.handle(TasksCommitted(1, cohort))
        assert machine.handle(UpdateStored(1, C)) == []
        assert machine.handle(UpdateStored(1, A)) == [Aggregate(1)]
        assert machine.handle(UpdateStored(1, B)) == []

    def test_late_gathering_takes_no_more_than_are_planned(self) -> None:
        machine = gathering(run_spec(size=2, over_selection=1.0))
        machine.known = {A, B, C, D}
        absent = next(iter(wanted(machine, A, B, C, D)))
        here = {A, B, C, D} - {absent}
        assert arrive(machine, *here) == []
        (plan,) = machine.handle(DeadlinePassed(1, Phase.GATHERING))
        assert plan == PlanTasks(1, TaskKind.TRAIN, wanted(machine, *here))


LATE: list[Event] = [
    RoundOpened(1, False),
    RoundOpened(0, True),
    TasksCommitted(1, (A, C)),
    TasksCommitted(2, (A, C)),
    UpdateStored(2, A),
    UpdateStored(0, A),
    TaskDropped(2, A),
    RoundCommitted(1, True),
    RoundCommitted(2, False),
    EvaluationDone(1, "clients", False),
    EvaluationDone(7, "server", False),
    DeadlinePassed(1, Phase.GATHERING),
    DeadlinePassed(1, Phase.EVALUATING),
    DeadlinePassed(1, Phase.CLOSING),
    DeadlinePassed(2, Phase.REPORTING),
    ClientGone(ClientId("stranger")),
]


class TestLateAndForeign:
    @pytest.mark.parametrize("event", LATE, ids=str)
    def test_event_changes_nothing(self, event: Event) -> None:
        machine, untouched = reporting(SPEC), reporting(SPEC)
        assert machine.handle(event) == []
        assert vars(machine) == vars(untouched)

    def test_second_answer_of_a_client_counts_once(self) -> None:
        machine = reporting(run_spec(size=2, quorum=2))
        assert tell(machine, UpdateStored(1, A), UpdateStored(1, A)) == []
        assert machine.reported == [A]

    def test_rejected_answer_is_not_waited_for(self) -> None:
        machine = reporting(SPEC)
        assert machine.handle(UpdateStored(1, A)) == []
        assert machine.handle(TaskDropped(1, B)) == [Aggregate(1)]

    def test_rejected_answers_of_all_fail_the_round(self) -> None:
        machine = reporting(SPEC)
        assert tell(machine, TaskDropped(1, A), TaskDropped(1, B))[0] == FailRound(
            1, "0 updates came, 1 are needed"
        )

    def test_client_that_owes_an_answer_is_not_free_for_another_task(self) -> None:
        machine = reporting(SPEC)
        arrive(machine, A)
        assert machine.present == set()
        assert machine.known == {A, B}


def test_a_round_whose_tasks_all_come_back_is_followed_by_a_rest() -> None:
    machine = reporting(run_spec(rounds=3))
    waiting = sorted(machine.awaited)
    *first, last = waiting
    for client in first:
        assert machine.handle(TaskDropped(1, client, is_declined=True)) == []
    failed, rest = machine.handle(TaskDropped(1, last, is_declined=True))
    assert failed == FailRound(1, "no device had the memory for its task")
    assert rest == SetDeadline(1, Phase.RESTING, machine.spec.cohort.gather_seconds)
    assert machine.handle(DeadlinePassed(1, Phase.RESTING)) == [OpenRound(2)]


def test_answers_that_do_not_fit_are_no_reason_to_rest() -> None:
    machine = reporting(run_spec(rounds=3))
    *first, last = sorted(machine.awaited)
    for client in first:
        machine.handle(TaskDropped(1, client, is_declined=True))
    assert machine.handle(TaskDropped(1, last))[-1] == OpenRound(2)
