"""A run that a device is ready for: its split, its chance, its answers, a user's own app."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coppice.app import make_app
from coppice.data import split
from coppice.domain import Capability, ClientId, MethodSpec, TaskKind, Workload, derive_seed
from coppice.errors import InvalidMessage
from coppice.method import Local, Task
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import blob_ref
from coppice.wire.codec import workload_to_json
from edge_client.meter import Meter
from edge_client.ready import ReadyRun, get_ready
from edge_client.state_folder import StateFolder
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import (
    PATIENCE_SECONDS,
    WORKLOAD,
    FakeServer,
    app_workload,
    model_payload,
)
from tests.edge_client.test_meter import ignore

KITCHEN = ClientId("kitchen")

OWN_APP = b"""
import numpy as np
from torch import nn

def model():
    return nn.Linear(4, 2)

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)

def load_data(path):
    with np.load(path) as arrays:
        return arrays["x"], arrays["y"]
"""
OWN_PAYLOAD = {"parameters": {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}}


@pytest.fixture
def own_app(tmp_path: Path) -> Path:
    path = tmp_path / "own_app.py"
    path.write_bytes(OWN_APP)
    return path


def prepare(
    data: Path,
    state: Path,
    workload: Workload = WORKLOAD,
    key: str = "1-0123456789abcdef",
    app: Path | None = None,
) -> ReadyRun:
    offer = pb.RunOffer(run_id=1, run_key=key, workload_json=workload_to_json(workload))
    return get_ready(offer, KITCHEN, data, app, StateFolder(state), True)


def local_of(ready: ReadyRun, round_number: int = 1) -> Local:
    return ready.local(round_number, Capability(1, 1, "x"), Meter(ignore))


def test_held_out_part_comes_from_the_seed_and_the_name(data: Path, tmp_path: Path) -> None:
    ready = prepare(data, tmp_path)
    examples = make_app(WORKLOAD).load(data)
    train, held_out = split(examples, 0.25, derive_seed(WORKLOAD.seed, "held_out", "kitchen"))
    assert torch.equal(ready.train.inputs, train.inputs)
    assert torch.equal(ready.held_out.inputs, held_out.inputs)


def test_chance_comes_from_the_seed_the_name_and_the_round(data: Path, tmp_path: Path) -> None:
    ready = prepare(data, tmp_path)
    seeds = [local_of(ready, number).generator.initial_seed() for number in (5, 5, 6)]
    assert seeds[0] == seeds[1] == derive_seed(WORKLOAD.seed, "kitchen", 5)
    assert seeds[2] == derive_seed(WORKLOAD.seed, "kitchen", 6)


def test_runs_keep_their_private_states_apart(data: Path, tmp_path: Path) -> None:
    keys = ["1-0123456789abcdef", "1-123456789abcdef0", "2-0123456789abcdef"]
    for key in keys:
        private = prepare(data, tmp_path, key=key).private
        private.stage({"run": 1})
        private.write()
    names = sorted(path.name for path in (tmp_path / "private").iterdir())
    assert names == [f"{key}-fedavg" for key in keys]


@pytest.mark.parametrize("key", ["", "1", "../1-0123456789abcdef", "1-0123456789abcdef/.."])
def test_key_of_a_run_cannot_name_another_folder(data: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidMessage, match="a run's key is"):
        prepare(data, tmp_path, key=key)
    assert not (tmp_path / "private").exists()


def test_workload_that_cannot_be_read_is_an_error(data: Path, tmp_path: Path) -> None:
    offer = pb.RunOffer(run_id=1, workload_json="{}")
    with pytest.raises(InvalidMessage):
        get_ready(offer, KITCHEN, data, None, StateFolder(tmp_path), True)


def test_evaluation_is_on_what_is_held_out(data: Path, tmp_path: Path) -> None:
    ready = prepare(data, tmp_path)
    update = ready.answer(Task(TaskKind.EVALUATE, 1, model_payload()), local_of(ready))
    assert (update.payload, update.num_examples, update.steps) == ({}, 10, 0)
    assert set(update.metrics) == {"accuracy", "loss"}


def test_evaluation_without_held_out_examples_is_empty(
    data: Path, own_app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = prepare(data, tmp_path, app_workload(OWN_APP, held_out=0.0), app=own_app)
    monkeypatch.setattr(type(ready.half), "evaluate", None)
    update = ready.answer(Task(TaskKind.EVALUATE, 1, OWN_PAYLOAD), local_of(ready))
    assert (update.payload, update.num_examples, update.metrics) == ({}, 0, {})


def test_device_trains_its_own_app(
    server: FakeServer, device: ThreadedDevice, own_app: Path
) -> None:
    server.offer_run(app_workload(OWN_APP))
    server.offer_task(server.add_blob(OWN_PAYLOAD))
    server.end_run()
    digest = blob_ref(OWN_APP).digest
    life = device.start(once=True, app=own_app, app_digest=digest)
    assert life.result(PATIENCE_SECONDS) == 0
    assert {poll.app_digest for poll in server.of("PollTask")} == {digest}
    assert server.pushed[0][0].num_examples == 30


def test_costs_are_kept_where_the_method_goes_by_them(data: Path, tmp_path: Path) -> None:
    assert prepare(data, tmp_path).costs is None
    settings = {"local_steps": 1}
    method = MethodSpec(name="prunefl", settings=settings)
    ready = prepare(data, tmp_path, replace(WORKLOAD, method=method))
    assert ready.costs is not None
    assert local_of(ready).cost is None
    ready.costs.probe(ready.half, local_of(ready), ready.workload)
    cost = local_of(ready).cost
    assert cost is not None
    assert 0 < cost.limit_bytes < 2**60
    assert cost.time.layers
