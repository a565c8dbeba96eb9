"""A federation in one process: repeatable, fair with data, and stopped by its target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coppice import tree
from coppice.app import build_model
from coppice.cohort import CohortSpec
from coppice.data import Examples, split
from coppice.domain import (
    AppSpec,
    ClientId,
    EvaluationSpec,
    MethodSpec,
    RunSpec,
    StopSpec,
    derive_seed,
    rank_clients,
)
from coppice.errors import RunFileError
from coppice.simulation import SimulatedRound, Simulation, SimulationResult
from coppice.tensors import assign, buffers_of, dense_tensors, parameters_of, spec_of
from coppice.training import evaluate
from coppice.wire.header import encoded_size_bytes
from tests.coppice.costs import device_cost
from tests.coppice.toys import ToyApp, examples, linear, two_layers, with_buffers

SEED = 3
NAMES = [ClientId(name) for name in ("ada", "ben", "cyd", "dot")]


def spec(
    rounds: int = 3, size: int = 4, target: float | None = None, seed: int = SEED, **evaluation: Any
) -> RunSpec:
    return RunSpec(
        name="toy",
        seed=seed,
        app=AppSpec(name="toy.py", digest="0" * 64),
        method=MethodSpec(name="fedavg", settings={"local_epochs": 1, "batch_size": 5}),
        cohort=CohortSpec(size=size),
        stop=StopSpec(rounds=rounds, target=target),
        evaluation=EvaluationSpec(**evaluation),
    )


def fleet() -> dict[ClientId, Examples]:
    return {name: examples(20 + number, seed=number) for number, name in enumerate(NAMES)}


def simulation(run: RunSpec | None = None, **fields: Any) -> Simulation:
    given: dict[str, Any] = {"app": ToyApp(with_buffers), "clients": fleet()} | fields
    return Simulation(run or spec(), given.pop("app"), given.pop("clients"), **given)


def saved(result: SimulationResult) -> bytes:
    return tree.save(result.state)


# ---- the same again ----------------------------------------------------------------------------


def test_the_method_knows_the_cohort() -> None:
    method = MethodSpec(name="prunefl", settings={"local_steps": 1, "initial_passes": 0})
    run = replace(spec(), method=method)
    assert simulation(run, costs={}).state.cohort == run.cohort


def test_masks_that_devices_choose_need_costs_of_the_devices() -> None:
    method = MethodSpec(name="prunefl", settings={"local_steps": 1})
    with pytest.raises(RunFileError, match='mask_scope = "global"'):
        simulation(replace(spec(), method=method))


def test_the_same_run_gives_the_same_bytes() -> None:
    torch.manual_seed(1)
    first = simulation().run()
    torch.manual_seed(2)
    again = simulation().run()
    assert saved(first) == saved(again)
    assert first.rounds == again.rounds
    assert saved(simulation(spec(seed=SEED + 1)).run()) != saved(first)


def test_the_order_of_clients_in_the_mapping_does_not_matter() -> None:
    turned = dict(reversed(fleet().items()))
    assert list(turned) != list(fleet())
    assert saved(simulation(clients=turned).run()) == saved(simulation().run())


def test_evaluating_has_no_part_in_training() -> None:
    rare = simulation(spec(every=3)).run()
    often = simulation(spec(on_clients=True), held_out=examples(30, seed=9)).run()
    assert saved(rare) == saved(often)


def test_rounds_may_be_run_one_by_one() -> None:
    stepwise = simulation()
    rounds = [stepwise.run_round(round_number) for round_number in (1, 2, 3)]
    whole = simulation().run()
    assert rounds == whole.rounds
    assert tree.save(stepwise.state) == saved(whole)


# ---- who trains on what ------------------------------------------------------------------------


@dataclass
class Watched:
    """Examples that say who was asked for which of them, in training and in evaluation."""

    asked: dict[tuple[ClientId, bool], set[int]] = field(default_factory=lambda: defaultdict(set))

    def app(self) -> ToyApp:
        return ToyApp(linear, held_out=0.3)

    def fleet(self) -> dict[ClientId, Examples]:
        return {name: self._examples(name, whole) for name, whole in fleet().items()}

    def _examples(self, name: ClientId, whole: Examples) -> Examples:
        def transform(numbers: Tensor) -> Tensor:
            training = torch.is_grad_enabled()
            self.asked[name, training] |= set(numbers.tolist())
            return whole.inputs[numbers]

        return Examples(torch.arange(len(whole)), whole.targets, transform)


def test_what_is_held_out_is_never_trained_on_and_all_else_is() -> None:
    watched = Watched()
    simulation(spec(on_clients=True), app=watched.app(), clients=watched.fleet()).run()
    for name, whole in watched.fleet().items():
        train, held_out = split(whole, 0.3, derive_seed(SEED, "held_out", name))
        assert watched.asked[name, True] == set(train.inputs.tolist())
        assert watched.asked[name, False] == set(held_out.inputs.tolist())
        assert len(train) + len(held_out) == len(whole)


def test_a_small_cohort_is_the_one_that_the_seed_ranks_first() -> None:
    chosen = []
    watched = Watched()
    run = simulation(spec(rounds=6, size=2), app=watched.app(), clients=watched.fleet())
    for round_number in range(1, 7):
        watched.asked.clear()
        run.run_round(round_number)
        trained = {name for name, _ in watched.asked}
        assert trained == set(rank_clients(SEED, round_number, NAMES)[:2])
        chosen.append(frozenset(trained))
    assert len(set(chosen)) > 1


def test_a_cohort_larger_than_the_fleet_takes_everybody() -> None:
    assert saved(simulation(spec(size=99)).run()) == saved(simulation(spec(size=4)).run())


def test_a_fleet_of_nobody_changes_nothing() -> None:
    empty = simulation(clients={})
    before = tree.save(empty.state)
    assert empty.run_round(1).bytes_up == 0
    assert tree.save(empty.state) == before


def test_a_device_with_next_to_no_data_does_no_harm() -> None:
    tiny = {ClientId("none"): examples(0), ClientId("one"): examples(1)}
    run = simulation(spec(on_clients=True, rounds=1), app=ToyApp(linear), clients=fleet() | tiny)
    done = run.run().rounds[0]
    assert 0 <= done.evaluation["clients"]["accuracy"] <= 1


# ---- what a round says -------------------------------------------------------------------------


def test_bytes_are_those_of_the_payloads() -> None:
    run = simulation(spec(rounds=1, size=3))
    model = build_model(ToyApp(with_buffers), 0)
    parameters, buffers = parameters_of(model), buffers_of(model)
    done = run.run().rounds[0]
    down = spec_of({"parameters": parameters, "buffers": buffers})
    up = spec_of({"delta": parameters, "buffers": buffers})
    assert done.bytes_down == 3 * encoded_size_bytes(down)
    assert done.bytes_up == 3 * encoded_size_bytes(up)


def test_evaluation_comes_when_it_is_due_and_says_where() -> None:
    run = simulation(spec(rounds=5, every=2, on_clients=True), held_out=examples(40, seed=9))
    seen: list[SimulatedRound] = []
    result = run.run(seen.append)
    assert seen == result.rounds
    assert [done.round_number for done in seen] == [1, 2, 3, 4, 5]
    due = [done.round_number for done in seen if done.evaluation]
    assert due == [2, 4, 5]
    assert seen[1].evaluation.keys() == {"server", "clients"}
    assert seen[1].evaluation["server"].keys() == {"accuracy", "loss"}
    assert seen[0].metrics["loss"] > seen[4].metrics["loss"]


def test_other_models_are_evaluated_by_their_names() -> None:
    settings = {
        "local_steps": 1,
        "initial_passes": 0,
        "reconfigure_every": 2,
    }
    run = replace(
        spec(rounds=1, metric="loss", goal="min", on_clients=True),
        method=MethodSpec(name="prunefl", settings=settings),
    )
    held_out = examples(40, seed=9)
    one = simulation(run, app=ToyApp(two_layers), held_out=held_out, costs={})
    done = one.run_round(1)
    # Devices that do not know what rounds cost them keep a weight for each unit.
    assert list(done.evaluation) == ["server", "cut-0.196", "clients"]
    for where, name in (("server", "global"), ("cut-0.196", "cut-0.196")):
        model = build_model(ToyApp(two_layers), SEED)
        assign(model, one.models[name])
        assert done.evaluation[where] == evaluate(model, ToyApp(two_layers), held_out)
    assert done.evaluation["server"] != done.evaluation["cut-0.196"]


def test_training_helps() -> None:
    result = simulation(spec(rounds=15), held_out=examples(200, seed=9)).run()
    assert result.rounds[-1].evaluation["server"]["accuracy"] > 0.9


def test_a_warm_start_is_where_the_run_begins() -> None:
    app = ToyApp(with_buffers)
    model = build_model(app, 99)
    warm: Mapping[str, Tensor] = parameters_of(model) | buffers_of(model)
    run = simulation(app=app, warm_start=warm)
    begun = dense_tensors(run.models["global"])
    assert all(torch.equal(begun[name], warm[name]) for name in warm)
    cold = simulation(app=app)
    fresh = parameters_of(build_model(app, SEED))
    begun = dense_tensors(cold.models["global"])
    assert all(torch.equal(begun[name], fresh[name]) for name in fresh)


# ---- the target --------------------------------------------------------------------------------


def rounds_run(run: RunSpec, held_out: Examples | None) -> int:
    return len(simulation(run, held_out=held_out).run().rounds)


def test_the_run_ends_with_the_first_round_that_reaches_the_target() -> None:
    held_out = examples(200, seed=9)
    curve = [
        done.evaluation["server"]["accuracy"]
        for done in simulation(spec(rounds=6), held_out=held_out).run().rounds
    ]
    target = max(curve)
    first = curve.index(target) + 1
    assert rounds_run(spec(rounds=6, target=target), held_out) == first
    assert rounds_run(spec(rounds=6, target=target + 1e-9), held_out) == 6
    assert rounds_run(spec(rounds=6, target=1e9, metric="loss", goal="min"), held_out) == 1


def test_an_unknown_metric_reaches_no_target() -> None:
    assert rounds_run(spec(target=0.0, metric="beauty"), examples(20)) == 3


@pytest.mark.parametrize(("held_out", "rounds"), [(None, 1), (examples(50, seed=9), 3)])
def test_the_servers_evaluation_decides_where_there_is_one(
    held_out: Examples | None, rounds: int
) -> None:
    # Impossible on the server's examples, whose labels are wrong; the clients reach it at once.
    if held_out is not None:
        wrong = (held_out.targets + 1) % 3
        held_out = Examples(held_out.inputs, wrong)
    run = spec(target=0.4, on_clients=True)
    right = {"weight": torch.eye(3, 4) * 5, "bias": torch.zeros(3)}
    simulated = simulation(run, app=ToyApp(linear), held_out=held_out, warm_start=right)
    assert len(simulated.run().rounds) == rounds


def test_times_are_modelled_by_what_rounds_cost_the_devices() -> None:
    model = build_model(ToyApp(linear), 0)
    slow, fast = device_cost(model, slowness=8.0), device_cost(model)
    result = simulation(app=ToyApp(linear), costs={NAMES[0]: slow, NAMES[1]: fast}).run()
    weights = {name: model.get_parameter(name).numel() for name in slow.time.layers}
    # An epoch of 15 and 16 examples, in batches of 5, the lone last one with the one before it.
    expected = {NAMES[0]: slow.time.seconds(weights, 3), NAMES[1]: fast.time.seconds(weights, 3)}
    assert [done.seconds for done in result.rounds] == [expected] * 3
