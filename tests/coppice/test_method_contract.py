"""What every method must do; `tests.coppice.fleet.CASES` says with which settings."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from coppice import tree
from coppice.app import build_model
from coppice.domain import AppSpec, TaskKind, WireSpec, Workload
from coppice.errors import RunFileError, TaskAbandoned
from coppice.method import Update, check_wire, client_half, server_half
from coppice.sparse import SparseTensor
from coppice.tensors import Payload, assign, dense_tensors, masks_of, weight_group
from coppice.wire.codec import metrics_from_message
from coppice.wire.payload import encode
from tests.coppice.fleet import CASES, CLIENTS, SEED, Fleet
from tests.coppice.toys import CountingMeter

pytestmark = pytest.mark.parametrize("case", CASES)


# ---- the same again ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(case: str) -> None:
    torch.manual_seed(1)
    first = Fleet(case).rounds(3).saved()
    torch.manual_seed(2)
    assert Fleet(case).rounds(3).saved() == first
    assert Fleet(case, seed=SEED + 1).rounds(3).saved() != first


def test_a_run_goes_on_from_its_saved_state_as_if_nothing_had_happened(case: str) -> None:
    one, other = Fleet(case).rounds(2), Fleet(case).rounds(2)
    other.state = tree.load(other.server.state_type, other.saved())
    assert isinstance(one.state, one.server.state_type)
    assert other.saved() == one.saved()
    other.server = server_half(other.spec)
    other.client = client_half(other.spec)
    for fleet in (one, other):
        fleet.fold(fleet.answers(3), 3)
    assert other.saved() == one.saved()


def test_the_order_of_updates_changes_next_to_nothing(case: str) -> None:
    one, other = Fleet(case), Fleet(case)
    updates = one.answers(1)
    one.fold(updates, 1)
    other.fold(reversed(updates), 1)
    models, others = one.server.models(one.state), other.server.models(other.state)
    assert models.keys() == others.keys()
    for key in models:
        assert masks_of(models[key]) == masks_of(others[key])
        tensors, like = dense_tensors(models[key]), dense_tensors(others[key])
        for name in tensors:
            torch.testing.assert_close(tensors[name], like[name], rtol=1e-6, atol=1e-6)


def tensors_in(payload: Payload) -> Iterator[Tensor]:
    """All of them; of sparse ones the values."""
    for group in payload:
        for item in weight_group(payload, group).values():
            yield item.values if isinstance(item, SparseTensor) else item


# ---- what travels ------------------------------------------------------------------------------


def test_tasks_and_updates_fit_the_wire(case: str) -> None:
    fleet = Fleet(case).rounds(1)
    plan = fleet.plan(2)
    assert plan.keys() <= set(CLIENTS)
    assert plan
    for client_id, task in plan.items():
        assert (task.kind, task.round_number) == (TaskKind.TRAIN, 2)
        received = fleet.receive(task)
        assert received.settings == task.settings
        # A group without tensors does not travel, and no half may rely on one.
        groups = {group for group, tensors in task.payload.items() if tensors}
        assert received.payload.keys() == groups
        update = fleet.answer(client_id, task)
        assert update.client_id == client_id
        assert 0 <= update.num_examples < 2**53
        assert metrics_from_message(update.metrics) == update.metrics


def test_a_task_is_left_as_it_came(case: str) -> None:
    fleet = Fleet(case)
    for client_id, task in fleet.plan(1).items():
        received = fleet.receive(task)
        before = encode(received.payload)
        fleet.client.run(received, fleet.local(client_id, 1))
        fleet.client.evaluate(received, fleet.local(client_id, 1))
        assert encode(received.payload) == before


def test_values_are_rounded_on_the_way_or_the_method_says_no(case: str) -> None:
    wire = WireSpec(down="bfloat16", up="int8", compress=True)
    app = AppSpec(name="toy.py", digest="0" * 64)
    workload = Workload(name="toy", app=app, method=CASES[case], wire=wire)
    try:
        check_wire(workload)
    except RunFileError:
        return
    fleet = Fleet(case, wire=wire).rounds(3)
    assert (
        Fleet(case, wire=wire).rounds(3).saved() == fleet.saved() != Fleet(case).rounds(3).saved()
    )


# ---- the server's half -------------------------------------------------------------------------


def test_a_round_without_updates_leaves_the_state_as_it_is(case: str) -> None:
    fleet = Fleet(case).rounds(1)
    before = fleet.saved()
    fleet.fold([], 2)
    assert fleet.saved() == before


def test_neither_planning_nor_folding_changes_a_state_in_place(case: str) -> None:
    fleet = Fleet(case).rounds(1)
    state, before = fleet.state, fleet.saved()
    fleet.fold(fleet.answers(2), 2)
    assert tree.save(state) == before != fleet.saved()


def test_a_round_may_close_with_some_of_its_updates(case: str) -> None:
    fleet = Fleet(case)
    before = fleet.saved()
    metrics = fleet.fold(fleet.answers(1)[:1], 1)
    assert fleet.saved() != before
    assert all(math.isfinite(value) for value in metrics.values())


def test_updates_are_folded_one_at_a_time(case: str) -> None:
    fleet = Fleet(case)
    plan = list(fleet.plan(1).items()) * 4
    made: list[list[weakref.ref[Tensor]]] = []
    alive: list[int] = []

    def updates() -> Iterator[Update]:
        for client_id, task in plan:
            living = [any(reference() is not None for reference in tensors) for tensors in made]
            alive.append(sum(living))
            update = fleet.answer(client_id, task)
            made.append([weakref.ref(tensor) for tensor in tensors_in(update.payload)])
            yield update

    fleet.fold(updates(), 1)
    assert len(alive) == len(plan)
    # The one that a loop still holds while it asks for the next.
    assert max(alive) <= 1


def test_the_global_model_is_one_that_the_app_can_use(case: str) -> None:
    fleet = Fleet(case).rounds(1)
    models = fleet.server.models(fleet.state)
    if "global" in models:
        assign(build_model(fleet.app, 0), models["global"])


# ---- the client's half -------------------------------------------------------------------------


def test_a_device_that_started_again_gives_the_same_update(case: str) -> None:
    fleet = Fleet(case).rounds(2)
    for client_id, task in fleet.plan(3).items():
        first = encode(fleet.answer(client_id, task).payload)
        fleet.client = client_half(fleet.spec)
        torch.manual_seed(9)
        assert encode(fleet.answer(client_id, task).payload) == first


def test_a_task_that_is_no_longer_wanted_is_given_up(case: str) -> None:
    fleet = Fleet(case)
    client_id, task = next(iter(fleet.plan(1).items()))
    with pytest.raises(TaskAbandoned):
        fleet.client.run(fleet.receive(task), fleet.local(client_id, 1, meter=CountingMeter(1)))
    # And nothing of it shows in the next.
    again = encode(fleet.answer(client_id, task).payload)
    assert again == encode(Fleet(case).answer(client_id, task).payload)


def test_a_device_evaluates_what_it_gets_and_has_a_model_or_none(case: str) -> None:
    fleet = Fleet(case).rounds(1)
    for client_id, task in fleet.plan(2).items():
        device, received = fleet.local(client_id, 2), fleet.receive(task)
        metrics = fleet.client.evaluate(received, device)
        assert metrics
        assert metrics_from_message(metrics) == metrics
        kept = fleet.client.model(received, device)
        if kept is not None:
            assign(build_model(fleet.app, 0), kept)
