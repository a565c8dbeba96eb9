"""From a finished update to its receipt: over cut links, lost receipts and killed clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import BlobRef
from coppice.errors import RoundClosed, UpdateRefused
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import blob_ref
from edge_client.delivery import OutboxMode
from edge_client.outbox import Outbox, Parcel
from edge_client.private import PrivateState
from edge_client.receipts import Receipts
from edge_client.state_folder import StateFolder
from edge_client.stop import Stopped
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import (
    PATIENCE_SECONDS,
    FakeServer,
    model_payload,
    run_key,
)
from tests.edge_client.staging import PRIVATE, kept, note_training, offer
from tests.edge_client.test_private import Other


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up after it but what the interpreter must."""


@pytest.fixture
def again(
    server: FakeServer, folder: StateFolder, data: Path
) -> Iterator[Callable[[], ThreadedDevice]]:
    """The device's next process, on the same folder."""
    built: list[ThreadedDevice] = []

    def build() -> ThreadedDevice:
        built.append(ThreadedDevice(server, folder, data))
        return built[-1]

    yield build
    for device in built:
        device.end()


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rounds in which something was trained."""
    return note_training(monkeypatch)


def entry(folder: StateFolder) -> Parcel | None:
    return Outbox(folder.outbox).get(run_key(1))


@pytest.fixture
def ref(server: FakeServer) -> BlobRef:
    return server.add_blob(model_payload())


def test_update_is_on_disk_before_its_first_byte_leaves(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, folder: StateFolder
) -> None:
    gate = server.gate("PushUpdate")
    offer(server, ref, 1)
    device.start()
    assert gate.reached.wait(PATIENCE_SECONDS)
    found = entry(folder)
    assert found is not None
    assert (found.task_id, found.round_number, found.steps) == (1, 1, 2)
    assert kept(folder) is None
    assert PrivateState(folder.private / PRIVATE).holds(1, found.private)
    gate.opened.set()
    server.wait_for("PollTask", 3)
    assert entry(folder) is None
    assert kept(folder) == 1
    (receipt,) = Receipts(folder.receipts).newest_last()
    assert receipt.is_genuine
    assert receipt.receipt.digest == found.ref.digest


def test_update_goes_on_where_the_link_broke(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, trained: list[int]
) -> None:
    server.cuts["PushUpdate"] = [50, 40]
    offer(server, ref, 1)
    device.start()
    server.wait_for("PollTask", 3)
    assert [header.offset for header in server.of("PushUpdate")] == [0, 50, 90]
    (pushed,) = server.pushed
    assert blob_ref(pushed[1]).digest == pushed[0].blob.digest
    assert trained == [1]


def test_receipt_that_got_lost_is_asked_for(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, folder: StateFolder
) -> None:
    server.loses_receipt = True
    offer(server, ref, 1)
    device.start()
    server.wait_for("PollTask", 3)
    assert len(server.of("PushUpdate")) == len(server.of("PushStatus")) == 1
    assert kept(folder) == 1


def killed_in_upload(
    server: FakeServer, device: ThreadedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between two calls."""

    def kill(*_: object) -> float:
        raise Killed

    monkeypatch.setattr(device.link._backoff, "next_seconds", kill)
    with pytest.raises(Killed):
        device.start().result(PATIENCE_SECONDS)


@pytest.mark.parametrize("is_stored", [False, True], ids=["half sent", "stored"])
def test_next_process_delivers_what_the_killed_one_had_finished(
    server: FakeServer,
    device: ThreadedDevice,
    again: Callable[[], ThreadedDevice],
    ref: BlobRef,
    folder: StateFolder,
    trained: list[int],
    monkeypatch: pytest.MonkeyPatch,
    is_stored: bool,
) -> None:
    if is_stored:
        server.loses_receipt = True
    else:
        server.cuts["PushUpdate"] = [50]
    offer(server, ref, 1)
    killed_in_upload(server, device, monkeypatch)
    assert entry(folder) is not None
    assert kept(folder) is None

    server.offer_run()
    server.offer_task(ref, task_id=2, round_number=2)
    polls = len(server.of("PollTask"))
    second = again()
    second.start()
    server.wait_for("PollTask", polls + 3)
    assert [header.task_id for header, _ in server.pushed] == [1, 2]
    offsets = [0, 0] if is_stored else [0, 50, 0]
    assert [header.offset for header in server.of("PushUpdate")] == offsets
    assert trained == [1, 2], "what was finished is not trained again"
    assert "round 1  the update that was finished before has arrived\n" in second.printed
    assert kept(folder) == 2
    assert entry(folder) is None


@pytest.mark.parametrize("error", [RoundClosed("round 1 is over"), UpdateRefused("too large")])
def test_next_process_learns_that_the_update_does_not_count(
    server: FakeServer,
    device: ThreadedDevice,
    again: Callable[[], ThreadedDevice],
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    error: RoundClosed,
) -> None:
    server.cuts["PushUpdate"] = [50]
    offer(server, ref, 1)
    killed_in_upload(server, device, monkeypatch)
    server.errors["PushStatus"] = [error]
    server.offer_run()
    polls = len(server.of("PollTask"))
    second = again()
    second.start()
    server.wait_for("PollTask", polls + 2)
    assert str(error) in second.printed
    assert server.pushed == []
    assert entry(folder) is None
    assert list((folder.private / PRIVATE).iterdir()) == []


def test_update_without_its_private_state_is_not_sent(
    server: FakeServer,
    device: ThreadedDevice,
    again: Callable[[], ThreadedDevice],
    ref: BlobRef,
    folder: StateFolder,
    trained: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.cuts["PushUpdate"] = [50]
    offer(server, ref, 1)
    killed_in_upload(server, device, monkeypatch)
    (folder.private / PRIVATE / "staged.safetensors").write_bytes(b"cut")
    server.partial.clear()
    polls = len(server.of("PollTask"))
    offer(server, ref, 1)
    again().start()
    server.wait_for("PollTask", polls + 3)
    assert trained == [1, 1]
    assert kept(folder) == 1


@pytest.mark.parametrize("mode", ["always", "on-trouble"])
def test_client_that_is_asked_to_end_keeps_the_update(
    server: FakeServer,
    device: ThreadedDevice,
    again: Callable[[], ThreadedDevice],
    ref: BlobRef,
    folder: StateFolder,
    trained: list[int],
    mode: OutboxMode,
) -> None:
    gate = server.gate("PushUpdate")
    offer(server, ref, 1)
    life = device.start(outbox=mode)
    assert gate.reached.wait(PATIENCE_SECONDS)
    assert (entry(folder) is not None) == (mode == "always")
    device.stop.request()
    with pytest.raises(Stopped):
        life.result(PATIENCE_SECONDS)
    assert entry(folder) is not None
    gate.opened.set()
    server.offer_run()
    polls = len(server.of("PollTask"))
    again().start()
    server.wait_for("PollTask", polls + 2)
    assert trained == [1]
    assert kept(folder) == 1
    assert entry(folder) is None


def test_on_trouble_writes_when_the_first_attempt_fails(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.cuts["PushUpdate"] = [50]
    offer(server, ref, 1)
    device.plan = replace(device.plan, outbox="on-trouble")
    killed_in_upload(server, device, monkeypatch)
    assert entry(folder) is not None


def test_on_trouble_writes_nothing_when_all_is_well(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, folder: StateFolder
) -> None:
    offer(server, ref, 1)
    device.start(outbox="on-trouble")
    server.wait_for("PollTask", 3)
    assert not folder.outbox.exists()
    assert kept(folder) == 1


def test_answer_that_counts_may_be_another_than_the_one_sent(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, folder: StateFolder
) -> None:
    header = pb.PushHeader(task_id=1, blob=pb.BlobRef(digest="e" * 64))
    server._receipt(header, "kitchen")
    offer(server, ref, 1)
    device.start()
    server.wait_for("PollTask", 3)
    assert kept(folder) is None, "what it keeps goes with the answer that does not count"
    assert entry(folder) is None


def test_update_that_is_refused_at_the_end_of_its_round_takes_its_private_state_with_it(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, folder: StateFolder
) -> None:
    offer(server, ref, 1, 2)
    refusal = pb.Refusal(refusal_id=1, task_id=2, round_number=2, reason="far from the others")
    server.reply(wait=pb.Wait(), refusals=[refusal])
    device.start()
    server.wait_for("PollTask", 5)
    assert kept(folder) == 1
    assert "far from the others" in device.printed


def test_task_that_is_offered_again_after_its_receipt_starts_from_the_state_before(
    server: FakeServer,
    device: ThreadedDevice,
    ref: BlobRef,
    folder: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[int | None] = []
    write = PrivateState.write

    def noted(self: PrivateState) -> str:
        value = self.read(Other)
        found.append(None if value is None else value.number)
        return write(self)

    monkeypatch.setattr(PrivateState, "write", noted)
    server.offer_run()
    for task_id in (1, 2, 2):
        server.offer_task(ref, task_id=task_id, round_number=task_id)
    device.start()
    server.wait_for("PollTask", 5)
    assert found == [None, 1, 1]
    assert kept(folder) == 2


def test_end_of_the_run_leaves_nothing(
    server: FakeServer, device: ThreadedDevice, ref: BlobRef, folder: StateFolder
) -> None:
    offer(server, ref, 1)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert list(folder.outbox.iterdir()) == []
    assert list(folder.private.iterdir()) == []
