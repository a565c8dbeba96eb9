"""Methods by name: which there are, and what a name that is none is answered."""

from __future__ import annotations

import dataclasses

import pytest

from coppice.domain import ClientId, MethodSpec, Metrics, TaskKind
from coppice.errors import InvalidPayload, RunFileError
from coppice.method import (
    ClientHalf,
    Local,
    ServerHalf,
    Task,
    Update,
    client_half,
    method_names,
    server_half,
    settings_type,
)
from coppice.tensors import Tensors
from tests.coppice.toys import ToyApp, examples, linear, local


class Half(ClientHalf):
    """The least that a client half may be."""

    def run(self, task: Task, local: Local) -> Update:
        return Update(local.client_id, {}, 0)

    def evaluate(self, task: Task, local: Local) -> Metrics:
        return {}

    def model(self, task: Task, local: Local) -> Tensors | None:
        return None


def test_fedavg_is_among_the_methods_and_files_are_not() -> None:
    names = method_names()
    assert "fedavg" in names
    assert names == sorted(names)
    assert all(name.isidentifier() for name in names)


@pytest.mark.parametrize(
    "name", ["", "FedAvg", "fedavg ", "fedavg.server", "..", "os", "settings", "__pycache__"]
)
def test_a_method_that_is_none_is_refused_with_those_there_are(name: str) -> None:
    for make in (server_half, client_half):
        with pytest.raises(RunFileError, match=f"^method.name is {name!r}; allowed are .*'fedavg'"):
            make(MethodSpec(name=name))
    with pytest.raises(RunFileError):
        settings_type(name)


def test_both_halves_get_the_settings_in_their_type() -> None:
    spec = MethodSpec(name="fedavg", settings={"local_steps": 3, "learning_rate": 1})
    assert isinstance(server_half(spec), ServerHalf)
    assert isinstance(client_half(spec), ClientHalf)
    settings = settings_type("fedavg")
    assert dataclasses.is_dataclass(settings)
    for make in (server_half, client_half):
        with pytest.raises(
            InvalidPayload, match=r"^Settings\.local_steps is '3', not of type int$"
        ):
            make(MethodSpec(name="fedavg", settings={"local_steps": "3"}))


def test_a_method_without_terms_offers_no_choice() -> None:
    with pytest.raises(NotImplementedError, match="offers terms but cannot choose"):
        Half().choose({}, local(ToyApp(linear), examples(3)))


def test_a_task_and_an_update_cannot_be_changed() -> None:
    task = Task(TaskKind.TRAIN, 1, {})
    update = Update(ClientId("a"), {}, 1)
    assert (task.settings, task.expects) == ({}, {})
    assert (update.steps, update.metrics) == (0, {})
    for value, field in ((task, "round_number"), (update, "num_examples")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 2)
