"""The command line's calls: what comes back, and one line for whatever may answer instead."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from coppice.errors import CoppiceError, InvalidMessage, RunFileError, ServerUnreachable, UnknownRun
from server.api_client import ApiClient, Where, find_server

PATIENCE_SECONDS = 20.0


class Web:
    """Answers each request with a status and a body, and remembers it."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"[]"
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                web.requests.append((self.command, self.path, dict(self.headers), body))
                self.send_response(web.status)
                self.send_header("Content-Length", str(len(web.body)))
                self.end_headers()
                self.wfile.write(web.body)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_SECONDS)
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    served = Web()
    yield served
    served.close()


@pytest.fixture
def raw() -> Iterator[Callable[[bytes], str]]:
    """Starts a port that sends these bytes to whoever asks, and hangs up; gives its URL."""
    listeners, threads = [], []

    def serve(data: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            line, _ = listener.accept()
            with line:
                line.recv(65536)
                line.sendall(data)

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    for listener in listeners:
        listener.close()


def test_get_asks_below_api(web: Web) -> None:
    web.body = b'[{"run_id": 1}]'
    assert ApiClient(web.url).get("/runs") == [{"run_id": 1}]
    assert web.requests[0][:2] == ("GET", "/api/runs")


@pytest.mark.parametrize("trim", [lambda url: url + "/", lambda url: url.removeprefix("http://")])
def test_address_may_be_given_as_people_do(web: Web, trim: Callable[[str], str]) -> None:
    assert ApiClient(trim(web.url)).get("/runs") == []


def test_post_sends_json(web: Web) -> None:
    web.body = b""
    assert ApiClient(web.url).post("/runs", {"toml": "é"}) is None
    method, path, headers, body = web.requests[0]
    assert (method, path) == ("POST", "/api/runs")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"toml": "é"}


@pytest.mark.parametrize("kind", [RunFileError, UnknownRun])
def test_error_of_the_server_is_raised_here(web: Web, kind: type[CoppiceError]) -> None:
    web.status = 422
    web.body = json.dumps({"error": kind.__name__, "message": "seed: is 'x'"}).encode()
    with pytest.raises(kind, match=r"^seed: is 'x'$") as caught:
        ApiClient(web.url).get("/runs")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"error": "UnknownRun"}',
        b'{"error": "annotations", "message": "x"}',
        b'{"error": "__doc__", "message": "x"}',
        b'{"error": 7, "message": "x"}',
        b"\xff",
    ],
)
def test_error_of_something_else_is_one_line(web: Web, body: bytes) -> None:
    web.status, web.body = 502, body
    with pytest.raises(ServerUnreachable, match=r"^the server answered 502 Bad Gateway$"):
        ApiClient(web.url).get("/runs")


@pytest.mark.parametrize("body", [b"<html></html>", b"\xff\xfe"])
def test_page_of_another_program_is_no_dashboard(web: Web, body: bytes) -> None:
    web.body = body
    with pytest.raises(ServerUnreachable, match=f"^{web.url} does not answer as a Coppice"):
        ApiClient(web.url).get("/runs")


@pytest.mark.parametrize(
    "data",
    [
        # The first frame of HTTP/2: what the port for devices says.
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: [",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\n[",
        b"",
    ],
    ids=["gRPC", "broken off", "error broken off", "nothing"],
)
@pytest.mark.parametrize(
    "ask", [lambda api: api.get("/runs"), lambda api: list(api.events())], ids=["get", "events"]
)
def test_broken_answer_is_one_line(
    raw: Callable[[bytes], str], data: bytes, ask: Callable[[ApiClient], Any]
) -> None:
    with pytest.raises(ServerUnreachable) as caught:
        ask(ApiClient(raw(data)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "http://", "http://[::1", "http://127.0.0.1:x", "http://no such host", "ftp://x.invalid"],
)
def test_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="--server"):
        ApiClient(url).get("/runs")


def test_no_server_tells_how_to_start_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerUnreachable) as caught:
        ApiClient(f"http://127.0.0.1:{port}").get("/runs")
    assert str(caught.value) == (
        f"no server at http://127.0.0.1:{port} ([Errno 111] Connection refused): "
        "start one with 'fedserver start', or name it with --server URL"
    )


class TestEvents:
    def test_come_as_they_are_sent_and_end_with_the_server(self, web: Web) -> None:
        web.body = b': ping\n\nevent: x\ndata: {"kind": "x"}\n\ndata:{"kind": "y"}\n\n'
        events = list(ApiClient(web.url).events())
        assert events == [{"kind": "x"}, {"kind": "y"}]
        assert web.requests[0][1] == "/api/events"

    def test_that_are_none_are_one_line(self, web: Web) -> None:
        web.body = b"data: nonsense\n\n"
        with pytest.raises(ServerUnreachable, match="does not answer"):
            list(ApiClient(web.url).events())

    def test_server_that_dies_in_mid_stream_is_one_line(self, raw: Callable[[bytes], str]) -> None:
        url = raw(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'10\r\ndata: {"a": 1}\n\n\r\n10\r\nda'
        )
        events = ApiClient(url).events()
        assert next(events) == {"a": 1}
        with pytest.raises(ServerUnreachable):
            next(events)


class TestToken:
    def test_is_shown_with_every_call(self, web: Web) -> None:
        ApiClient(Where(web.url, "coppice-api-x")).get("/runs")
        assert web.requests[0][2]["Authorization"] == "Bearer coppice-api-x"
        ApiClient(web.url).get("/runs")
        assert "Authorization" not in web.requests[1][2]

    def test_never_travels_in_clear(self) -> None:
        with pytest.raises(InvalidMessage, match="in clear: write https://"):
            ApiClient(Where("http://10.0.0.7:7480", "coppice-api-x"))
        ApiClient(Where("https://10.0.0.7:7480", "coppice-api-x"))

    def test_is_not_passed_on_to_where_a_server_sends(
        self, web: Web, raw: Callable[[bytes], str]
    ) -> None:
        answer = f"HTTP/1.1 307 Go\r\nLocation: {web.url}/api/runs\r\nContent-Length: 0\r\n\r\n"
        with pytest.raises(ServerUnreachable, match="307"):
            ApiClient(Where(raw(answer.encode()), "coppice-api-x")).get("/runs")
        assert web.requests == []

    def test_with_unknown_authority_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        for file in ("ca.pem", "none.pem"):
            with pytest.raises(InvalidMessage, match="cannot read the certificate"):
                ApiClient(Where("https://127.0.0.1", "x", tmp_path / file))


class TestFindServer:
    def test_given_one_wins(self, tmp_path: Path) -> None:
        (tmp_path / "server.json").write_text('{"dashboard": "http://file"}')
        assert find_server("http://given", tmp_path) == Where("http://given")

    def test_server_of_the_data_folder_is_next(self, tmp_path: Path) -> None:
        (tmp_path / "server.json").write_text('{"dashboard": "http://file"}')
        assert find_server(None, tmp_path) == Where("http://file")

    @pytest.mark.parametrize("content", [None, "", "[]", "{}", "7", "null", "{"])
    def test_usual_one_is_the_last(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "server.json").write_text(content)
        assert find_server(None, tmp_path) == Where("http://127.0.0.1:7480")

    def test_token_and_authority_of_the_folder_are_for_its_server_alone(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "server.json").write_text('{"dashboard": "https://file"}')
        (tmp_path / "operator.token").write_text("coppice-api-x\n")
        authority = tmp_path / "authority" / "ca.pem"
        authority.parent.mkdir()
        authority.touch()
        assert find_server(None, tmp_path) == Where("https://file", "coppice-api-x", authority)
        assert find_server("https://file", tmp_path).token == "coppice-api-x"
        assert find_server("https://other", tmp_path) == Where("https://other")

    def test_named_files_win(self, tmp_path: Path) -> None:
        (tmp_path / "operator.token").write_text("coppice-api-x")
        (tmp_path / "other").write_text("coppice-api-y")
        found = find_server("https://other", tmp_path, tmp_path / "other", tmp_path / "ca")
        assert found == Where("https://other", "coppice-api-y", tmp_path / "ca")

    @pytest.mark.parametrize("content", [None, b"", b"a b", b"\xff", b"a\nb", "é".encode()])
    def test_file_without_a_token_is_named(self, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "token"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InvalidMessage, match=str(file)):
            find_server(None, tmp_path, file)
