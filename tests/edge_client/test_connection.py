"""The calls: who calls, what failures mean, transfers whole or not at all, cancelled when asked."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from coppice.domain import BlobRef
from coppice.errors import (
    InvalidMessage,
    NameTaken,
    RoundClosed,
    ServerUnreachable,
    TransferBroken,
)
from coppice.tensors import dense_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import FIRST_CHUNK_BYTES
from coppice.wire.payload import decode
from edge_client.connection import Connection, transfer_seconds
from edge_client.progress import STALLED_SECONDS, Progress
from edge_client.stop import Stop, Stopped
from tests.edge_client.fake_server import PATIENCE_SECONDS, FakeServer, model_payload

BIG = {"parameters": {"w": torch.arange(700_000, dtype=torch.float32)}}


@dataclass(frozen=True)
class Sent:
    num_examples: int = 30
    steps: int = 5
    metrics: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def connection(server: FakeServer, stop: Stop) -> Iterator[Connection]:
    opened = Connection(server.address, "kitchen", stop)
    yield opened
    opened.close()


def test_every_call_names_the_caller(server: FakeServer, connection: Connection) -> None:
    ref = server.add_blob(model_payload())
    connection.join(pb.JoinRequest(protocol_version=1))
    connection.fetch(ref)
    connection.push(1, Sent(), bytearray(b"update"))
    connection.heartbeat(pb.HeartbeatRequest())
    connection.leave()
    assert {call.client_id for call in server.calls} == {"kitchen"}
    assert [call.method for call in server.calls] == [
        "Join",
        "FetchBlob",
        "PushUpdate",
        "Heartbeat",
        "Leave",
    ]


@pytest.mark.parametrize("error", [NameTaken("taken"), RoundClosed("closed"), InvalidMessage("no")])
def test_errors_of_the_server_are_rebuilt(
    server: FakeServer, connection: Connection, error: NameTaken
) -> None:
    server.errors["Join"] = [error]
    with pytest.raises(type(error), match=f"^{error}$"):
        connection.join(pb.JoinRequest())


def test_fetched_blob_is_the_one_that_was_stored(
    server: FakeServer, connection: Connection
) -> None:
    ref = server.add_blob(BIG)
    data = connection.fetch(ref)
    assert torch.equal(dense_group(decode(data), "parameters")["w"], BIG["parameters"]["w"])
    assert connection.bytes_down == ref.size_bytes == len(data)


def test_blob_that_arrives_damaged_is_fetched_again(
    server: FakeServer, connection: Connection
) -> None:
    ref = server.add_blob(model_payload())
    server.damage[ref.digest] = 1
    assert len(connection.fetch(ref)) == ref.size_bytes
    assert len(server.of("FetchBlob")) == 2


def test_blob_that_arrives_damaged_twice_is_an_error(
    server: FakeServer, connection: Connection
) -> None:
    ref = server.add_blob(model_payload())
    server.damage[ref.digest] = 2
    with pytest.raises(TransferBroken, match="damaged"):
        connection.fetch(ref)
    assert len(server.of("FetchBlob")) == 2


def test_blob_longer_than_announced_is_an_error(server: FakeServer, connection: Connection) -> None:
    ref = server.add_blob(model_payload())
    with pytest.raises(TransferBroken, match="longer"):
        connection.fetch(BlobRef(ref.digest, ref.size_bytes - 1))


def test_update_arrives_whole_and_is_receipted(server: FakeServer, connection: Connection) -> None:
    data = bytearray(range(256)) * 5000
    receipt = connection.push(3, Sent(metrics={"loss": 0.5}), data)
    header, received = server.pushed[0]
    assert received == data
    assert (header.task_id, header.num_examples, header.steps) == (3, 30, 5)
    assert dict(header.metrics) == {"loss": 0.5}
    assert header.offset == 0
    assert receipt.digest == header.blob.digest
    assert connection.bytes_up == len(data)


def test_metrics_that_are_not_finite_do_not_travel(
    server: FakeServer, connection: Connection
) -> None:
    metrics = {"loss": float("nan"), "norm": float("inf"), "accuracy": 0.5}
    connection.push(3, Sent(metrics=metrics), bytearray(b"x"))
    assert dict(server.pushed[0][0].metrics) == {"accuracy": 0.5}


def test_link_that_became_fast_is_asked_for_larger_chunks(
    server: FakeServer, connection: Connection
) -> None:
    ref = server.add_blob(BIG)
    connection.fetch(ref)
    connection.fetch(ref)
    sizes = [request.chunk_bytes for request in server.of("FetchBlob")]
    assert sizes[0] == FIRST_CHUNK_BYTES
    assert sizes[1] > sizes[0]


def test_link_that_broke_gets_smaller_chunks(server: FakeServer, connection: Connection) -> None:
    server.errors["PushUpdate"] = [ServerUnreachable("gone")]
    with pytest.raises(ServerUnreachable):
        connection.push(3, Sent(), bytearray(b"x"))
    assert connection._up.size_bytes == FIRST_CHUNK_BYTES // 2
    server.errors["FetchBlob"] = [ServerUnreachable("gone")]
    with pytest.raises(ServerUnreachable):
        connection.fetch(server.add_blob(BIG))
    assert connection._down.size_bytes == FIRST_CHUNK_BYTES // 2


@pytest.mark.parametrize("method", ["FetchBlob", "PushUpdate"])
def test_transfer_in_which_nothing_moves_is_over(
    server: FakeServer, connection: Connection, method: str
) -> None:
    clock = [0.0]
    connection.progress = Progress(lambda: clock[0])
    ref = server.add_blob(model_payload())
    calls: dict[str, Callable[[], object]] = {
        "FetchBlob": lambda: connection.fetch(ref),
        "PushUpdate": lambda: connection.push(1, Sent(), bytearray(2**22)),
    }
    gate = server.gate(method)

    def watch() -> None:
        assert gate.reached.wait(PATIENCE_SECONDS)
        connection.progress.check()
        clock[0] += STALLED_SECONDS + 1
        connection.progress.check()

    watching = threading.Thread(target=watch)
    watching.start()
    with pytest.raises(ServerUnreachable, match="nothing has moved on the connection to"):
        calls[method]()
    watching.join()


def test_deadline_of_a_transfer_grows_with_its_size() -> None:
    assert transfer_seconds(0) == 300
    # A link of 1 KiB/s needs half of that.
    assert transfer_seconds(100 * 2**20) > 2 * 100 * 2**10


@pytest.mark.parametrize("method", ["PollTask", "FetchBlob", "PushUpdate"])
def test_request_to_stop_cancels_the_call(
    server: FakeServer, connection: Connection, stop: Stop, method: str
) -> None:
    ref = server.add_blob(model_payload())
    calls: dict[str, Callable[[], object]] = {
        "PollTask": lambda: connection.poll(pb.PollRequest()),
        "FetchBlob": lambda: connection.fetch(ref),
        "PushUpdate": lambda: connection.push(1, Sent(), bytearray(2**22)),
    }
    gate = server.gate(method)

    def ask() -> None:
        assert gate.reached.wait(PATIENCE_SECONDS)
        stop.request()

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Stopped):
        calls[method]()
    asking.join()
    assert gate.opened.wait(PATIENCE_SECONDS), "the server was not told that the call is cancelled"
    assert not gate.expired


def test_goodbye_is_said_after_a_request_to_stop(
    server: FakeServer, connection: Connection, stop: Stop
) -> None:
    stop.request()
    connection.leave("the data are gone" + "!" * 1000)
    assert len(server.of("Leave")[0].reason) == 500


def test_heartbeat_opens_no_connection(server: FakeServer, connection: Connection) -> None:
    assert connection.heartbeat(pb.HeartbeatRequest()) is None
    connection.join(pb.JoinRequest())
    assert connection.heartbeat(pb.HeartbeatRequest()) is not None
    connection.close()
    assert connection.heartbeat(pb.HeartbeatRequest()) is None


def test_closing_lets_a_heartbeat_go(server: FakeServer, connection: Connection) -> None:
    connection.join(pb.JoinRequest())
    gate = server.gate("Heartbeat")
    failures: list[type[BaseException]] = []

    def beat() -> None:
        try:
            connection.heartbeat(pb.HeartbeatRequest())
        except ServerUnreachable as error:
            failures.append(type(error))

    beating = threading.Thread(target=beat)
    beating.start()
    assert gate.reached.wait(PATIENCE_SECONDS)
    connection.close()
    beating.join(PATIENCE_SECONDS)
    assert failures == [ServerUnreachable]


def test_closed_connection_opens_again(server: FakeServer, connection: Connection) -> None:
    connection.join(pb.JoinRequest())
    connection.close()
    connection.join(pb.JoinRequest())
    assert len(server.of("Join")) == 2


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_refused_connection_says_what_to_check() -> None:
    address = f"127.0.0.1:{free_port()}"
    connection = Connection(address, "kitchen")
    with pytest.raises(ServerUnreachable, match=f"at {address}; .*refused.*fedserver start"):
        connection.join(pb.JoinRequest())
    connection.close()


def test_unknown_host_says_what_to_check() -> None:
    connection = Connection("no-such-host.invalid:7070", "kitchen")
    with pytest.raises(ServerUnreachable, match="host name is not known"):
        connection.join(pb.JoinRequest())
    connection.close()


class Http10(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


class Http11(Http10):
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        self.request_version = "HTTP/1.1"
        self.requestline = ""
        self.send_error(400)
        return False


@pytest.mark.parametrize("handler", [Http10, Http11])
def test_http_port_gets_a_hint(handler: type[Http10]) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as dashboard:
        threading.Thread(target=dashboard.serve_forever).start()
        connection = Connection(f"127.0.0.1:{dashboard.server_port}", "kitchen")
        with pytest.raises(ServerUnreachable, match="is this the dashboard's port"):
            connection.join(pb.JoinRequest())
        connection.close()
        dashboard.shutdown()


def test_module_needs_no_torch() -> None:
    code = "import sys, edge_client.connection; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
