"""The life of a device against a fake server: what it sends, prints, keeps and survives."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from coppice.errors import (
    AppMismatch,
    CoppiceError,
    DataError,
    InvalidMessage,
    InvalidPayload,
    NotJoined,
    RoundClosed,
    ServerBusy,
    UnknownBlob,
    UpdateRefused,
)
from coppice.method import ClientHalf, Local, Task, Update
from coppice.model_file import load_weights, read_info
from coppice.sparse import SparseTensor
from coppice.tensors import Payload, dense_group, masks_of, weight_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import blob_to_message
from coppice.wire.exchange import known_masks
from coppice.wire.payload import decode
from edge_client.ready import ReadyRun
from edge_client.stop import Stopped
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import (
    PATIENCE_SECONDS,
    FakeServer,
    app_workload,
    masks_in,
    model_payload,
    pruned_payload,
    run_key,
)


def test_device_trains_and_keeps_the_model(server: FakeServer, device: ThreadedDevice) -> None:
    ref, last = server.add_blob(model_payload(1)), server.add_blob(model_payload(2))
    server.offer_run()
    server.offer_task(ref)
    server.end_run(keep=last)
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0

    header, data = server.pushed[0]
    assert (header.task_id, header.num_examples, header.steps) == (11, 30, 2)
    assert header.metrics["loss"] > 0
    delta = dense_group(decode(bytearray(data)), "delta")
    assert any(tensor.any() for tensor in delta.values())
    polls = server.of("PollTask")
    asked = [(poll.run_key, poll.num_examples) for poll in polls]
    assert asked == [("", 0), (run_key(1), 30), (run_key(1), 30)]
    assert polls[0].capability.memory_bytes > 0
    info = read_info(device.folder.model)
    assert info.round_number == 9
    assert 0 <= info.metrics["accuracy"] <= 1
    assert [request.reason for request in server.of("Leave")] == [""]
    tags = [line.split()[0] for line in device.printed.splitlines()]
    assert tags == ["joined", "run", "data", "round", "over", "model", "left"]
    assert "30 examples to train on, 10 held out" in device.printed
    assert "2 steps of" in device.printed


def test_same_task_gives_the_same_update(server: FakeServer, device: ThreadedDevice) -> None:
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.offer_task(ref, task_id=1)
    server.offer_task(ref, task_id=2)
    server.offer_task(ref, task_id=3, round_number=2)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    digests = [header.blob.digest for header, _ in server.pushed]
    assert digests[0] == digests[1] != digests[2]
    assert len(server.of("FetchBlob")) == 1


def test_evaluation_sends_metrics_and_an_empty_payload(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()), kind="evaluate", settings_json="{}")
    server.end_run()
    device.start(once=True).result(PATIENCE_SECONDS)
    header, data = server.pushed[0]
    assert decode(bytearray(data)) == {}
    assert (header.num_examples, header.steps) == (10, 0)
    assert set(header.metrics) == {"accuracy", "loss"}
    # The model that was evaluated is the newest, and what it reached is known.
    assert read_info(device.folder.model).metrics == dict(header.metrics)


def test_device_says_how_long_it_worked_and_does_not_print_it(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    server.end_run()
    device.start(once=True).result(PATIENCE_SECONDS)
    header, _ = server.pushed[0]
    assert set(header.metrics) == {"loss", "work_seconds"}
    assert header.metrics["work_seconds"] > 0
    assert "work" not in device.printed


def test_device_trains_on_the_masks_that_it_fetched(
    server: FakeServer, device: ThreadedDevice
) -> None:
    payload = pruned_payload()
    masks = masks_in(payload)
    known = known_masks(masks)
    masks_ref = server.add_blob(masks)
    ref = server.add_blob(payload, known)
    server.offer_run()
    for task_id, kind in ((1, "train"), (2, "evaluate"), (3, "train")):
        server.offer_task(ref, task_id=task_id, kind=kind, masks=blob_to_message(masks_ref))
    server.end_run(keep=ref, masks=masks_ref)
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    fetched = [request.digest for request in server.of("FetchBlob")]
    assert sorted(fetched) == sorted([masks_ref.digest, ref.digest]), "each of them once"
    _, data = server.pushed[0]
    with pytest.raises(InvalidPayload, match="which is not here"):
        decode(bytearray(data))
    delta = weight_group(decode(bytearray(data), known=known), "delta")
    assert masks_of(delta) == masks["parameters"]
    assert all(item.values.any() for item in delta.values() if isinstance(item, SparseTensor))
    kept = load_weights(device.folder.model)
    assert masks_of(kept) == masks["parameters"]


def test_round_that_closed_is_one_line_and_the_device_goes_on(
    server: FakeServer, device: ThreadedDevice
) -> None:
    ref = server.add_blob(model_payload())
    server.errors["PushUpdate"] = [RoundClosed("round 1 is over")]
    server.offer_run()
    server.offer_task(ref)
    server.offer_task(ref, task_id=12, round_number=2)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert device.printed.count("round 1  round 1 is over\n") == 1
    assert device.refusals.asked == 0, "the next round waits for nobody"
    assert [header.task_id for header, _ in server.pushed] == [12]


@pytest.mark.parametrize(
    ("method", "error"),
    [("PushUpdate", UpdateRefused("no")), ("FetchBlob", UnknownBlob("no such blob"))],
)
def test_refused_task_does_not_end_the_device(
    server: FakeServer, device: ThreadedDevice, method: str, error: CoppiceError
) -> None:
    ref = server.add_blob(model_payload())
    server.errors[method] = [error]
    server.offer_run()
    server.offer_task(ref)
    server.offer_task(ref, task_id=12)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert [header.task_id for header, _ in server.pushed] == [12]
    assert device.refusals.asked == 1, "a server that goes on refusing must not be hammered"


class Private(ClientHalf):
    """Counts its receipted tasks in its private state, except round 2, and sends the count."""

    def run(self, task: Task, local: Local) -> Update:
        before = local.private.read(dict[str, int]) or {"count": 0}
        if task.round_number != 2:
            local.private.stage({"count": before["count"] + 1})
        return Update(local.client_id, {}, before["count"])

    def evaluate(self, task: Task, local: Local) -> dict[str, float]:
        return {}

    def model(self, task: Task, local: Local) -> None:
        """There is none."""


@pytest.mark.parametrize("error", [RoundClosed("closed"), UpdateRefused("refused")])
def test_private_state_counts_receipted_tasks_only(
    server: FakeServer,
    device: ThreadedDevice,
    monkeypatch: pytest.MonkeyPatch,
    error: CoppiceError,
) -> None:
    monkeypatch.setattr("edge_client.ready.client_half", lambda spec: Private())
    ref = server.add_blob(model_payload())
    server.offer_run()
    for number in (1, 2, 3, 4):
        server.offer_task(ref, task_id=number, round_number=number)
    server.end_run()
    gate = server.gate("PushUpdate")
    life = device.start(once=True)
    assert gate.reached.wait(PATIENCE_SECONDS)
    server.errors["PushUpdate"] = [error]
    gate.opened.set()
    assert life.result(PATIENCE_SECONDS) == 0
    seen = [request.num_examples for request in server.of("PushUpdate")]
    assert seen == [0, 0, 0, 1]
    assert list(device.folder.private.iterdir()) == [], "the run is over, its state is not"


def test_device_that_is_not_known_joins_again(server: FakeServer, device: ThreadedDevice) -> None:
    ref = server.add_blob(model_payload())
    server.errors["PollTask"] = [NotJoined()]
    server.errors["PushUpdate"] = [NotJoined()]
    server.offer_run()
    server.offer_task(ref)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert len(server.of("Join")) == 3
    # What was trained is sent again, not trained again.
    pushes = server.of("PushUpdate")
    assert len(pushes) == 2
    assert pushes[0].blob == pushes[1].blob


def test_busy_server_gets_the_update_later(server: FakeServer, device: ThreadedDevice) -> None:
    ref = server.add_blob(model_payload())
    server.errors["PushUpdate"] = [ServerBusy("busy"), ServerBusy("busy")]
    server.offer_run()
    server.offer_task(ref)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert len(server.pushed) == 1
    tags = [line.split()[0] for line in device.printed.splitlines()]
    assert tags == ["joined", "run", "data", "lost", "back", "round", "over", "model", "left"]


def test_restarted_server_is_found_again(
    server: FakeServer, device: ThreadedDevice, data: Path
) -> None:
    server.offer_run()
    life = device.start(once=True)
    server.wait_for("PollTask", 2)
    server.stop()
    again = FakeServer(server.port)
    try:
        ref = again.add_blob(model_payload())
        again.errors["PollTask"] = [NotJoined()]
        again.offer_task(ref)
        again.end_run()
        assert life.result(PATIENCE_SECONDS) == 0
        assert len(again.pushed) == 1
        assert again.of("PollTask")[0].run_key == run_key(1), (
            "the data were loaded again for nothing"
        )
    finally:
        again.stop()


def test_unwanted_task_is_abandoned(
    server: FakeServer, device: ThreadedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_until_told(ready: ReadyRun, task: Task, local: Local) -> Update:
        for _ in range(10**9):
            local.meter.step_done()
            threading.Event().wait(0.001)
        raise AssertionError

    monkeypatch.setattr(ReadyRun, "answer", run_until_told)
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    life = device.start()
    while server.wait_for("Heartbeat", len(server.of("Heartbeat")) + 1).task_id != 11:
        pass
    server.wanted = False
    server.wait_for("PollTask", 3)
    assert "no longer wants" in device.printed
    assert not life.done()
    device.end()
    assert server.pushed == []


@pytest.mark.parametrize("reason", ["", "three rounds without a quorum"])
def test_failed_run_gives_exit_code_1(
    server: FakeServer, device: ThreadedDevice, reason: str
) -> None:
    server.offer_run()
    server.end_run(state="failed", reason=reason)
    assert device.start(once=True).result(PATIENCE_SECONDS) == 1
    assert f"over     tiny failed{': ' if reason else ''}{reason}\n" in device.printed


def test_device_waits_for_the_next_run(server: FakeServer, device: ThreadedDevice) -> None:
    server.offer_run()
    server.end_run()
    device.start()
    assert server.wait_for("PollTask", 3).run_key == ""
    server.offer_run(run_id=2)
    assert server.wait_for("PollTask", 4).run_key == run_key(2)


def test_private_state_of_a_run_goes_when_another_run_takes_its_place(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    device.start()
    server.wait_for("PollTask", 2)
    private = device.folder.private / f"{run_key(1)}-fedavg"
    private.mkdir(parents=True)
    server.offer_run(run_id=2)
    server.wait_for("PollTask", 3)
    assert not private.exists()


def test_data_that_do_not_fit_end_the_device_and_the_server_hears_why(
    server: FakeServer, device: ThreadedDevice, tmp_path: Path
) -> None:
    text = tmp_path / "data.npz"
    text.write_text("not an archive")
    server.offer_run()
    with pytest.raises(DataError):
        device.start(data=text).result(PATIENCE_SECONDS)
    assert "not a whole .npz file" in server.of("Leave")[0].reason


def test_missing_app_ends_the_device_and_the_server_hears_why(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run(app_workload(b"source"))
    with pytest.raises(AppMismatch, match="--app"):
        device.start().result(PATIENCE_SECONDS)
    assert "own_app.py" in server.of("Leave")[0].reason


def test_task_of_a_run_that_was_not_offered_is_an_error(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()), run_id=2)
    with pytest.raises(InvalidMessage, match="run 2"):
        device.start().result(PATIENCE_SECONDS)


def test_terms_are_answered_with_the_next_polls_until_there_is_a_task(
    server: FakeServer, device: ThreadedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choosing(Private):
        def choose(self, terms: Payload, local: Local) -> dict[str, object]:
            draw = int(torch.randint(1000, (), generator=local.generator))
            return {"layers": list(terms), "draw": draw}

    monkeypatch.setattr("edge_client.ready.client_half", lambda spec: Choosing())
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.reply(terms=pb.TermsOffer(round_number=4, payload=blob_to_message(ref)))
    server.reply(wait=pb.Wait())
    server.offer_task(ref, round_number=4)
    server.end_run()
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    choices = [poll.choice if poll.HasField("choice") else None for poll in server.of("PollTask")]
    assert choices[:2] == [None, None]
    assert choices[2] == choices[3]
    assert choices[2] is not None
    assert choices[2].round_number == 4
    assert '"layers": ["parameters"' in choices[2].values_json
    assert choices[4] is None


def test_newest_model_is_saved_at_the_goodbye(server: FakeServer, device: ThreadedDevice) -> None:
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()), round_number=6)
    life = device.start()
    server.wait_for("PollTask", 3)
    gate = server.gate("Leave")
    device.stop.request()
    assert gate.reached.wait(PATIENCE_SECONDS)
    assert not device.folder.model.exists(), "the goodbye comes first: writing may take long"
    gate.opened.set()
    with pytest.raises(Stopped):
        life.result(PATIENCE_SECONDS)
    assert read_info(device.folder.model).round_number == 6
    assert len(server.of("Leave")) == 1


def test_model_of_a_stopped_run_without_one_to_keep_is_the_last_received(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()), round_number=3)
    server.end_run(state="stopped")
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0
    assert read_info(device.folder.model).round_number == 3
