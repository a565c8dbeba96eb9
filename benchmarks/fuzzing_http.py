"""Hostile HTTP requests and raw bytes to the ports of a real server."""

from __future__ import annotations

import http.client
import json
import random
import select
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote

from benchmarks.fuzzing_bytes import EXTREMES, TEXTS, changed_bytes
from benchmarks.fuzzing_tally import Tally

SECONDS = 15.0
#: How long a request that is not whole is left so.
_HALF_SECONDS = 0.5
#: A stream of events has no end; its beginning is enough.
_GLANCE_BYTES = 2**16
_READS = (
    "/", "/page.js", "/api/status", "/api/clients", "/api/log", "/api/events", "/api/runs",
    "/api/runs/1", "/api/runs/1/rounds", "/api/runs/1/evaluations", "/api/runs/1/ledger",
    "/api/runs/1/reports", "/api/runs/1/refusals", "/api/runs/1/log", "/api/runs/1/models",
    "/api/runs/1/model", "/api/tokens", "/api/members", "/api/access", "/api/audit",
    "/api/session", "/api/openapi.json",
)  # fmt: skip
#: None of them stops the run of the fuzzer's own devices, or takes its own token away.
_WRITES = (
    "/api/runs", "/api/runs/99/stop", "/api/tokens", "/api/tokens/99/revoke",
    "/api/members/nobody/revoke", "/api/access", "/api/access/nobody/revoke", "/login", "/logout",
)  # fmt: skip
_BODIES: tuple[dict[str, object], ...] = (
    {"toml": 'name = "x"', "folder": "/nowhere"},
    {"toml": "a = [" * 500, "folder": "/nowhere", "app": "/etc/passwd"},
    {"uses": 1, "valid_seconds": 60.0},
    {"name": "nobody-1", "role": "viewer", "valid_seconds": 60.0},
    {"token": "coppice-api-" + "a" * 40},
    {},
)
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


class HttpFuzzer:
    """Requests to the page and its API: some with a token that may do everything."""

    def __init__(self, port: int, token: str, chance: random.Random, tally: Tally) -> None:
        self._address = ("127.0.0.1", port)
        self._token = token
        self._chance = chance
        self.tally = tally

    def fuzz(self, cases: int) -> None:
        """So many requests."""
        while self.tally.cases < cases:
            self._one()

    def _one(self) -> None:
        chance = self._chance
        method = chance.choice(("GET",) * 8 + ("POST",) * 6 + ("HEAD", "PUT", "DELETE", "TRACE"))
        path = self._path(chance.choice(_WRITES if method == "POST" else _READS))
        body = self._body() if method in ("POST", "PUT") else b""
        lines = [f"{method} {path} HTTP/1.1".encode(), *self._headers(len(body))]
        request = b"\r\n".join(lines) + b"\r\n\r\n" + body
        if chance.random() < 0.15:
            request = changed_bytes(chance, request, request)
        self._send(request)

    def _path(self, path: str) -> str:
        chance, kind = self._chance, self._chance.random()
        if kind < 0.35:
            names = ("after", "limit", "newest", "name", "x")
            pairs = (
                f"{chance.choice(names)}={quote(str(self._odd()))}"
                for _ in range(chance.choice((1, 2, 50)))
            )
            return path + "?" + "&".join(pairs)
        if kind < 0.65:
            parts = path.split("/")
            place = chance.randrange(1, len(parts))
            odd = str(self._odd())
            if odd != "1" and "operator" not in odd:
                parts[place] = quote(odd, safe="/" if chance.random() < 0.5 else "")
            return "/".join(parts) or "/"
        if kind < 0.7:
            return path + chance.choice(
                ("//", "/..", "/%2e%2e/%2e%2e", "%00", "?" + "a" * 9000, "#")
            )
        return path

    def _odd(self) -> object:
        return self._chance.choice((*EXTREMES, *TEXTS, -1, 1.5, "1e999", "nan", "true", "٣"))

    def _body(self) -> bytes:
        chance = self._chance
        plain = dict(chance.choice(_BODIES))
        if plain and chance.random() < 0.6:
            key = chance.choice(list(plain))
            plain[key] = chance.choice(
                (self._odd(), None, [], {"a": [[]]}, float("nan"), [1] * 999)
            )
        body = json.dumps(plain).encode()
        if chance.random() < 0.3:
            body = changed_bytes(chance, body, body)
        if chance.random() < 0.02:
            body = b"[" * chance.choice((1000, 100_000))
        return body

    def _headers(self, length: int) -> list[bytes]:
        chance = self._chance
        told = chance.choice((length,) * 12 + (length + 1, 0, -1, 2**31, 2**64, 7 * 2**20))
        headers = {
            "Host": f"127.0.0.1:{self._address[1]}",
            "Content-Length": str(told),
            "Content-Type": "application/json",
            "Connection": "close",
        }
        if chance.random() < 0.8:
            headers["Authorization"] = f"Bearer {self._token}"
        for _ in range(chance.choice((0, 0, 1, 2))):
            name = chance.choice(
                ("Host", "Origin", "Content-Type", "Cookie", "Authorization", "Range", "Accept",
                 "Transfer-Encoding", "Expect", "If-None-Match", "Sec-Fetch-Site", "X-Odd")
            )  # fmt: skip
            headers[name] = str(self._odd()).replace("\n", " ").replace("\r", " ")
        if chance.random() < 0.02:
            headers |= {f"X-{number}": "a" * 100 for number in range(chance.choice((100, 2000)))}
        return [f"{name}: {value}".encode(errors="replace") for name, value in headers.items()]

    def _send(self, request: bytes) -> None:
        tally, case = self.tally, request[:200].decode(errors="replace")
        try:
            with socket.create_connection(self._address, timeout=SECONDS) as line:
                with suppress(OSError):
                    line.sendall(request)
                if not select.select([line], [], [], _HALF_SECONDS)[0]:
                    # Whoever waits for the rest of a request knows now that none will come.
                    with suppress(OSError):
                        line.shutdown(socket.SHUT_WR)
                reply = http.client.HTTPResponse(line)
                reply.begin()
                reply.read(_GLANCE_BYTES) if reply.status >= 300 else reply.read1(1024)
        except TimeoutError:
            tally.hang(case, f"no answer within {SECONDS:.0f} s")
        except (http.client.HTTPException, ConnectionError):
            # Not every beginning of a request is worth an answer.
            tally.refuse("closed")
        else:
            self._judge(case, reply.status)

    def _judge(self, case: str, status: int) -> None:
        if status < 400:
            self.tally.accept()
        elif status < 500:
            self.tally.refuse(str(status))
        else:
            self.tally.crash(case, f"status {status}")


def fuzz_sockets(
    ports: Sequence[int], authority: bytes, chance: random.Random, tally: Tally, cases: int
) -> None:
    """Bytes that are none of the protocols, or leave one of them early; also inside of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode())
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    hello = _client_hello()
    while tally.cases < cases:
        port = chance.choice(ports)
        seed = chance.choice((hello, _HTTP2, b"GET /api/status HTTP/1.1\r\nHost: a\r\n\r\n"))
        kind = chance.random()
        data = seed if kind < 0.1 else changed_bytes(chance, seed, _HTTP2 + chance.randbytes(40))
        if kind > 0.9:
            data = chance.randbytes(chance.choice((1, 9, 500, 20_000)))
        if kind < 0.5:
            data += _frames(chance)
        is_inside = chance.random() < 0.3
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as plain:
                line = plain
                if is_inside:
                    line = context.wrap_socket(plain, server_hostname="coppice-server")
                line.sendall(data)
                line.settimeout(chance.choice((0.0, 0.01, 0.05)))
                line.recv(4096)
        except ConnectionRefusedError:
            tally.crash(f"{port} {data.hex()}", "nobody listens any more")
        except OSError as error:
            tally.refuse(type(error).__name__)
        else:
            tally.refuse("answered or closed")


def _frames(chance: random.Random) -> bytes:
    """Frames of HTTP/2 with types, flags, streams and lengths as they come."""
    frames = bytearray()
    for _ in range(chance.choice((1, 3, 50))):
        length = chance.choice((0, 1, 8, 100))
        told = chance.choice((length, length, length, 0, 2**24 - 1))
        frames += told.to_bytes(3, "big") + bytes((chance.randrange(12), chance.randrange(256)))
        frames += chance.choice((0, 1, 3, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
        frames += chance.randbytes(length)
    return bytes(frames)


def _client_hello() -> bytes:
    """What TLS begins with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    talk = context.wrap_bio(incoming, outgoing, server_hostname="coppice-server")
    with suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    return outgoing.read()
