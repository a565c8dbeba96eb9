"""The round machine: gathering a small fleet, terms, evaluation, resuming, and every way to end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coppice.domain import RunSpec, TaskKind
from server.records import RunState
from server.round_events import (
    Aggregate,
    ClientArrived,
    ClientGone,
    DeadlinePassed,
    EndRun,
    EvaluationDone,
    FailRound,
    FoldEvaluation,
    OpenRound,
    Phase,
    PlanTasks,
    RoundCommitted,
    RoundOpened,
    SetDeadline,
    StopRequested,
    TasksCommitted,
    UpdateStored,
)
from server.rounds import CLOSING_SECONDS, MAX_EVALUATING, RoundMachine
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

ON_CLIENTS = run_spec(on_clients=True)
TARGET = "the target was reached in round 1"


def evaluating(spec: RunSpec = ON_CLIENTS) -> RoundMachine:
    """A machine whose clients a and b evaluate the model of round 1."""
    machine = aggregating(spec)
    tell(machine, RoundCommitted(1, False), TasksCommitted(1, (A, B)))
    return machine


def folding() -> RoundMachine:
    machine = evaluating()
    tell(machine, UpdateStored(1, A), UpdateStored(1, B))
    return machine


def closing(spec: RunSpec | None = None) -> RoundMachine:
    """A machine that waits for the evaluation of its only round."""
    machine = aggregating(spec or run_spec(rounds=1))
    machine.handle(RoundCommitted(1, True))
    return machine


def judging() -> RoundMachine:
    """A machine whose round 1 is over and whose evaluations are behind."""
    machine = aggregating(run_spec(rounds=9))
    machine.evaluating = set(range(-MAX_EVALUATING, 0))
    machine.handle(RoundCommitted(1, True))
    return machine


def resting() -> RoundMachine:
    """A machine in whose first round nobody could do anything."""
    machine = gathering(SPEC, A, B)
    machine.handle(TasksCommitted(1, ()))
    return machine


def opening() -> RoundMachine:
    machine = RoundMachine(SPEC)
    machine.start()
    return machine


IN_PHASE: dict[Phase, Callable[[], RoundMachine]] = {
    Phase.OPENING: opening,
    Phase.GATHERING: gathering,
    Phase.PLANNING: lambda: gathering(SPEC, A, B),
    Phase.REPORTING: reporting,
    Phase.AGGREGATING: aggregating,
    Phase.EVALUATING: evaluating,
    Phase.FOLDING: folding,
    Phase.RESTING: resting,
    Phase.JUDGING: judging,
    Phase.CLOSING: closing,
}


class TestPatience:
    def test_small_fleet_is_waited_for_once_and_not_in_every_round(self) -> None:
        machine = gathering(run_spec(size=4), A, B)
        assert machine.handle(DeadlinePassed(1, Phase.GATHERING)) == [
            PlanTasks(1, TaskKind.TRAIN, wanted(machine, A, B))
        ]
        tell(machine, TasksCommitted(1, (A, B)), UpdateStored(1, A), UpdateStored(1, B))
        arrive(machine, A, B)
        machine.handle(RoundCommitted(1, False))
        assert PlanTasks(2, TaskKind.TRAIN, wanted(machine, A, B)) in machine.handle(
            RoundOpened(2, False)
        )

    def test_too_few_clients_are_waited_for_again_and_taken_when_they_are_enough(self) -> None:
        machine = gathering(run_spec(size=4), A)
        again = [SetDeadline(1, Phase.GATHERING, 30.0)]
        assert machine.handle(DeadlinePassed(1, Phase.GATHERING)) == again
        assert machine.handle(DeadlinePassed(1, Phase.GATHERING)) == again
        assert arrive(machine, B) == [PlanTasks(1, TaskKind.TRAIN, wanted(machine, A, B))]

    def test_patience_comes_back_with_a_full_fleet(self) -> None:
        machine = gathering(run_spec(size=3, rounds=5), A, B)
        machine.handle(DeadlinePassed(1, Phase.GATHERING))
        tell(machine, TasksCommitted(1, (A, B)), UpdateStored(1, A), UpdateStored(1, B))
        arrive(machine, A, B, C)
        tell(machine, RoundCommitted(1, False), RoundOpened(2, False))
        tell(machine, TasksCommitted(2, (A, B, C)), *(UpdateStored(2, x) for x in (A, B, C)))
        # One of three leaves: the gathering hopes for it again.
        tell(machine, ClientGone(C))
        arrive(machine, A, B)
        tell(machine, RoundCommitted(2, False))
        assert machine.handle(RoundOpened(3, False)) == [SetDeadline(3, Phase.GATHERING, 30.0)]

    def test_silent_client_of_a_small_fleet_costs_the_gather_time(self) -> None:
        machine = gathering(run_spec(size=4), A, B)
        machine.handle(DeadlinePassed(1, Phase.GATHERING))
        tell(machine, TasksCommitted(1, (A, B)), UpdateStored(1, A), UpdateStored(1, B))
        arrive(machine, A)
        machine.handle(RoundCommitted(1, False))
        assert machine.handle(RoundOpened(2, False)) == [SetDeadline(2, Phase.GATHERING, 30.0)]
        assert machine.handle(ClientGone(B)) == []
        machine.handle(DeadlinePassed(2, Phase.GATHERING))
        assert arrive(machine, C) == [PlanTasks(2, TaskKind.TRAIN, wanted(machine, A, C))]


class TestTerms:
    def test_who_waits_without_a_choice_has_to_come_again(self) -> None:
        machine = RoundMachine(SPEC)
        machine.start()
        arrive(machine, A, B)
        assert machine.handle(RoundOpened(1, True)) == [SetDeadline(1, Phase.GATHERING, 30.0)]
        assert (machine.present, machine.known) == (set(), {A, B})
        cohort = wanted(machine, A, B)
        assert arrive(machine, A) == []
        assert arrive(machine, B) == [PlanTasks(1, TaskKind.TRAIN, cohort)]


class TestEvaluationOnClients:
    def test_who_reported_evaluates_then_the_next_round_opens(self) -> None:
        machine = aggregating(ON_CLIENTS)
        assert machine.handle(RoundCommitted(1, False)) == [PlanTasks(1, TaskKind.EVALUATE, (A, B))]
        assert machine.handle(TasksCommitted(1, (A, B))) == [
            SetDeadline(1, Phase.EVALUATING, 600.0)
        ]
        assert machine.handle(UpdateStored(1, B)) == []
        assert waits_for(machine) == "1 of 2: a"
        assert machine.handle(UpdateStored(1, A)) == [FoldEvaluation(1)]
        assert machine.handle(EvaluationDone(1, "clients", False)) == [OpenRound(2)]

    def test_deadline_folds_what_is_there(self) -> None:
        machine = evaluating()
        assert machine.handle(DeadlinePassed(1, Phase.EVALUATING)) == [FoldEvaluation(1)]

    @pytest.mark.parametrize(
        "late", [UpdateStored(1, B), ClientGone(B), DeadlinePassed(1, Phase.EVALUATING)], ids=str
    )
    def test_is_folded_once(self, late: UpdateStored | ClientGone | DeadlinePassed) -> None:
        machine = evaluating()
        machine.handle(DeadlinePassed(1, Phase.EVALUATING))
        assert machine.handle(late) == []

    def test_nobody_left_to_evaluate_skips_it(self) -> None:
        machine = aggregating(ON_CLIENTS)
        assert tell(machine, ClientGone(A), ClientGone(B)) == []
        assert machine.handle(RoundCommitted(1, False)) == [OpenRound(2)]

    def test_method_that_lets_nobody_evaluate_skips_it(self) -> None:
        machine = aggregating(ON_CLIENTS)
        machine.handle(RoundCommitted(1, False))
        assert machine.handle(TasksCommitted(1, ())) == [OpenRound(2)]

    def test_only_due_rounds_and_the_last_one_are_evaluated(self) -> None:
        asked = []
        machine = aggregating(run_spec(rounds=3, on_clients=True, every=2))
        for number in (1, 2, 3):
            told = machine.handle(RoundCommitted(number, False))
            if PlanTasks(number, TaskKind.EVALUATE, tuple(machine.reported)) in told:
                asked.append(number)
                tell(machine, TasksCommitted(number, (A,)), UpdateStored(number, A))
                machine.handle(EvaluationDone(number, "clients", False))
            tell(machine, RoundOpened(number + 1, False), *map(ClientArrived, (A, B)))
            machine.handle(TasksCommitted(number + 1, (A, B)))
            tell(machine, UpdateStored(number + 1, A), UpdateStored(number + 1, B))
        assert asked == [2, 3]


class TestTarget:
    @pytest.mark.parametrize("phase", IN_PHASE)
    def test_reached_on_the_server_ends_the_run_in_any_phase(self, phase: Phase) -> None:
        machine = IN_PHASE[phase]()
        assert machine.phase is phase
        assert machine.handle(EvaluationDone(1, "server", True)) == [
            EndRun(RunState.FINISHED, TARGET)
        ]
        assert machine.phase is Phase.ENDED

    def test_reached_on_the_clients_ends_the_run(self) -> None:
        assert folding().handle(EvaluationDone(1, "clients", True)) == [
            EndRun(RunState.FINISHED, TARGET)
        ]


class TestJudging:
    def test_next_round_waits_while_too_many_evaluations_are_under_way(self) -> None:
        machine = judging()
        assert waits_for(machine) == "the evaluation of round -2, -1, 1"
        assert arrive(machine, A, B) == []
        assert machine.handle(EvaluationDone(-2, "server", False)) == [OpenRound(2)]

    def test_as_many_as_are_allowed_do_not_hold_up_a_round(self) -> None:
        machine = aggregating(run_spec(rounds=9))
        machine.evaluating = set(range(1 - MAX_EVALUATING, 0))
        assert machine.handle(RoundCommitted(1, True)) == [OpenRound(2)]


class TestNothingCommitted:
    def test_a_run_whose_every_round_failed_has_failed(self) -> None:
        machine = reporting(run_spec(rounds=1))
        assert machine.handle(DeadlinePassed(1, Phase.REPORTING)) == [
            FailRound(1, "0 updates came, 1 are needed"),
            EndRun(RunState.FAILED, "none of the 1 rounds got the 1 updates that it needs"),
        ]

    def test_one_good_round_is_enough_for_a_model(self) -> None:
        machine = aggregating()
        tell(machine, RoundCommitted(1, False), RoundOpened(2, False))
        arrive(machine, A, B)
        machine.handle(TasksCommitted(2, (A, B)))
        assert machine.handle(DeadlinePassed(2, Phase.REPORTING))[-1] == EndRun(
            RunState.FINISHED, "all 2 rounds are done"
        )


class TestClosing:
    def test_waits_for_the_evaluations_under_way(self) -> None:
        machine = aggregating(run_spec(rounds=1))
        machine.evaluating.add(0)
        assert machine.handle(RoundCommitted(1, True)) == [
            SetDeadline(1, Phase.CLOSING, CLOSING_SECONDS)
        ]
        assert waits_for(machine) == "the evaluation of round 0, 1"
        assert machine.handle(EvaluationDone(0, "server", False)) == []
        assert machine.handle(EvaluationDone(1, "server", False)) == [
            EndRun(RunState.FINISHED, "all 1 rounds are done")
        ]

    def test_is_bounded(self) -> None:
        assert closing().handle(DeadlinePassed(1, Phase.CLOSING)) == [
            EndRun(RunState.FINISHED, "the last evaluation did not end in time")
        ]

    def test_is_skipped_when_the_evaluation_was_faster_than_the_clients(self) -> None:
        machine = aggregating(run_spec(rounds=1, on_clients=True))
        tell(machine, RoundCommitted(1, True), TasksCommitted(1, (A,)))
        assert machine.handle(EvaluationDone(1, "server", False)) == []
        machine.handle(UpdateStored(1, A))
        assert machine.handle(EvaluationDone(1, "clients", False)) == [
            EndRun(RunState.FINISHED, "all 1 rounds are done")
        ]

    def test_follows_a_last_round_that_failed(self) -> None:
        machine = aggregating()
        tell(machine, RoundCommitted(1, True), RoundOpened(2, False))
        arrive(machine, A, B)
        machine.handle(TasksCommitted(2, (A, B)))
        assert machine.handle(DeadlinePassed(2, Phase.REPORTING)) == [
            FailRound(2, "0 updates came, 1 are needed"),
            SetDeadline(2, Phase.CLOSING, CLOSING_SECONDS),
        ]


class TestStop:
    @pytest.mark.parametrize("phase", IN_PHASE)
    def test_ends_the_run_in_any_phase(self, phase: Phase) -> None:
        machine = IN_PHASE[phase]()
        assert machine.phase is phase
        assert machine.handle(StopRequested()) == [
            EndRun(RunState.STOPPED, "stopped by an operator")
        ]
        assert machine.handle(StopRequested()) == []


class TestResume:
    def test_after_a_round_that_is_over_the_next_one_opens(self) -> None:
        machine = RoundMachine(run_spec(rounds=9))
        assert machine.start(4) == [OpenRound(5)]

    def test_after_the_last_round_the_run_ends(self) -> None:
        machine = RoundMachine(SPEC, committed=2)
        assert machine.start(2) == [EndRun(RunState.FINISHED, "all 2 rounds are done")]

    def test_after_the_last_round_its_evaluation_is_waited_for(self) -> None:
        machine = RoundMachine(SPEC, committed=2)
        machine.evaluating = {2}
        assert machine.start(2) == [SetDeadline(2, Phase.CLOSING, CLOSING_SECONDS)]
        assert machine.handle(EvaluationDone(2, "server", False)) == [
            EndRun(RunState.FINISHED, "all 2 rounds are done")
        ]

    def test_in_reporting_only_the_missing_answers_are_awaited(self) -> None:
        machine = RoundMachine(SPEC)
        assert machine.resume_reporting(2, [A], [B], 12.5, TaskKind.TRAIN) == [
            SetDeadline(2, Phase.REPORTING, 12.5)
        ]
        assert arrive(machine, A, B) == []
        assert machine.present == {B}
        assert machine.handle(UpdateStored(2, A)) == [Aggregate(2)]

    def test_in_reporting_with_all_answers_the_round_closes(self) -> None:
        machine = RoundMachine(SPEC)
        assert machine.resume_reporting(1, [], [A, B], 12.5, TaskKind.TRAIN)[1:] == [Aggregate(1)]

    def test_with_enough_of_an_over_selected_cohort_the_round_closes(self) -> None:
        machine = RoundMachine(run_spec(size=2, over_selection=2.0))
        told = machine.resume_reporting(1, [C, D], [A, B], 12.5, TaskKind.TRAIN)
        assert told[1:] == [Aggregate(1)]

    def test_past_the_deadline_it_is_over_at_once(self) -> None:
        machine = RoundMachine(SPEC)
        assert machine.resume_reporting(1, [A], [B], -400.0, TaskKind.TRAIN) == [
            SetDeadline(1, Phase.REPORTING, 0.0)
        ]
        assert machine.handle(DeadlinePassed(1, Phase.REPORTING)) == [Aggregate(1)]

    def test_in_evaluating_the_round_is_not_aggregated_again(self) -> None:
        machine = RoundMachine(ON_CLIENTS)
        assert machine.resume_reporting(1, [A], [B], 5.0, TaskKind.EVALUATE) == [
            SetDeadline(1, Phase.EVALUATING, 5.0)
        ]
        assert machine.handle(UpdateStored(1, A)) == [FoldEvaluation(1)]
        assert machine.handle(EvaluationDone(1, "clients", False)) == [OpenRound(2)]

    def test_with_its_tasks_closed_the_round_is_aggregated(self) -> None:
        machine = RoundMachine(SPEC)
        assert machine.resume_closed(2, [A, B], 2) == [Aggregate(2)]
        assert machine.handle(RoundCommitted(2, False)) == [
            EndRun(RunState.FINISHED, "all 2 rounds are done")
        ]

    def test_with_fewer_tasks_than_a_quorum_all_of_them_are_enough(self) -> None:
        spec = run_spec(size=3, quorum=2)
        assert RoundMachine(spec).resume_closed(1, [A], 1) == [Aggregate(1)]
        assert RoundMachine(spec).resume_closed(1, [A], 2) == [
            FailRound(1, "1 updates came, 2 are needed"),
            OpenRound(2),
        ]
        machine = RoundMachine(spec)
        assert machine.resume_reporting(1, [A], [], 12.5, TaskKind.TRAIN) == [
            SetDeadline(1, Phase.REPORTING, 12.5)
        ]
        assert machine.handle(UpdateStored(1, A)) == [Aggregate(1)]

    def test_with_its_tasks_closed_without_quorum_the_round_fails(self) -> None:
        machine = RoundMachine(SPEC)
        assert machine.resume_closed(1, [], 2) == [
            FailRound(1, "0 updates came, 1 are needed"),
            OpenRound(2),
        ]
