"""The connections of the page: how many there may be, and how long each may be silent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: For the handshake of TLS, and for the head of a request, from the connection on.
HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
#: For a request's body.
BODY_SECONDS = 30.0
#: How long an answer waits for somebody who does not read it.
UNREAD_SECONDS = 60.0
LONGEST_HEAD_BYTES = 32 * 2**10

_MESSAGE = b'{"error": "ServerBusy", "message": "too many connections; try again later"}\n'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 10\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


class PageServer(uvicorn.Server):
    """A web server that leaves the signals to others, and bounds the handshake of TLS."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen; what it is based on has no bound to give."""
        loop, ssl = asyncio.get_running_loop(), self.config.ssl
        kind: Any = self.config.http_protocol_class
        seconds = HANDSHAKE_SECONDS if ssl is not None else None
        self.servers = [
            await loop.create_server(
                lambda: kind(config=self.config, server_state=self.server_state, app_state={}),
                sock=each,
                ssl=ssl,
                ssl_handshake_timeout=seconds,
            )
            for each in sockets or []
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are others'."""
        yield


class Bounded(H11Protocol):
    """One connection."""

    #: How many there may be; half of them of one address.
    most: int
    #: What of a request is waited for.
    _part = ""
    _waits: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    # asyncio's protocols are given any transport; uvicorn narrows that, and so has this to.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody connects."""
        super().connection_made(transport)
        others = [getattr(other, "client", None) for other in self.connections]
        of_it = sum(other[0] == self.client[0] for other in others if other and self.client)
        if len(others) > self.most or of_it > max(self.most // 2, 1):
            transport.write(_BUSY)
            transport.close()
        else:
            self._wait(HEAD_SECONDS, "head")

    def data_received(self, data: bytes) -> None:
        """Bytes come."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            # Uvicorn waits for the first byte of another request; this is for those that follow.
            self._wait(HEAD_SECONDS, "head")
        elif self.cycle.more_body:
            self._wait(BODY_SECONDS, "body")
        else:
            self._go_on()

    def on_response_complete(self) -> None:
        """An answer is done."""
        self._go_on()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Somebody does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Somebody reads."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._go_on()
        self.resume_writing()
        super().connection_lost(exc)

    def _wait(self, seconds: float, part: str) -> None:
        # More bytes of the same part do not make it longer.
        if part != self._part:
            self._go_on()
            self._part = part
            self._waits = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self) -> None:
        self._part = ""
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None


def bounded(most: int) -> type[Bounded]:
    """Connections of which there may be so many."""
    return type("Bounded", (Bounded,), {"most": most})
