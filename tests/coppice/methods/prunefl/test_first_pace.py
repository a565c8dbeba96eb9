"""The first round of a fleet is short, and its pace the next one's."""

from __future__ import annotations

from dataclasses import replace

import torch

from coppice.domain import ClientId
from coppice.methods.prunefl.device_scope import FleetState, new_fleet
from coppice.sparse import SparseTensor
from tests.coppice.methods.prunefl.own_masks import STEPS, Run, cost, kept


def fleet_of(run: Run) -> FleetState:
    assert run.state.fleet is not None
    return run.state.fleet


def test_the_first_round_has_one_step_and_the_second_a_pace() -> None:
    run = Run({"fast": cost(1), "slow": cost(64)}, reconfigure_every=50)
    first = run.round()
    assert [task.settings["steps"] for task in first.values()] == [1, 1]
    assert [task.settings["report"] for task in first.values()] == [True, True]
    pace = fleet_of(run).pace_seconds
    second = run.round()
    assert second["fast"].settings["steps"] == STEPS
    assert not any(task.settings["report"] for task in second.values())
    for name, task in second.items():
        device = run.costs[name]
        assert device is not None
        assert 0 < device.time.seconds(kept(task), task.settings["steps"]) <= pace * (1 + 1e-6)


def test_more_steps_than_the_first_round_offers_are_no_choice() -> None:
    run = Run({"any": cost()})
    whole = {name: layer.size for name, layer in fleet_of(run).order.items()}
    (task,) = run.plan({"any": {"steps": STEPS, "kept": whole, "report_every": 1}}).values()
    assert sum(kept(task).values()) < sum(whole.values())
    assert task.settings["steps"] == 1


def test_steps_beyond_the_one_of_the_first_round_are_not_believed() -> None:
    states = []
    for claimed in (1, STEPS):
        run = Run({"small": cost(room=22.0 * 30), "other": cost(room=22.0 * 30)})
        tasks = run.plan()
        small, other = (
            run.clients[name].run(task, run.local(name)) for name, task in tasks.items()
        )
        run.fold([replace(small, steps=claimed), other])
        states.append(run.state.parameters)
    for name, item in states[0].items():
        again = states[1][name]
        if isinstance(item, SparseTensor):
            assert isinstance(again, SparseTensor)
            assert torch.equal(item.values, again.values)


def test_where_nobody_knows_its_costs_masks_are_chosen_as_ever() -> None:
    run = Run({"one": None, "other": None}, reconfigure_every=3)
    run.round()
    # Nobody is asked to report again until it is time.
    whole = {name: layer.kept[-1] for name, layer in fleet_of(run).profile.layers.items()}
    choice = {"steps": 1, "kept": whole, "report_every": 1}
    reports = []
    for _ in range(4):
        tasks = run.round(dict.fromkeys(run.costs, choice))
        reports.append(tasks["one"].settings["report"])
    assert reports == [False, True, False, False]


def test_where_nobody_can_report_the_first_pace_goes_by_what_initial_pruning_found() -> None:
    run = Run({"fast": cost(1), "slow": cost(8)})
    parameters = run.state.parameters
    importance = {
        name: item.dense().square()
        for name, item in parameters.items()
        if isinstance(item, SparseTensor)
    }
    known = new_fleet(parameters, importance, 0.0)
    run.state = replace(run.state, fleet=known)
    run.round(run.silent_choices())
    assert fleet_of(run).pace_seconds > 0
    assert fleet_of(run).profile == known.profile
    tasks = run.plan()
    assert tasks[ClientId("fast")].settings["steps"] > tasks[ClientId("slow")].settings["steps"]


def test_without_anything_known_of_weights_there_is_no_pace_and_all_steps_are_done() -> None:
    run = Run({"fast": cost(1), "slow": cost(8)})
    run.round(run.silent_choices())
    assert fleet_of(run).pace_seconds == 0
    for task in run.plan().values():
        assert task.settings["steps"] == STEPS
        assert kept(task) == {name: layer.size for name, layer in fleet_of(run).order.items()}


def test_pace_counts_what_passes_between_rounds_by_the_newest_of_them() -> None:
    paces = []
    for pause in (None, 0.0, 1e3):
        run = Run({"fast": cost(1), "slow": cost(64)}, reconfigure_every=8)
        for number in range(8):
            updates = run.updates()
            # The first rounds are no measure of later ones.
            seconds = 1e6 if number < 2 and pause is not None else pause
            run.fold([replace(update, pause_seconds=seconds) for update in updates])
        assert fleet_of(run).pause_seconds == (pause or 0.0)
        assert len(fleet_of(run).pauses) == (0 if pause is None else 5)
        paces.append(fleet_of(run).pace_seconds)
    unknown, none, long = paces
    assert long > 2 * max(unknown, none)
