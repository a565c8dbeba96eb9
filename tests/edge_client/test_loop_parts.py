"""A device without memory for whole batches trains on them in parts, or says what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from coppice.app import build_model, make_app
from coppice.batch_parts import BatchMemory
from coppice.device_cost import DeviceCost, MemoryCost
from coppice.domain import Metrics, TaskKind
from coppice.method import Local, Task, Update
from coppice.methods.fedavg.client import Client
from coppice.methods.fedavg.settings import Settings
from coppice.task_cost import kept_of
from coppice.tensors import Payload
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import blob_to_message
from edge_client.costs import Costs
from edge_client.status import Status, read_status
from tests.coppice.costs import device_cost
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import (
    PATIENCE_SECONDS,
    WORKLOAD,
    FakeServer,
    masks_in,
    model_payload,
    pruned_payload,
)

BATCH = BatchMemory(examples=20, bytes_per_example=1e6)


def short_cost(payload: Payload, short_bytes: float) -> DeviceCost:
    """Of a device that lacks so many bytes for whole batches with these weights."""
    cost = device_cost(build_model(make_app(WORKLOAD), 0))
    step = replace(cost.memory.training, batch=BATCH, base_bytes=1e8)
    cost = replace(cost, memory=MemoryCost(training=step))
    needed = cost.peak_bytes(kept_of(Task(TaskKind.TRAIN, 1, payload)))
    return replace(cost, limit_bytes=needed - short_bytes)


class Half(Client):
    """Notes in how many parts it is to work."""

    goes_by_cost = True

    def __init__(self) -> None:
        super().__init__(Settings(local_steps=2))
        self.parts: list[int] = []

    def run(self, task: Task, local: Local) -> Update:
        self.parts.append(local.parts)
        return super().run(task, local)

    def evaluate(self, task: Task, local: Local) -> Metrics:
        self.parts.append(local.parts)
        return super().evaluate(task, local)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Half:
    made = Half()
    monkeypatch.setattr("edge_client.ready.client_half", lambda spec: made)
    monkeypatch.setattr(Costs, "probe", lambda *arguments: None)
    return made


def test_tasks_are_done_in_the_parts_that_memory_asks_for(
    server: FakeServer, device: ThreadedDevice, half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    def forecast(_: Costs, task: Task, fetched: int, why: str, parts: int) -> None:
        told.append(("forecast", parts))

    def learn(_: Costs, task: Task, report: object, seconds: float, moved: Any, parts: int) -> None:
        told.append(("learn", parts))

    payload = pruned_payload()
    monkeypatch.setattr(Costs, "cost", lambda _: short_cost(payload, 14e6))
    monkeypatch.setattr(Costs, "forecast", forecast)
    monkeypatch.setattr(Costs, "learn", learn)
    masks = masks_in(payload)
    known = {mask.fingerprint: mask for mask in masks["parameters"].values()}
    ref, masks_ref = server.add_blob(payload, known), blob_to_message(server.add_blob(masks))
    server.offer_run()
    server.offer_task(ref, masks=masks_ref)
    server.offer_task(ref, task_id=12, kind="evaluate", settings_json="{}", masks=masks_ref)
    # Nothing is known of the memory that other layers take.
    server.offer_task(server.add_blob(model_payload()), task_id=13, round_number=2)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert half.parts == [4, 4, 1]
    assert told == [("forecast", 4), ("learn", 4), ("forecast", 1), ("learn", 1)]


@pytest.mark.parametrize(
    ("choice", "limit"),
    [
        (
            {"declined": "memory", "parts": 8, "needed_bytes": 412.4e6, "budget_bytes": 380e6},
            "memory: they need 412.4 MB with batches in 8 parts, and it may use 380.0 MB",
        ),
        (
            {"declined": "memory", "parts": 1, "needed_bytes": 5e6, "budget_bytes": 4e6},
            "memory: they need 5.0 MB, and it may use 4.0 MB",
        ),
        ({"declined": "pace"}, "pace"),
    ],
)
def test_a_device_that_declines_tells_people_why(
    choice: Mapping[str, object],
    limit: str,
    server: FakeServer,
    device: ThreadedDevice,
    half: Half,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(half, "choose", lambda terms, local: choice)
    waiting: list[Status | None] = []
    monkeypatch.setattr(
        device.stop, "wait", lambda seconds: waiting.append(read_status(device.folder.status))
    )
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.reply(terms=pb.TermsOffer(round_number=4, payload=blob_to_message(ref)))
    server.reply(wait=pb.Wait())
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    text = f"not even the fewest weights fit this device's {limit}; looking again in the next round"
    assert text in device.printed
    told = waiting[-1]
    assert told is not None
    assert told.last_error == text
