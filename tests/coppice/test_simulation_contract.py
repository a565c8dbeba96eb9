"""What a simulation offers a method beyond FedAvg: terms, choices, private state, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from coppice import simulation, tree
from coppice.cohort import CohortSpec
from coppice.data import Examples
from coppice.domain import (
    AppSpec,
    ClientId,
    EvaluationSpec,
    MethodSpec,
    Metrics,
    Participant,
    RunSpec,
    StopSpec,
    TaskKind,
    derive_seed,
)
from coppice.method import Choice, ClientHalf, InitContext, Local, ServerHalf, Task, Update
from coppice.simulated_device import MemoryPrivate
from coppice.simulation import Simulation
from coppice.tensors import Payload, Tensors, TensorSpec, dense_group
from tests.coppice.toys import ToyApp, examples, linear


@dataclass(frozen=True)
class State:
    """How often each client has answered, as the clients themselves count."""

    answers: Mapping[str, int]
    widest: int = 3


@dataclass(frozen=True)
class Diary:
    """What a client keeps for itself."""

    rounds: tuple[int, ...] = ()


class Server(ServerHalf[State]):
    """Offers widths; expects as many values as a client chose."""

    state_type = State

    def init(self, context: InitContext) -> State:
        return State({})

    def terms(self, state: State, round_number: int) -> Payload | None:
        return {"offer": {"widths": torch.arange(1, state.widest + 1)}}

    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        tasks = {}
        for participant in cohort:
            # Who is only to evaluate has chosen nothing for that.
            width = participant.choice["width"] if participant.choice is not None else 2
            if width > 1:
                tasks[participant.client_id] = Task(
                    TaskKind.TRAIN,
                    round_number,
                    {"nothing": {"here": torch.zeros(width)}},
                    settings={"width": width},
                    expects={"diary": {"length": TensorSpec((width,), "int64")}},
                )
        return tasks

    def aggregate(
        self, state: State, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        answers = dict(state.answers)
        for update in updates:
            answers[update.client_id] = int(dense_group(update.payload, "diary")["length"][0])
        return replace(state, answers=answers), {"clients": len(answers)}

    def models(self, state: State) -> Mapping[str, Tensors]:
        return {}


class Client(ClientHalf):
    """Chooses by its number of examples; keeps a diary."""

    def choose(self, terms: Payload, local: Local) -> Choice:
        widths = dense_group(terms, "offer")["widths"].tolist()
        return {"width": widths[min(len(local.train), len(widths)) - 1]}

    def run(self, task: Task, local: Local) -> Update:
        diary = local.private.read(Diary) or Diary()
        diary = Diary((*diary.rounds, task.round_number))
        local.private.stage(diary)
        # Not before the receipt.
        assert local.private.read(Diary) != diary
        length = torch.full((task.settings["width"],), len(diary.rounds))
        return Update(local.client_id, {"diary": {"length": length}}, len(local.train))

    def evaluate(self, task: Task, local: Local) -> Metrics:
        assert task.kind is TaskKind.EVALUATE
        diary = local.private.read(Diary) or Diary()
        return {"pages": float(len(diary.rounds))}

    def model(self, task: Task, local: Local) -> Tensors | None:
        return None


FLEET = {ClientId(f"c{count}"): examples(count) for count in (1, 3, 8)}


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "server_half", lambda spec: Server())
    monkeypatch.setattr(simulation, "client_half", lambda spec: Client())
    monkeypatch.setattr(simulation, "check_wire", lambda workload: None)


def simulated(rounds: int = 3, held_out: Examples | None = None) -> Simulation:
    run = RunSpec(
        name="toy",
        app=AppSpec(name="toy.py", digest="0" * 64),
        method=MethodSpec(name="toy"),
        cohort=CohortSpec(size=3),
        stop=StopSpec(rounds=rounds),
        evaluation=EvaluationSpec(on_clients=True, metric="pages"),
    )
    return Simulation(run, ToyApp(linear, held_out=0.3), FLEET, held_out=held_out)


@pytest.mark.usefixtures("method")
def test_clients_are_planned_by_what_they_choose() -> None:
    result = simulated().run()
    # c1 chose 1 and got no task; nobody waits for it.
    assert result.state.answers == {"c3": 3, "c8": 3}
    assert [done.metrics for done in result.rounds] == [{"clients": 2}] * 3


@pytest.mark.usefixtures("method")
def test_private_state_goes_on_from_round_to_round() -> None:
    result = simulated(rounds=4).run()
    assert set(result.state.answers.values()) == {4}
    # By the time of the evaluation the round's own page is committed.
    assert [done.evaluation["clients"] for done in result.rounds] == [
        {"pages": float(number)} for number in (1, 2, 3, 4)
    ]


@pytest.mark.usefixtures("method")
def test_a_method_without_a_global_model_is_not_evaluated_on_the_server() -> None:
    result = simulated(held_out=examples(5)).run()
    assert result.models == {}
    assert all(done.evaluation.keys() == {"clients"} for done in result.rounds)


@pytest.mark.usefixtures("method")
def test_chance_is_the_clients_own_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[tuple[str, int], int] = {}

    class Noting(Client):
        def run(self, task: Task, local: Local) -> Update:
            seeds[local.client_id, task.round_number] = local.generator.initial_seed()
            return super().run(task, local)

    monkeypatch.setattr(simulation, "client_half", lambda spec: Noting())
    simulated(rounds=2).run()
    assert seeds == {
        (name, number): derive_seed(0, name, number) for name in ("c3", "c8") for number in (1, 2)
    }


@pytest.mark.usefixtures("method")
def test_an_update_that_does_not_fit_its_task_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wide(Client):
        def run(self, task: Task, local: Local) -> Update:
            wide: dict[str, Any] = {"width": task.settings["width"] + 1}
            return super().run(replace(task, settings=wide), local)

    monkeypatch.setattr(simulation, "client_half", lambda spec: Wide())
    run = simulated()
    before = run.state
    for _ in range(2):
        done = run.run_round(1)
        assert [finding.rule for finding in done.refused.values()] == ["structure", "structure"]
        for finding in done.refused.values():
            assert finding.reason.startswith("diary/length is int64 [")
        assert run.state is before
    assert all(device.private.read(Diary) is None for device in run._devices.values())


# ---- private state -----------------------------------------------------------------------------


def test_private_state_is_a_copy_that_the_receipt_commits() -> None:
    private = MemoryPrivate()
    assert private.read(Diary) is None
    private.commit()
    assert private.read(Diary) is None
    private.stage(Diary((1,)))
    private.stage(Diary((2,)))
    assert private.read(Diary) is None
    private.commit()
    private.stage(Diary((3,)))
    assert private.read(Diary) == Diary((2,))
    tensor = torch.ones(2)
    private.stage(tensor)
    tensor.zero_()
    private.commit()
    kept = private.read(torch.Tensor)
    assert kept.tolist() == [1.0, 1.0]
    kept.zero_()
    assert private.read(torch.Tensor).tolist() == [1.0, 1.0]


def test_private_state_has_one_value_of_each_type() -> None:
    private = MemoryPrivate()
    private.stage(Diary((1,)))
    private.commit()
    assert private.read(State) is None
    private.stage(State({"c1": 3}))
    assert private.read(State) is None
    private.commit()
    # What was not staged anew stays.
    assert private.read(State) == State({"c1": 3})
    assert private.read(Diary) == Diary((1,))
    with pytest.raises(TypeError, match="may not hold a"):
        private.stage({1, 2})
    assert tree.load(Diary, tree.save(private.read(Diary))) == Diary((1,))
