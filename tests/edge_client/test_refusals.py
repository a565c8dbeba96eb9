"""What a device says of its refused updates: each once, over restarts too."""

from __future__ import annotations

from typing import Any

from coppice.errors import UpdateRefused
from coppice.wire import coordination_pb2 as pb
from edge_client.refusals import Refusals
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import PATIENCE_SECONDS, FakeServer, model_payload, run_key


def refusal(number: int, **fields: Any) -> pb.Refusal:
    values: dict[str, Any] = {
        "task_id": 10 + number,
        "round_number": number,
        "reason": f"reason {number}",
    }
    return pb.Refusal(refusal_id=number, strikes=number, strikes_allowed=3, **(values | fields))


def wait(*refusals: pb.Refusal) -> dict[str, Any]:
    """A poll's answer with nothing to do but to listen."""
    return {"wait": pb.Wait(), "refusals": refusals}


def test_each_refusal_is_said_once_and_acknowledged(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    server.reply(**wait(refusal(1)))
    # A server that has not heard of it yet says it again.
    server.reply(**wait(refusal(1), refusal(2)))
    server.reply(**wait())
    server.end_run()
    device.start(once=True).result(PATIENCE_SECONDS)
    assert device.printed.count("reason 1; strike 1 of 3") == 1
    assert device.printed.count("reason 2; strike 2 of 3") == 1
    assert [poll.refusal_seen for poll in server.of("PollTask")] == [0, 0, 1, 2, 2]


def test_what_the_push_was_answered_is_not_said_again(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.errors["PushUpdate"] = [UpdateRefused("it is too large")]
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()), task_id=11)
    server.reply(**wait(refusal(1, task_id=11, reason="it is too large")))
    server.end_run()
    device.start(once=True).result(PATIENCE_SECONDS)
    assert device.printed.count("it is too large") == 1
    assert "the update was refused; strike 1 of 3" in device.printed


def test_a_device_that_is_left_out_says_so(server: FakeServer, device: ThreadedDevice) -> None:
    server.offer_run()
    server.reply(**wait(refusal(3, left_out=True)))
    server.end_run()
    device.start(once=True).result(PATIENCE_SECONDS)
    assert "reason 3; after 3 of them this device is left out of the run" in device.printed


def test_a_client_that_starts_again_does_not_repeat_itself(device: ThreadedDevice) -> None:
    for _ in range(2):
        Refusals(device.folder.refusals, device.journal).tell(run_key(1), [refusal(1)])
    assert device.printed.count("reason 1") == 1
    again = Refusals(device.folder.refusals, device.journal)
    assert (again.seen(run_key(1)), again.seen(run_key(2))) == (1, 0)


def test_another_run_begins_anew(server: FakeServer, device: ThreadedDevice) -> None:
    server.offer_run()
    server.reply(**wait(refusal(5)))
    server.end_run()
    server.offer_run(run_id=2)
    server.reply(**wait(refusal(1)))
    device.start()
    polls = server.wait_for("PollTask", 6) and server.of("PollTask")
    assert [poll.refusal_seen for poll in polls] == [0, 0, 5, 0, 0, 1]
    assert "reason 1" in device.printed


def test_a_damaged_memory_of_them_is_none(server: FakeServer, device: ThreadedDevice) -> None:
    device.folder.refusals.write_text("{")
    assert Refusals(device.folder.refusals, device.journal).seen(run_key(1)) == 0
    server.offer_run()
    server.reply(**wait(refusal(1, reason="bad\x1b[31m words")))
    server.end_run()
    device.start(once=True).result(PATIENCE_SECONDS)
    assert "bad [31m words" in device.printed
