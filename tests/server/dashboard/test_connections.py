"""Connections of the page that say or read nothing are closed, whatever they were at."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn

from server.dashboard import connections
from server.dashboard.connections import PageServer, bounded

PATIENCE_SECONDS = 60.0
SHORT_SECONDS = 0.2
#: More than sockets and buffers hold.
LONG_ANSWER = 64 * 2**20


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setattr(connections, name, SHORT_SECONDS)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request and gives a long answer, or none at all to who has gone."""
    while (message := await receive())["type"] == "http.request":
        if not message["more_body"]:
            break
    else:
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    size = LONG_ANSWER if scope["path"] == "/long" else 10
    await send({"type": "http.response.body", "body": bytes(size)})


@contextlib.asynccontextmanager
async def page() -> AsyncIterator[tuple[PageServer, tuple[str, int]]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=bounded(10), ws="none", lifespan="off", log_level="error")
    server = PageServer(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield server, listener.getsockname()[:2]
    finally:
        server.should_exit = True
        await serving


async def end_of(said: bytes) -> tuple[bytes, int]:
    """What the server answered when it closes the connection, and how many are left."""
    async with asyncio.timeout(PATIENCE_SECONDS), page() as (server, (host, port)):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(said)
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                answer += data
        writer.close()
        return bytes(answer), len(server.server_state.connections)


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\n"])
def test_head_that_does_not_end(said: bytes, short: Callable[[str], None]) -> None:
    short("HEAD_SECONDS")
    assert asyncio.run(end_of(said)) == (b"", 0)


@pytest.mark.parametrize("body", [b"", b"12345"])
def test_body_that_does_not_end(body: bytes, short: Callable[[str], None]) -> None:
    short("BODY_SECONDS")
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    assert asyncio.run(end_of(head + body)) == (b"", 0)


def test_second_request_that_does_not_end(short: Callable[[str], None]) -> None:
    short("HEAD_SECONDS")
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, left = asyncio.run(end_of(whole + b"GET / HTTP/1.1\r\nHo"))
    assert answer.count(b"200 OK") == 1
    assert left == 0


def test_answer_that_nobody_reads(short: Callable[[str], None]) -> None:
    short("UNREAD_SECONDS")

    async def scene() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), page() as (server, (host, port)):
            reader, writer = await asyncio.open_connection(host, port, limit=1024)
            writer.write(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readexactly(12)
            while server.server_state.connections:
                await asyncio.sleep(0)
            writer.close()

    asyncio.run(scene())


def test_slow_request_in_time_is_answered() -> None:
    async def scene() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), page() as (_, (host, port)):
            reader, writer = await asyncio.open_connection(host, port)
            for byte in b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
            writer.close()

    asyncio.run(scene())
