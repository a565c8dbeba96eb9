"""What devices of their own masks report of importance, and what becomes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from coppice.domain import ClientId
from coppice.methods.prunefl.client import Chosen
from coppice.methods.prunefl.device_scope import _Seen
from coppice.methods.prunefl.estimate import estimate
from coppice.methods.prunefl.sample import MOST_EVERY, Sample
from coppice.tensors import dense_group
from tests.coppice.methods.prunefl.own_masks import STEPS, Run, begun, cost, kept
from tests.coppice.methods.prunefl.small import NAMES


@pytest.mark.parametrize("every", [0, -1, MOST_EVERY + 1, 1.5, "2", None, [], {}])
def test_a_report_that_cannot_be_is_not_asked_for(every: Any) -> None:
    run = Run({"a": cost(), "b": cost()})
    run.round()
    choices = run.choices()
    tasks = run.plan({**choices, "a": {**choices["a"], "report_every": every}})
    assert "importance" not in tasks[ClientId("a")].expects
    assert tasks[ClientId("a")].settings["report"] is False
    assert kept(tasks[ClientId("a")]) == kept(tasks[ClientId("b")])
    assert "importance" in tasks[ClientId("b")].expects


def test_room_for_a_report_is_made_in_its_round_only() -> None:
    run = begun({"a": cost(room=22.0 * 45)}, reconfigure_every=3)
    whole = kept(run.round()["a"])
    reporting = run.round()["a"]
    assert reporting.settings["report"]
    assert sum(kept(reporting).values()) < sum(whole.values())
    assert run.privates["a"].read(Chosen) == Chosen(STEPS, whole, terms=1)
    after = run.round()["a"]
    assert not after.settings["report"]
    assert sum(kept(after).values()) >= sum(whole.values())


def test_devices_of_unequal_reports_choose_anew_together() -> None:
    run = Run({"a": cost(), "b": cost(2), "c": cost(4)})
    run.round()
    choices = run.choices()
    for name, every in zip(choices, (1, 3, 5), strict=True):
        choices[name] = {**choices[name], "report_every": every}
    tasks = run.round(choices)
    sizes = [
        sum(math.prod(spec.shape) for spec in task.expects["importance"].values())
        for task in tasks.values()
    ]
    assert sizes == [56, 11 + 8, 7 + 5]
    assert run.state.fleet is not None
    assert run.state.fleet.pace_seconds > 0
    assert all(layer.gains[-1] > 0 for layer in run.state.fleet.profile.layers.values())


def test_importance_is_the_mean_over_who_reported_an_entry() -> None:
    run = Run({"a": cost(), "b": cost()})
    run.round()
    tasks = run.plan({**(choices := run.choices()), "b": {**choices["b"], "report_every": 5}})
    assert [task.settings["report_every"] for task in tasks.values()] == [1, 5]
    run.round_number += 1
    updates = [run.clients[name].run(task, run.local(name)) for name, task in tasks.items()]
    assert run.state.fleet is not None
    seen = _Seen(run.state.fleet, run.round_number)
    for update in updates:
        seen.add(update, update.steps, run.state.parameters)
    found, _ = seen.importance()
    sample = Sample.from_tensors(
        dense_group(updates[1].payload, "sample"),
        dense_group(updates[1].payload, "importance"),
        run.state.parameters,
    )
    assert sample is not None
    for name in NAMES:
        whole = dense_group(updates[0].payload, "importance")[name].double()
        part = dense_group(updates[1].payload, "importance")[name].double()
        sums, mass = whole.clone(), torch.full_like(whole, 12.0)
        at = sample.entries(sums)
        at += part[: len(at)]
        sample.entries(mass).add_(12.0)
        assert (mass == 24.0).sum() == len(at) < mass.numel() / 4
        torch.testing.assert_close(found[name], estimate(sums, mass, 12.0).float())


@pytest.mark.parametrize("told", [(0, 0), (1, 0), (2**62, 3), (5, -1)])
def test_a_report_of_another_sample_than_was_asked_for_counts_as_none(told: Any) -> None:
    run = Run({"a": cost()})
    run.round()
    choices = run.choices()
    (task,) = run.plan({"a": {**choices["a"], "report_every": 5}}).values()
    update = run.clients["a"].run(task, run.local("a"))
    sample = dict(zip(("every", "first"), map(torch.tensor, told), strict=True))
    before = run.state.fleet
    run.round_number += 1
    run.fold([replace(update, payload={**update.payload, "sample": sample})])
    after = run.state.fleet
    assert before is not None
    assert after is not None
    assert after.profile == before.profile


def test_nothing_is_chosen_anew_where_nobody_reports() -> None:
    run = Run({"a": cost(room=22.0 * 20)})
    run.round()
    before = run.state.fleet
    assert not run.round()["a"].settings["report"]
    after = run.state.fleet
    assert before is not None
    assert after is not None
    assert after.profile == before.profile
    assert after.pace_seconds == 0
