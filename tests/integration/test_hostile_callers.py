"""What strangers and broken devices send is refused by name and counted; the run goes on."""

from __future__ import annotations

import math
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
import torch

from benchmarks.fleet import Fleet, Server
from coppice.domain import PROTOCOL_VERSION
from coppice.tensors import Payload, dense_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire.payload import encode
from server.records import UpdateRecord
from tests.integration.caller import Caller, Refused, decode, idle_update, push_parts
from tests.integration.runs import run_file

ROUNDS = 200


@dataclass
class Live:
    """A run that two real devices and `mallory` take part in."""

    server: Server
    run_id: int
    mallory: Caller

    def take_task(self) -> tuple[pb.TaskOffer, Payload]:
        """Mallory's task of the open round, which waits for the answer; and what may be sent."""
        task = self.mallory.take_task()
        return task, idle_update(decode(self.mallory.fetch(task.payload.digest)))

    def refused(self, call: Callable[[], object]) -> Refused:
        """How a call is refused, which is counted."""
        before = self.server.status()["refusals"]
        with pytest.raises(Refused) as caught:
            call()
        assert self.server.status()["refusals"] == before + 1
        return caught.value

    def goes_on(self, round_number: int) -> None:
        self.server.wait_for("round_committed", run_id=self.run_id, round_number=round_number)

    def logged(self, text: str, client_id: str | None = "mallory") -> list[str]:
        """Lines of the log about refusals of a client with this text."""
        return [
            event["text"]
            for event in self.server.api.get("/log?newest=true")
            if event["kind"] in ("call_refused", "update_refused")
            and event["client_id"] == client_id
            and text in event["text"]
        ]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path]) -> Iterator[Live]:
    with Fleet(tmp_path_factory.mktemp("live")) as fleet:
        for name in ("pi-1", "pi-2"):
            fleet.join(name, digits[name])
        run_id = fleet.server.submit(
            run_file(
                method='{ name = "fedavg", local_steps = 1 }',
                model='{ name = "mlp", hidden = [32], norm = "batch" }',
                cohort="{ size = 3, quorum = 2, gather_seconds = 60 }",
                stop=f"{{ rounds = {ROUNDS} }}",
                # Mallory is to have another try, and another.
                protection="{ strikes = 0 }",
            )
        )
        mallory = Caller(fleet.server.address, "mallory")
        mallory.join()
        yield Live(fleet.server, run_id, mallory)
        mallory.close()


def renamed(update: Payload) -> Payload:
    delta = dict(update["delta"])
    # As long as before: only the name is wrong.
    delta["output.saib"] = delta.pop("output.bias")
    return {**update, "delta": delta}


def reshaped(update: Payload) -> Payload:
    # As many dimensions and entries as before: only the shape is wrong.
    turned = dense_group(update, "delta")["output.weight"].reshape(32, 10)
    return {**update, "delta": dict(update["delta"]) | {"output.weight": turned}}


def retyped(update: Payload) -> Payload:
    return with_bias(update, bias_of(update).to(torch.int32))


def not_a_number(update: Payload) -> Payload:
    return with_bias(update, bias_of(update) + math.nan)


def infinite(update: Payload) -> Payload:
    return with_bias(update, bias_of(update) - math.inf)


def too_long(update: Payload) -> Payload:
    return {**update, "more": {"weight": torch.zeros(8)}}


def too_short(update: Payload) -> Payload:
    return {"delta": update["delta"]}


def bias_of(update: Payload) -> torch.Tensor:
    return dense_group(update, "delta")["output.bias"]


def with_bias(update: Payload, bias: torch.Tensor) -> Payload:
    return {**update, "delta": dict(update["delta"]) | {"output.bias": bias}}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (renamed, "delta/output.saib was not asked for"),
        (reshaped, "delta/output.weight is float32 [32, 10]; the task expects float32 [10, 32]"),
        (retyped, "delta/output.bias is int32 [10]; the task expects float32 [10]"),
        (not_a_number, "delta/output.bias has values that are not finite"),
        (infinite, "delta/output.bias has values that are not finite"),
        (too_long, "bytes; task "),
        (too_short, "is missing (3 in all)"),
    ],
)
def test_update_that_does_not_fit_its_task_is_refused_and_the_round_closes_without_it(
    live: Live, spoil: Callable[[Payload], Payload], says: str
) -> None:
    task, update = live.take_task()
    parts = push_parts(task.task_id, encode(spoil(update)))
    refused = live.refused(lambda: live.mallory.push(*parts))
    assert refused.error == "UpdateRefused"
    assert says in refused.details
    assert live.logged(says)
    live.goes_on(task.round_number)
    outcomes = {
        row["client_id"]: row["outcome"]
        for row in live.server.ledger(live.run_id)
        if row["round_number"] == task.round_number
    }
    assert outcomes == {"pi-1": "counted", "pi-2": "counted", "mallory": "refused"}

    # A task has one answer, and this was it.
    good = push_parts(task.task_id, encode(update))
    again = live.refused(lambda: live.mallory.push(*good))
    assert (again.error, again.details) == ("UpdateRefused", refused.details)


def other_bytes(data: bytearray) -> bytearray:
    return data[:-1] + bytes([data[-1] ^ 1])


DATA = pb.PushChunk(data=b"0123")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda task, data: push_parts(task, data)[:-1], "TransferBroken"),
        (lambda task, data: [*push_parts(task, data), DATA], "InvalidMessage"),
        (
            lambda task, data: [
                push_parts(task, data)[0],
                *push_parts(task, other_bytes(data))[1:],
            ],
            "TransferBroken",
        ),
        (
            lambda task, data: push_parts(
                task, data, blob=pb.BlobRef(digest="A" * 64, size_bytes=len(data))
            ),
            "InvalidMessage",
        ),
        (lambda task, data: push_parts(task, data)[1:], "InvalidMessage"),
        (lambda task, data: [push_parts(task, data)[0]] * 2, "InvalidMessage"),
        (lambda task, data: push_parts(task, data, offset=8), "TransferBroken"),
        (lambda task, data: push_parts(task, data, metrics={"loss": math.nan}), "InvalidMessage"),
        (lambda task, data: push_parts(task, data, num_examples=2**53), "InvalidMessage"),
        (lambda task, data: [b"\xff\xff\xff"], "InvalidMessage"),
        (lambda task, data: [push_parts(task, data)[0], bytes(3 * 2**20)], "InvalidMessage"),
        (lambda task, data: [], "InvalidMessage"),
    ],
    ids=[
        "data missing",
        "data after the end",
        "digest of other bytes",
        "digest that is none",
        "data before the header",
        "two headers",
        "offset",
        "metric that is not finite",
        "too many examples",
        "no protobuf",
        "message over 2 MiB",
        "nothing",
    ],
)
def test_broken_push_is_refused_and_may_be_repeated(
    live: Live, spoil: Callable[[int, bytearray], list[pb.PushChunk | bytes]], error: str
) -> None:
    task, update = live.take_task()
    data = encode(update)
    assert live.refused(lambda: live.mallory.push(*spoil(task.task_id, data))).error == error

    receipt = live.mallory.push(*push_parts(task.task_id, data))
    assert receipt.task_id == task.task_id
    live.goes_on(task.round_number)


def test_same_update_twice_gets_the_same_receipt_and_is_stored_once(live: Live) -> None:
    task, update = live.take_task()
    parts = push_parts(task.task_id, encode(update))

    def push(_: int) -> list[pb.Receipt]:
        try:
            return [live.mallory.push(*parts)]
        except Refused as refused:
            # A newer transfer ends an older one.
            if refused.error != "TransferBroken":
                raise
            return []

    with ThreadPoolExecutor() as pool:
        receipts = [receipt for found in pool.map(push, range(4)) for receipt in found]
    stored = update_of(live, task.task_id)
    live.goes_on(task.round_number)
    receipts.append(live.mallory.push(*parts))
    assert {receipt.task_id for receipt in receipts} == {task.task_id}
    assert len({receipt.SerializeToString() for receipt in receipts}) == 1
    assert update_of(live, task.task_id) == replace(stored, counted=True)
    lines = live.server.api.get(f"/runs/{live.run_id}/log?newest=true")
    text = f"round {task.round_number}: update of mallory stored"
    assert [line["text"] for line in lines].count(text) == 1


def update_of(live: Live, task_id: int) -> UpdateRecord:
    with live.server.store() as store:
        update = store.update(task_id)
    assert update is not None
    return update


def test_update_for_another_device_s_task_is_refused(live: Live) -> None:
    task, update = live.take_task()
    (other,) = [
        row["task_id"]
        for row in live.server.ledger(live.run_id)
        if row["round_number"] == task.round_number and row["client_id"] == "pi-1"
    ]
    data = encode(update)
    for task_id in (other, 10**9, 2**64 - 1):
        parts = push_parts(task_id, data)
        assert live.refused(lambda: live.mallory.push(*parts)).error == "UnknownTask"  # noqa: B023
    live.mallory.push(*push_parts(task.task_id, data))
    live.goes_on(task.round_number)


@pytest.mark.parametrize(
    ("digest", "offset", "error"),
    [
        ("", 0, "InvalidMessage"),
        ("../../../../etc/passwd", 0, "InvalidMessage"),
        ("A" * 64, 0, "InvalidMessage"),
        ("0" * 64, 0, "UnknownBlob"),
        (None, 10**9, "InvalidMessage"),
        (None, 2**64 - 1, "InvalidMessage"),
    ],
)
def test_fetch_of_what_was_not_offered_is_refused(
    live: Live, digest: str | None, offset: int, error: str
) -> None:
    task, update = live.take_task()
    wanted = task.payload.digest if digest is None else digest
    assert live.refused(lambda: live.mallory.fetch(wanted, offset)).error == error
    assert len(live.mallory.fetch(task.payload.digest, 8)) == task.payload.size_bytes - 8
    live.mallory.push(*push_parts(task.task_id, encode(update)))


def test_update_of_another_device_cannot_be_fetched(live: Live) -> None:
    task, update = live.take_task()
    live.server.wait_for(
        "update_stored", run_id=live.run_id, round_number=task.round_number, client_id="pi-1"
    )
    (digest,) = [
        row["digest"]
        for row in live.server.ledger(live.run_id)
        if row["round_number"] == task.round_number and row["client_id"] == "pi-1"
    ]
    assert live.refused(lambda: live.mallory.fetch(digest)).error == "UnknownBlob"
    live.mallory.push(*push_parts(task.task_id, encode(update)))


def test_kind_of_refusal_is_logged_once_and_counted_always(live: Live) -> None:
    def total() -> int:
        (count,) = [
            client["refusals"]
            for client in live.server.api.get("/clients")
            if client["client_id"] == "mallory"
        ]
        return int(count)

    before = total()
    for _ in range(3):
        assert live.refused(lambda: live.mallory.fetch("1" * 64)).error == "UnknownBlob"
    assert total() == before + 3
    assert len(live.logged("1" * 12)) == 1


@pytest.mark.parametrize("method", ["PollTask", "Heartbeat", "Leave"])
@pytest.mark.parametrize("name", [None, "stranger", "no such/name", "x" * 64])
def test_stranger_is_refused(live: Live, method: str, name: str | None) -> None:
    stranger = Caller(live.server.address, name)
    assert live.refused(lambda: stranger.call(method, b"")).error == "NotJoined"
    stranger.close()
    known = {client["client_id"] for client in live.server.api.get("/clients")}
    assert known == {"pi-1", "pi-2", "mallory"}


def test_join_under_the_name_of_another_device_is_refused(live: Live) -> None:
    impostor = Caller(live.server.address, "pi-1")
    assert live.refused(lambda: impostor.join(device_id="f" * 32)).error == "NameTaken"
    impostor.close()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.JoinRequest(protocol_version=99, device_id="0" * 32), "ProtocolMismatch"),
        (pb.JoinRequest(protocol_version=PROTOCOL_VERSION, device_id="0"), "InvalidMessage"),
        (b"\xff\xff\xff", "InvalidMessage"),
        (bytes(3 * 2**20), "InvalidMessage"),
    ],
    ids=["protocol", "device", "no protobuf", "over 2 MiB"],
)
def test_bad_join_is_refused(live: Live, request_: pb.JoinRequest | bytes, error: str) -> None:
    assert live.refused(lambda: live.mallory.call("Join", request_)).error == error


def test_poll_for_a_run_that_cannot_be_is_refused(live: Live) -> None:
    request = pb.PollRequest(run_key="../1")
    assert live.refused(lambda: live.mallory.call("PollTask", request)).error == "InvalidMessage"


def test_message_that_no_server_would_read_ends_at_the_transport(live: Live) -> None:
    with pytest.raises(Refused) as caught:
        live.mallory.call("Join", bytes(9 * 2**20))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert live.take_task()


def test_garbage_on_the_port_is_ignored(live: Live) -> None:
    host, port = live.server.address.rsplit(":", 1)
    for garbage in (os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(garbage)
    context = ssl.create_default_context()
    refused = pytest.raises((ssl.SSLError, ConnectionError))
    with socket.create_connection((host, int(port)), timeout=10) as line, refused:
        context.wrap_socket(line, server_hostname="localhost")
    task, update = live.take_task()
    live.mallory.push(*push_parts(task.task_id, encode(update)))
    live.goes_on(task.round_number)


def test_goodbye_is_one_line_of_the_log(live: Live) -> None:
    guest = Caller(live.server.address, "guest")
    guest.join()
    guest.call("Leave", pb.LeaveRequest(reason="tired\nround 99 committed\x1b[2J"))
    guest.close()
    event = live.server.wait_for("client_left", client_id="guest")
    assert event["text"].isprintable()


def test_run_goes_on_to_its_end_after_all_this(live: Live) -> None:
    live.mallory.call("Leave", b"")
    live.server.api.post(f"/runs/{live.run_id}/stop", {})
    assert live.server.ended(live.run_id)["state"] == "stopped"
    assert "Traceback" not in live.server.program.printed
