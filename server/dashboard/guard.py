"""Keeps foreign web pages out: what they could make a browser send is refused before it is read."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coppice.errors import InvalidMessage
from server.dashboard.problems import problem

#: A run file may have 1 MiB; in JSON each of its characters takes up to six bytes.
MAX_BODY_BYTES = 6 * 2**20 + 2**16

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Around the app: checks each request, and adds the headers that bind our own page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        name = socket.gethostname().lower()
        self._names = {"localhost", name, f"{name}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the app answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_bound(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                # Files of the page may be asked for again; what is known of a run is kept nowhere.
                is_file = scope["method"] in ("GET", "HEAD") and not scope["path"].startswith(
                    "/api"
                )
                headers.setdefault("Cache-Control", "no-cache" if is_file else "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        answer = self._app if refusal is None else problem(InvalidMessage(refusal[1]), refusal[0])
        await answer(scope, receive, send_bound)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason, or None for a request that may go on."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 403, f"{host!r} is no name of this server; use its IP address"
        if method in ("GET", "HEAD"):
            return None
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return 403, f"a page of {headers['origin']} may not change anything here"
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return 415, "the Content-Type must be application/json"
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return 411, "a request must tell its Content-Length, and not come in chunks"
        if int(length) > MAX_BODY_BYTES:
            return 413, f"a request may have {MAX_BODY_BYTES} bytes at most"
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether this is an address, or a name that is ours and nobody else's.

        A page whose own name was made to lead here (DNS rebinding) has that name as its host.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
