"""Who is slow, silent or too many is sent away by a real server, which serves others meanwhile."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import pytest

from benchmarks.fleet import Fleet, Server
from benchmarks.program import PATIENCE_SECONDS, until
from coppice.errors import ServerBusy
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import STREAM_OPTIONS
from coppice.wire.status import RETRY_KEY
from tests.integration.caller import Caller, Refused
from tests.integration.runs import run_file

CONNECTIONS, CALLS, PAGES, STALL_SECONDS = 30, 3, 8, 1
FLAGS = (
    "--connections", CONNECTIONS, "--client-calls", CALLS, "--dashboard-connections", PAGES,
    "--stall-seconds", STALL_SECONDS,
)  # fmt: skip
#: More bytes than a stream has on its way.
LARGE = '{ name = "mlp", hidden = [4096, 64] }'
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
PING = bytes.fromhex("0000080600000000000000000000000000")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Fleet(tmp_path_factory.mktemp("slow"), flags=FLAGS) as fleet:
        yield fleet.server


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = (*FLAGS, "--dashboard-tls", "true")
    with Fleet(tmp_path_factory.mktemp("secure"), secure=True, flags=flags) as fleet:
        yield fleet.server


@pytest.fixture
def device(server: Server) -> Iterator[Caller]:
    caller = Caller(server.address, "pi-1")
    caller.join()
    yield caller
    caller.close()


def connected(address: str, source: str = "127.0.0.1") -> socket.socket:
    host, _, port = address.rpartition(":")
    where = (host, int(port))
    return socket.create_connection(where, PATIENCE_SECONDS, source_address=(source, 0))


def ends(line: socket.socket) -> bool:
    """Whether the server closes the connection, whatever it says before."""
    try:
        while line.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def is_open(line: socket.socket) -> bool:
    """Whether the server has not closed the connection yet."""
    line.setblocking(False)
    try:
        while line.recv(65536):
            pass
    except BlockingIOError:
        return True
    return False


def held(server: Server) -> tuple[int, int]:
    """Open files and threads of the server."""
    process = psutil.Process(server.program.process.pid)
    return process.num_fds(), process.num_threads()


def reads(server: Server, digest: str) -> bool:
    """Whether the server has this blob open."""
    files = psutil.Process(server.program.process.pid).open_files()
    return any(file.path.endswith(digest) for file in files)


def test_handshake_that_does_not_go_on_is_ended(secure: Server, tmp_path: Path) -> None:
    secure.api.get("/status")
    before = held(secure)
    with ExitStack() as stack:
        lines = []
        page = urlsplit(secure.url).netloc
        for address, count in (
            (secure.address, CONNECTIONS // 2),
            (str(secure._enrolment), CONNECTIONS // 2),
            (page, PAGES // 4),
        ):
            for number in range(count):
                line = stack.enter_context(connected(address))
                # Some say nothing, the others half of a first message.
                line.sendall(number % 2 * HALF_HELLO)
                lines.append(line)
        # Meanwhile a device is let in as ever, at both ports.
        fleet = Fleet(tmp_path)
        fleet.server = secure
        data = Path(__file__).parents[2] / "deploy" / "demo" / "digits.npz"
        name = "pi-new"
        with ExitStack() as started:
            started.callback(fleet.join(name, data).close)
            secure.wait_for("client_joined", client_id=name)
            assert all(map(ends, lines))
    until(lambda: held(secure)[0] <= before[0], "the files are closed")
    assert held(secure)[1] <= before[1] + 2


def test_request_that_does_not_go_on_is_ended(server: Server) -> None:
    address = urlsplit(server.url).netloc
    with ExitStack() as stack:
        lines = []
        for said in (b"", b"GET /api/status HTT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "):
            lines.append(stack.enter_context(connected(address, "127.0.0.2")))
            lines[-1].sendall(said)
        assert server.status()["phase"]
        assert all(map(ends, lines))


def test_address_has_half_of_the_page_s_connections(server: Server) -> None:
    address = urlsplit(server.url).netloc
    with ExitStack() as stack:
        lines = [stack.enter_context(connected(address, "127.0.0.2")) for _ in range(PAGES // 2)]
        late = stack.enter_context(connected(address, "127.0.0.2"))
        answer = late.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: " in answer
        assert b"too many connections" in answer
        # That is nothing to others.
        assert server.status()["phase"]
        lines[0].sendall(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert lines[0].recv(100).startswith(b"HTTP/1.1 200")


def test_page_has_so_many_connections_and_no_more(server: Server) -> None:
    address = urlsplit(server.url).netloc
    with ExitStack() as stack:
        for source in range(2, 2 + PAGES):
            stack.enter_context(connected(address, f"127.0.0.{source}"))
        late = stack.enter_context(connected(address, "127.0.1.1"))
        assert late.makefile("rb").read().startswith(b"HTTP/1.1 503")
    until(lambda: answers(server), "the page answers again")


def answers(server: Server) -> bool:
    try:
        return bool(server.status()["phase"])
    except ServerBusy:
        return False


def test_port_has_so_many_connections_and_no_more(server: Server) -> None:
    with ExitStack() as stack:
        lines = [stack.enter_context(connected(server.address)) for _ in range(CONNECTIONS)]
        late = stack.enter_context(connected(server.address))
        assert ends(late)
        # Who came before is not closed before its time for a handshake is over.
        assert is_open(lines[0])
    until(lambda: joins(server), "others come in again")


def joins(server: Server) -> bool:
    caller = Caller(server.address, "pi-7")
    try:
        caller.join()
    except Refused:
        return False
    finally:
        caller.close()
    return True


def test_who_pings_all_the_time_is_sent_away(server: Server) -> None:
    with connected(server.address) as line:
        line.sendall(PREFACE + 50 * PING)
        said = bytearray()
        while data := line.recv(65536):
            said += data
    assert b"too_many_pings" in said


def test_upload_that_says_nothing_is_ended(server: Server, device: Caller) -> None:
    over = threading.Event()

    def silent() -> Iterator[pb.PushChunk]:
        over.wait(PATIENCE_SECONDS)
        yield pb.PushChunk()

    make: Any = device._channel.stream_unary("/coppice.wire.Coordination/PushUpdate", _bytes, None)
    with pytest.raises(grpc.RpcError) as caught:
        make(silent(), metadata=device._metadata, timeout=PATIENCE_SECONDS)
    over.set()
    refused = Refused(caught.value)
    assert refused.error == "TransferBroken"
    assert "nothing came for 1 s" in refused.details


def test_download_that_nobody_reads_is_ended(server: Server, device: Caller) -> None:
    run_id = server.submit(run_file(model=LARGE, cohort="{ size = 1 }"))
    task = device.take_task()
    assert task.payload.size_bytes > 2**22
    channel = grpc.insecure_channel(server.address, options=STREAM_OPTIONS)
    make: Any = channel.unary_stream("/coppice.wire.Coordination/FetchBlob", _bytes, None)
    request = pb.FetchRequest(digest=task.payload.digest)
    stream = make(request, metadata=device._metadata, timeout=PATIENCE_SECONDS)
    next(stream)
    assert reads(server, task.payload.digest)
    until(lambda: not reads(server, task.payload.digest), "the blob is closed")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert Refused(caught.value).error == "TransferBroken"
    assert len(device.fetch(task.payload.digest)) == task.payload.size_bytes
    channel.close()
    device.call("Leave", b"")
    server.api.post(f"/runs/{run_id}/stop", {})


def test_device_has_so_many_calls_and_no_more(server: Server, device: Caller) -> None:
    over = threading.Event()

    def silent() -> Iterator[pb.PushChunk]:
        over.wait(PATIENCE_SECONDS)
        yield pb.PushChunk()

    make: Any = device._channel.stream_unary("/coppice.wire.Coordination/PushUpdate", _bytes, None)
    calls = [make.future(silent(), metadata=device._metadata) for _ in range(CALLS)]

    def refusal() -> Any:
        beat: Any = device._channel.unary_unary("/coppice.wire.Coordination/Heartbeat", None, None)
        try:
            beat(b"", metadata=device._metadata, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            return error
        return None

    error = until(refusal, "there is no place for another call")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 2000 <= int(dict(error.trailing_metadata())[RETRY_KEY]) <= 4000
    # Another device is not concerned.
    assert joins(server)
    for call in calls:
        with pytest.raises(grpc.RpcError):
            call.result()
    over.set()
    device.call("Heartbeat", b"")


def test_only_the_server_s_user_reads_what_it_keeps(server: Server) -> None:
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (server.data, *server.data.iterdir())
    }
    for name in (server.data.name, "blobs", "models", "apps"):
        assert modes[name] == 0o700, name
    for name in ("coppice.sqlite", "coppice.sqlite-wal", "coppice.sqlite-shm", "receipts.key"):
        assert modes[name] == 0o600, name


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
