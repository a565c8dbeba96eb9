"""A device whose card is full: what was finished gets to the server all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from coppice import files
from coppice.domain import BlobRef
from coppice.errors import DiskFull
from edge_client import model_keeper, outbox, private, refusals, status
from edge_client.backoff import Backoff
from edge_client.receipts import Receipts
from edge_client.state_folder import StateFolder
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import FakeServer, model_payload
from tests.edge_client.staging import kept, note_training, offer


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rounds in which something was trained."""
    return note_training(monkeypatch)


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


def test_update_for_which_there_is_no_room_is_sent_from_memory(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[int],
) -> None:
    refused = full(monkeypatch, outbox, times=1)
    offer(server, ref, 1)
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
    monkeypatch.setattr(Backoff, "next_seconds", lambda self, error=None: 0.001)
    refused = full(monkeypatch, private, times=3)
    offer(server, ref, 1)
    device.start()
    server.wait_for("PollTask", 3)
    assert len(refused) == 3
    assert len(server.pushed) == len(trained) == 1
    assert kept(folder) == 1
    assert device.printed.count("waiting for room") == 1


def test_room_is_not_waited_for_when_the_task_is_no_longer_wanted(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_over(self: Backoff) -> float:
        server.wanted = False
        return 0.001

    monkeypatch.setattr(Backoff, "next_seconds", is_over)
    full(monkeypatch, private, times=10**9)
    offer(server, ref, 1)
    device.start()
    server.wait_for("PollTask", 3)
    assert server.pushed == []
    assert kept(folder) is None
    assert "the server no longer wants this task" in device.printed


def test_card_without_a_byte_left_ends_no_work_and_loses_nothing_that_counts(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = full(monkeypatch, outbox, times=10**9)
    for module in (status, refusals):
        full(monkeypatch, module, times=10**9)

    def no_room(*_: object) -> None:
        raise DiskFull("no space is left for a receipt")

    def cannot_be_saved(*_: object) -> None:
        raise DiskFull("no space is left for a model")

    monkeypatch.setattr(Receipts, "keep", no_room)
    monkeypatch.setattr(model_keeper, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(model_keeper, "save_model", cannot_be_saved)
    server.offer_run()
    for number in (1, 2):
        server.offer_task(ref, task_id=number, round_number=number)
    device.start()
    server.wait_for("PollTask", 4)
    assert len(server.pushed) == len(refused) == 2
    assert kept(folder) == 2
    assert "the receipt is not kept" in device.printed
