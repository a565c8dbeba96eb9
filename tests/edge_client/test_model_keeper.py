"""The model on the device: saved when due, usable without a server, and described without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coppice.domain import Capability, ClientId, TaskKind
from coppice.method import Local, Task
from coppice.model_file import load_model, read_info
from coppice.tensors import dense_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import workload_to_json
from edge_client.meter import Meter
from edge_client.model_keeper import SAVE_EVERY_SECONDS, ModelKeeper
from edge_client.ready import ReadyRun, get_ready
from edge_client.state_folder import StateFolder
from tests.edge_client.fake_server import WORKLOAD, model_payload, run_key
from tests.edge_client.test_meter import ignore
from tests.edge_client.test_status import Clock


@pytest.fixture
def ready(data: Path, tmp_path: Path) -> ReadyRun:
    offer = pb.RunOffer(run_id=1, run_key=run_key(1), workload_json=workload_to_json(WORKLOAD))
    return get_ready(offer, ClientId("kitchen"), data, None, StateFolder(tmp_path), True)


@pytest.fixture
def local(ready: ReadyRun) -> Local:
    return ready.local(1, Capability(1, 1, "x"), Meter(ignore))


def task(round_number: int) -> Task:
    return Task(TaskKind.TRAIN, round_number, model_payload(round_number))


def test_model_is_saved_every_ten_minutes_at_most(
    ready: ReadyRun, local: Local, tmp_path: Path
) -> None:
    clock, path = Clock(), tmp_path / "model.safetensors"
    keeper = ModelKeeper(path, clock)
    saved = []
    for minute in range(1, 25):
        clock.now = 100.0 + 60 * minute
        keeper.hold(ready, task(minute), local, {})
        saved.append(read_info(path).round_number if path.exists() else 0)
    assert SAVE_EVERY_SECONDS == 600
    assert saved == [0] * 9 + [10] * 10 + [20] * 5


def test_newest_model_is_the_one_that_is_saved(
    ready: ReadyRun, local: Local, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    keeper = ModelKeeper(path, Clock())
    keeper.hold(ready, task(1), local, {})
    keeper.hold(ready, task(2), local, {"accuracy": 0.75})
    keeper.save()
    model, info = load_model(path)
    assert info.workload == WORKLOAD
    assert (info.round_number, dict(info.metrics)) == (2, {"accuracy": 0.75})
    assert info.written_by.startswith("fedclient ")
    wanted = dense_group(model_payload(2), "parameters")
    assert all(torch.equal(value, wanted[name]) for name, value in model.named_parameters())


def test_nothing_is_saved_twice_or_without_a_model(
    ready: ReadyRun, local: Local, tmp_path: Path
) -> None:
    keeper = ModelKeeper(tmp_path / "model.safetensors", Clock())
    assert keeper.save() is None
    keeper.hold(ready, task(1), local, {})
    assert keeper.save() is not None
    assert keeper.save() is None
