"""A mask and a number of steps for each device: what is sent, folded and chosen anew."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from coppice.app import build_model
from coppice.domain import ClientId, Participant
from coppice.errors import RunFileError
from coppice.masks import density
from coppice.method import InitContext
from coppice.methods.prunefl.client import Chosen
from coppice.methods.prunefl.device_scope import FleetState
from coppice.methods.prunefl.server import Server
from coppice.sparse import SparseTensor
from coppice.tensors import dense_tensors, masks_of, weight_group
from tests.coppice.costs import BASE_BYTES, device_cost
from tests.coppice.methods.prunefl.own_masks import APP, STEPS, Run, begun, cost, kept, settings
from tests.coppice.methods.prunefl.small import DEAR, FIRST, NAMES, SECOND
from tests.coppice.toys import CAPABILITY


def fleet_of(run: Run) -> FleetState:
    assert run.state.fleet is not None
    return run.state.fleet


def test_without_a_pace_all_is_kept_that_memory_allows() -> None:
    run = begun({"large": cost(), "small": cost(room=22.0 * 30)})
    tasks = run.round()
    assert kept(tasks["large"]) == {FIRST: 32, SECOND: 24}
    few = kept(tasks["small"])
    assert 8 + 3 <= sum(few.values()) <= 30
    assert {task.settings["steps"] for task in tasks.values()} == {STEPS}


def test_a_device_that_knows_nothing_of_itself_does_the_least() -> None:
    run = Run({"any": None, "other": device_cost(nn.Sequential(nn.Linear(4, 8)))})
    for task in run.round().values():
        assert kept(task) == {FIRST: 8, SECOND: 3}
        assert task.settings["steps"] == 1
        assert "importance" not in task.expects


def test_a_device_without_memory_for_the_least_says_so_and_is_left_out() -> None:
    run = Run({"well": cost(), "tiny": cost(room=0.0)})
    tiny = run.choices()["tiny"]
    assert tiny["declined"] == "memory"
    assert tiny["parts"] == 1
    # Eleven weights of two linear layers, and nothing but the base to hold them.
    assert tiny["needed_bytes"] == BASE_BYTES + 22 * 11
    assert tiny["budget_bytes"] == BASE_BYTES
    assert set(run.plan()) == {"well"}


def test_after_a_reconfiguration_slow_devices_do_less_at_one_pace() -> None:
    run = Run({"fast": cost(1), "slow": cost(4), "slower": cost(16)})
    run.round()
    tasks = run.round()
    assert [task.settings["report"] for task in tasks.values()] == [True] * 3
    fleet = run.state.fleet
    assert fleet is not None
    assert fleet.pace_seconds > 0
    # Once it has been used it is forgotten: devices say it again in each round.
    assert not fleet.costs
    after = run.round()
    work = {}
    for name, task in after.items():
        device = run.costs[name]
        assert device is not None
        seconds = device.time.seconds(kept(task), task.settings["steps"])
        assert seconds <= fleet.pace_seconds * (1 + 1e-6)
        work[name] = sum(kept(task).values()) * task.settings["steps"]
    assert work["fast"] > work["slow"] > work["slower"] > 0


def test_masks_of_one_round_are_nested() -> None:
    run = Run({"fast": cost(1), "slow": cost(4), "small": cost(room=22.0 * 20)})
    for _ in range(3):
        tasks = run.round()
    by_size = sorted(tasks.values(), key=lambda task: sum(kept(task).values()))
    for smaller, larger in itertools.pairwise(by_size):
        inner = masks_of(weight_group(smaller.payload, "parameters"))
        outer = masks_of(weight_group(larger.payload, "parameters"))
        for name in NAMES:
            if inner[name].count <= outer[name].count:
                assert not (inner[name].bits & ~outer[name].bits).any()


def test_equal_devices_share_one_payload() -> None:
    run = Run({"one": cost(), "other": cost(), "small": cost(room=22.0 * 20)})
    plan = run.plan()
    assert plan[ClientId("one")].payload is plan[ClientId("other")].payload
    assert plan[ClientId("one")].payload is not plan[ClientId("small")].payload


def test_tasks_with_one_payload_follow_each_other() -> None:
    small = cost(room=22.0 * 20)
    run = begun({"one": cost(), "small": small, "other": cost(), "smaller": small, "last": cost()})
    names = list(run.plan())
    assert set(names[:2]) == {"small", "smaller"}
    assert set(names[2:]) == {"one", "other", "last"}


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"steps": 0, "kept": {FIRST: 32, SECOND: 24}},
        {"steps": STEPS + 1, "kept": {FIRST: 32, SECOND: 24}},
        {"steps": 1.5, "kept": {FIRST: 32, SECOND: 24}},
        {"steps": 1, "kept": {FIRST: 32}},
        {"steps": 1, "kept": {FIRST: 33, SECOND: 24}},
        {"steps": 1, "kept": {FIRST: "32", SECOND: 24}},
        {"steps": 1, "kept": [32, 24]},
        {"steps": 1, "kept": {FIRST: {}, SECOND: []}},
    ],
)
def test_a_choice_that_is_none_becomes_the_least(choice: Mapping[str, Any]) -> None:
    run = Run({"a": None})
    (task,) = run.plan({"a": choice}).values()
    fleet = run.state.fleet
    assert fleet is not None
    assert kept(task) == {name: layer.kept[0] for name, layer in fleet.profile.layers.items()}
    assert task.settings["steps"] == 1
    assert "importance" not in task.expects


def test_nothing_is_chosen_anew_where_nobody_reports() -> None:
    run = Run({"a": cost()})
    run.round(run.silent_choices())
    before = run.state.fleet
    run.round(run.silent_choices())
    after = run.state.fleet
    assert before is not None
    assert after is not None
    assert after.profile == before.profile
    assert after.pace_seconds == 0


def test_what_a_device_does_not_hold_stays_as_it_was() -> None:
    run = Run({"small": cost(room=22.0 * 20)})
    before = run.state.parameters
    (task,) = run.round().values()
    mask = masks_of(weight_group(task.payload, "parameters"))[FIRST]
    old, new = before[FIRST], run.state.parameters[FIRST]
    assert isinstance(old, SparseTensor)
    assert isinstance(new, SparseTensor)
    changed = old.dense() != new.dense()
    assert changed.any()
    assert not (changed & ~mask.bits).any()
    assert new.mask == old.mask


@pytest.mark.parametrize(("absent", "share"), [("skip", 1.0), ("zero", 0.5)])
def test_weights_of_one_device_count_by_absent(absent: str, share: float) -> None:
    run = begun({"all": cost(), "small": cost(room=22.0 * 20)}, absent=absent, reconfigure_every=3)
    updates = run.updates()
    before = run.state.parameters[FIRST]
    run.fold(updates)
    after = run.state.parameters[FIRST]
    assert isinstance(before, SparseTensor)
    assert isinstance(after, SparseTensor)
    whole = weight_group(updates[0].payload, "delta")[FIRST]
    part = weight_group(updates[1].payload, "delta")[FIRST]
    assert isinstance(whole, SparseTensor)
    assert isinstance(part, SparseTensor)
    alone = ~part.mask.bits
    moved = (after.dense() - before.dense())[alone]
    torch.testing.assert_close(moved, share * whole.dense()[alone], atol=1e-6, rtol=1e-4)


def test_steps_that_an_update_claims_are_believed_only_so_far() -> None:
    run = Run({"a": cost(), "b": cost()})
    updates = run.updates()
    honest = Run({"a": cost(), "b": cost()})
    honest.round_number += 1
    honest.fold(updates)
    run.fold([replace(updates[0], steps=10**9), replace(updates[1], steps=STEPS)])
    for name in NAMES:
        found, expected = run.state.parameters[name], honest.state.parameters[name]
        assert isinstance(found, SparseTensor)
        assert isinstance(expected, SparseTensor)
        assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"local_steps": None, "local_epochs": 1}, "local_steps"),
        ({"importance": "every_round"}, "every_round"),
        ({"max_density": 0.5}, "max_density"),
        ({"regrow": "stale"}, "regrow"),
        ({"learning_rate": 0.1, "proximal": 20.0}, "proximal"),
        ({"learning_rate": 0.5, "momentum": 0.9, "weight_decay": 0.1}, "momentum"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        settings(**fields)


def test_a_device_that_is_not_asked_to_choose_gets_what_it_held_last() -> None:
    run = Run({"small": cost(room=22.0 * 20), "new": cost()})
    least = {FIRST: 8, SECOND: 3}
    before = run.plan({"small": None, "new": None})
    assert kept(before[ClientId("small")]) == least
    run.costs.pop("new")
    held = kept(run.round()["small"])
    again = run.plan({"small": None, "new": None})
    assert kept(again[ClientId("small")]) == held != least
    assert kept(again[ClientId("new")]) == least


def test_a_device_stays_with_what_it_did_until_something_else_is_clearly_better() -> None:
    run = Run({"fast": cost(1), "slow": cost(1.5)})
    for _ in range(2):
        run.round()
    first = run.choices()["slow"]
    run.round()
    # Hardly faster: what it did is still allowed, and nothing gains a twentieth more.
    run.costs["slow"] = cost(1.49)
    again = run.choices()["slow"]
    assert (again["steps"], again["kept"]) == (first["steps"], first["kept"])
    assert fleet_of(run).version == 2
    assert run.privates["slow"].read(Chosen) == Chosen(first["steps"], first["kept"], terms=2)
    # Slower, so fewer steps on the same masks.
    run.costs["slow"] = cost(2.5)
    after = run.choices()["slow"]
    assert after["steps"] < first["steps"]
    assert after["kept"] == first["kept"]
    # A single step may be a little late; then there have to be other masks at once.
    pace = fleet_of(run).pace_seconds
    lone = cost(1).time.seconds(first["kept"], 1)
    run.costs["slow"] = cost(1.15 * pace / lone)
    assert run.choices()["slow"] == {**first, "steps": 1, "report_every": 1}
    run.costs["slow"] = cost(1.3 * pace / lone)
    assert run.choices()["slow"]["kept"] != first["kept"]
    # Less memory: other masks at once, too.
    peak = cost().peak_bytes(first["kept"])
    run.costs["slow"] = replace(cost(1.5), limit_bytes=peak - 1)
    assert sum(run.choices()["slow"]["kept"].values()) < sum(first["kept"].values())


def test_a_fourth_round_finds_the_pace_again_by_what_rounds_have_shown() -> None:
    run = Run({"fast": cost(1), "slow": cost(4)}, reconfigure_every=50)
    for _ in range(3):
        run.round()
    first = fleet_of(run)
    slower = replace(cost(1).time, round_seconds=first.pace_seconds)
    run.costs["fast"] = replace(cost(1), time=slower)
    run.round()
    again = fleet_of(run)
    assert (first.version, again.version) == (1, 2)
    assert again.pace_seconds > first.pace_seconds
    assert again.profile == first.profile
    run.round()
    assert fleet_of(run).version == 2


@pytest.mark.parametrize("include", ["all", "quorum"])
def test_a_device_that_cannot_keep_the_pace_any_more_does_the_least_or_sits_out(
    include: str,
) -> None:
    run = Run({"fast": cost(1), "slow": cost(4)}, include=include)
    for _ in range(2):
        run.round()
    fleet = run.state.fleet
    assert fleet is not None
    run.costs["slow"] = cost(1000)
    choice = run.choices()["slow"]
    if include == "quorum":
        assert choice == {"declined": "pace"}
    else:
        assert choice["steps"] == 1
        assert choice["kept"] == {
            name: layer.kept[0] for name, layer in fleet.profile.layers.items()
        }
        assert choice["why"] == "pace"


def test_a_model_without_weights_to_prune_is_refused() -> None:
    server = Server(settings(keep_dense=NAMES))
    with pytest.raises(RunFileError, match="no weights that can be pruned"):
        server.init(InitContext(0, lambda: build_model(APP, 0)))


def test_a_device_that_left_does_not_set_the_next_pace() -> None:
    run = Run({"fast": cost(1), "slow": cost(400)})
    for _ in range(2):
        run.round()
    assert run.state.fleet is not None
    before = run.state.fleet.pace_seconds
    run.costs.pop("slow")
    for _ in range(2):
        run.round()
    assert run.state.fleet is not None
    assert run.state.fleet.pace_seconds < before / 10


def test_the_cut_that_a_device_would_keep_is_among_the_models() -> None:
    run = Run({"fast": cost(1), "slow": cost(4), "slower": cost(16)})
    assert list(run.server.models(run.state)) == ["global"]
    # The second round reconfigures: then the counts are those of the older order.
    for _ in range(3):
        run.round()
        models = run.server.models(run.state)
        cohort = [Participant(ClientId(name), CAPABILITY, 12, None) for name in run.costs]
        for client_id, task in run.server.plan(run.state, cohort, 9).items():
            weights = run.clients[client_id].model(task, run.local(client_id))
            share = density(masks_of(weights).values())
            model = models[f"cut-{share:.3g}"]
            assert masks_of(model) == masks_of(weights)
            dense, expected = dense_tensors(model), dense_tensors(weights)
            assert dense.keys() == expected.keys()
            assert all(torch.equal(dense[name], expected[name]) for name in expected)
    assert len(models) > 2
    assert dense_tensors(models["global"]).keys() == expected.keys()


def test_one_mask_for_all_is_one_model() -> None:
    server = Server(settings(mask_scope="global", round_time=DEAR))
    state = server.init(InitContext(0, lambda: build_model(APP, 0)))
    assert list(server.models(state)) == ["global"]


def test_a_device_that_could_do_no_more_than_the_least_for_a_while_does_more_again() -> None:
    run = Run({"fast": cost(1), "slow": cost(1.5)})
    for _ in range(2):
        run.round()
    able = run.choices()["slow"]
    run.costs["slow"] = cost(100)
    assert kept(run.round()["slow"]) == fleet_of(run).profile.least
    run.costs["slow"] = cost(1.5)
    assert run.choices()["slow"]["kept"] == able["kept"]
