"""What every method must do: a folder in `coppice/methods/` is all it takes to be tested here."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coppice import tree
from coppice.app import build_model
from coppice.domain import MethodSpec, TaskKind
from coppice.errors import InvalidPayload, TaskAbandoned
from coppice.method import Update, client_half, method_names, server_half, settings_type
from coppice.tensors import assign
from coppice.wire.codec import metrics_from_message
from coppice.wire.payload import encode
from tests.coppice.fleet import CLIENTS, SEED, SETTINGS, Fleet
from tests.coppice.toys import CountingMeter

METHODS_PAGE = Path(__file__).parents[2] / "docs" / "methods.md"

pytestmark = pytest.mark.parametrize("name", method_names())


# ---- the same again ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    torch.manual_seed(1)
    first = Fleet(name).rounds(3).saved()
    torch.manual_seed(2)
    assert Fleet(name).rounds(3).saved() == first
    assert Fleet(name, seed=SEED + 1).rounds(3).saved() != first


def test_a_run_goes_on_from_its_saved_state_as_if_nothing_had_happened(name: str) -> None:
    one, other = Fleet(name).rounds(2), Fleet(name).rounds(2)
    other.state = tree.load(other.server.state_type, other.saved())
    assert isinstance(one.state, one.server.state_type)
    assert other.saved() == one.saved()
    other.server = server_half(other.spec)
    other.client = client_half(other.spec)
    for fleet in (one, other):
        fleet.fold(fleet.answers(3), 3)
    assert other.saved() == one.saved()


def test_the_order_of_updates_changes_next_to_nothing(name: str) -> None:
    one, other = Fleet(name), Fleet(name)
    updates = one.answers(1)
    one.fold(updates, 1)
    other.fold(reversed(updates), 1)
    models, others = one.server.models(one.state), other.server.models(other.state)
    assert models.keys() == others.keys()
    for key, tensors in models.items():
        for tensor, like in ((tensors[item], others[key][item]) for item in tensors):
            torch.testing.assert_close(tensor, like, rtol=1e-6, atol=1e-6)


# ---- what travels ------------------------------------------------------------------------------


def test_tasks_and_updates_fit_the_wire(name: str) -> None:
    fleet = Fleet(name).rounds(1)
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


def test_a_task_is_left_as_it_came(name: str) -> None:
    fleet = Fleet(name)
    for client_id, task in fleet.plan(1).items():
        received = fleet.receive(task)
        before = encode(received.payload)
        fleet.client.run(received, fleet.local(client_id, 1))
        fleet.client.evaluate(received, fleet.local(client_id, 1))
        assert encode(received.payload) == before


# ---- the server's half -------------------------------------------------------------------------


def test_a_round_without_updates_leaves_the_state_as_it_is(name: str) -> None:
    fleet = Fleet(name).rounds(1)
    before = fleet.saved()
    fleet.fold([], 2)
    assert fleet.saved() == before


def test_neither_planning_nor_folding_changes_a_state_in_place(name: str) -> None:
    fleet = Fleet(name).rounds(1)
    state, before = fleet.state, fleet.saved()
    fleet.fold(fleet.answers(2), 2)
    assert tree.save(state) == before != fleet.saved()


def test_a_round_may_close_with_some_of_its_updates(name: str) -> None:
    fleet = Fleet(name)
    before = fleet.saved()
    metrics = fleet.fold(fleet.answers(1)[:1], 1)
    assert fleet.saved() != before
    assert all(math.isfinite(value) for value in metrics.values())


def test_updates_are_folded_one_at_a_time(name: str) -> None:
    fleet = Fleet(name)
    plan = list(fleet.plan(1).items()) * 4
    made: list[list[weakref.ref[Tensor]]] = []
    alive: list[int] = []

    def updates() -> Iterator[Update]:
        for client_id, task in plan:
            living = [any(reference() is not None for reference in tensors) for tensors in made]
            alive.append(sum(living))
            update = fleet.answer(client_id, task)
            groups = update.payload.values()
            made.append([weakref.ref(tensor) for group in groups for tensor in group.values()])
            yield update

    fleet.fold(updates(), 1)
    assert len(alive) == len(plan)
    # The one that a loop still holds while it asks for the next.
    assert max(alive) <= 1


def test_the_global_model_is_one_that_the_app_can_use(name: str) -> None:
    fleet = Fleet(name).rounds(1)
    models = fleet.server.models(fleet.state)
    if "global" in models:
        assign(build_model(fleet.app, 0), models["global"])


# ---- the client's half -------------------------------------------------------------------------


def test_a_device_that_started_again_gives_the_same_update(name: str) -> None:
    fleet = Fleet(name).rounds(2)
    for client_id, task in fleet.plan(3).items():
        first = encode(fleet.answer(client_id, task).payload)
        fleet.client = client_half(fleet.spec)
        torch.manual_seed(9)
        assert encode(fleet.answer(client_id, task).payload) == first


def test_a_task_that_is_no_longer_wanted_is_given_up(name: str) -> None:
    fleet = Fleet(name)
    client_id, task = next(iter(fleet.plan(1).items()))
    with pytest.raises(TaskAbandoned):
        fleet.client.run(fleet.receive(task), fleet.local(client_id, 1, meter=CountingMeter(1)))
    # And nothing of it shows in the next.
    again = encode(fleet.answer(client_id, task).payload)
    assert again == encode(Fleet(name).answer(client_id, task).payload)


def test_a_device_evaluates_what_it_gets_and_has_a_model_or_none(name: str) -> None:
    fleet = Fleet(name).rounds(1)
    for client_id, task in fleet.plan(2).items():
        device, received = fleet.local(client_id, 2), fleet.receive(task)
        metrics = fleet.client.evaluate(received, device)
        assert metrics
        assert metrics_from_message(metrics) == metrics
        kept = fleet.client.model(received, device)
        if kept is not None:
            assign(build_model(fleet.app, 0), kept)


# ---- the folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["client", "server"])
def test_a_process_imports_one_half_of_one_method(name: str, half: str) -> None:
    spec = f"MethodSpec(name={name!r}, settings={dict(SETTINGS.get(name, {}))})"
    code = (
        "import sys\n"
        "from coppice.domain import MethodSpec\n"
        f"from coppice.method import {half}_half\n"
        f"{half}_half({spec})\n"
        "print(*(m for m in sys.modules if m.startswith('coppice.methods.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100
    )
    loaded = done.stdout.split()
    other = {"client": "server", "server": "client"}[half]
    assert f"coppice.methods.{name}.{half}" in loaded
    assert f"coppice.methods.{name}.{other}" not in loaded
    assert {module.split(".")[2] for module in loaded} == {name}


def test_settings_refuse_keys_that_they_do_not_have(name: str) -> None:
    spec = MethodSpec(name=name, settings={**SETTINGS.get(name, {}), "no_such_key": 1})
    for half in (server_half, client_half):
        with pytest.raises(InvalidPayload, match="Settings has no no_such_key"):
            half(spec)
    assert dataclasses.is_dataclass(settings_type(name))


def test_the_documentation_explains_the_method_and_its_settings(name: str) -> None:
    sections = re.split(r"^## ", METHODS_PAGE.read_text(), flags=re.M)
    own = [text for text in sections if f'"{name}"' in text.partition("\n")[0]]
    assert len(own) == 1, f"docs/methods.md needs one heading with {name!r} in it"
    for field in dataclasses.fields(settings_type(name)):
        assert f"`{field.name}`" in own[0], field.name
