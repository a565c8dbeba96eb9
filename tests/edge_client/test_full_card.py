"""A device whose card is full: what was finished gets to the server all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from coppice import files
from coppice.domain import BlobRef
from coppice.errors import DiskFull
from coppice.method import ClientHalf, Local, Task, Update, client_half
from edge_client import outbox, private
from edge_client.backoff import Backoff
from edge_client.private import PrivateState
from edge_client.state_folder import StateFolder
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import WORKLOAD, FakeServer, model_payload, run_key
from tests.edge_client.test_private import Other

PRIVATE = f"{run_key(1)}-fedavg"


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rounds in which something was trained; each keeps its number on the device."""
    rounds: list[int] = []
    half = type(client_half(WORKLOAD.method))
    run = half.run

    def noted(self: ClientHalf, task: Task, local: Local) -> Update:
        rounds.append(task.round_number)
        local.private.stage(Other(task.round_number))
        return run(self, task, local)

    monkeypatch.setattr(half, "run", noted)
    return rounds


@pytest.fixture
def ref(server: FakeServer) -> BlobRef:
    return server.add_blob(model_payload())


def full(monkeypatch: pytest.MonkeyPatch, module: object, times: int) -> list[Path]:
    """So many files that a module wants to write have no room."""
    refused: list[Path] = []

    def write_file(path: Path, *parts: bytes, remedy: str, **flags: bool) -> None:
        if len(refused) < times:
            refused.append(path)
            raise DiskFull(f"no space is left on the disk of {path}")
        files.write_file(path, *parts, remedy=remedy, **flags)

    monkeypatch.setattr(module, "write_file", write_file)
    return refused


def kept(folder: StateFolder) -> int | None:
    """Of which round the private state on the device is."""
    found = PrivateState(folder.private / PRIVATE).read(Other)
    return None if found is None else found.number


def test_update_for_which_there_is_no_room_is_sent_from_memory(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[int],
) -> None:
    refused = full(monkeypatch, outbox, times=1)
    server.offer_run()
    server.offer_task(ref, task_id=1, round_number=1)
    device.start()
    server.wait_for("PollTask", 3)
    assert len(refused) == len(server.pushed) == len(trained) == 1
    assert kept(folder) == 1
    assert "the update is sent from memory" in device.printed


def test_update_waits_until_there_is_room_for_what_the_method_keeps(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[int],
) -> None:
    monkeypatch.setattr(Backoff, "next_seconds", lambda self: 0.001)
    refused = full(monkeypatch, private, times=3)
    server.offer_run()
    server.offer_task(ref, task_id=1, round_number=1)
    device.start()
    server.wait_for("PollTask", 3)
    assert len(refused) == 3
    assert len(server.pushed) == len(trained) == 1
    assert kept(folder) == 1
    assert device.printed.count("waiting for room") == 1
