"""What a foreign page could make a browser send is refused; what our own page sends is not."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from server.dashboard.guard import MAX_BODY_BYTES, Guard
from server.run_file import MAX_RUN_FILE_BYTES

OWN = "127.0.0.1:7480"
JSON = {"content-type": "application/json"}


def send(
    method: str, headers: dict[str, str], body: bytes | None = None, app: ASGIApp | None = None
) -> httpx.Response:
    """One request, which has our own host unless told otherwise."""

    async def scene() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(app or PlainTextResponse("let in")))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{OWN}") as api:
            return await api.request(method, "/", headers=headers, content=body)

    return asyncio.run(scene())


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", OWN, "localhost:7480", "[::1]:7480", "192.168.1.5", socket.gethostname()],
)
def test_an_address_and_the_machines_own_name_are_let_in(host: str) -> None:
    assert send("GET", {"host": host}).text == "let in"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7480", "127.0.0.1.evil.example", "", "[::1", "a b"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_foreign_name_that_leads_here_is_refused(method: str, host: str) -> None:
    answer = send(method, JSON | {"host": host}, b"{}")
    assert (answer.status_code, answer.json()["error"]) == (403, "InvalidMessage")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8000"])
def test_a_foreign_page_may_not_change_anything(method: str, origin: str) -> None:
    answer = send(method, JSON | {"origin": origin}, b"{}")
    assert answer.status_code == 403
    assert "may not change" in answer.json()["message"]


@pytest.mark.parametrize("origin", [{}, {"origin": f"http://{OWN}"}], ids=["program", "page"])
def test_our_own_page_and_programs_may(origin: dict[str, str]) -> None:
    assert send("POST", JSON | origin, b"{}").text == "let in"


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""]
)
def test_what_a_form_sends_is_refused(kind: str) -> None:
    assert send("POST", {"content-type": kind}, b"{}").status_code == 415


def test_a_body_is_bounded_before_it_is_read() -> None:
    too_long = JSON | {"content-length": str(MAX_BODY_BYTES + 1)}
    assert send("POST", too_long, b"{}").status_code == 413
    for unknown in ({"transfer-encoding": "chunked"}, {"content-length": "-1"}):
        assert send("POST", JSON | unknown, b"{}").status_code == 411


def test_the_largest_run_file_fits_into_a_body() -> None:
    # JSON in plain ASCII writes some characters with six letters.
    body = {"toml": "\x7f" * MAX_RUN_FILE_BYTES, "folder": "/" * 4096}
    assert len(json.dumps(body)) < MAX_BODY_BYTES


def test_every_answer_binds_the_page_to_this_server() -> None:
    for answer in (send("GET", {}), send("GET", {"host": "evil.example"})):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"


def test_an_app_that_says_how_long_to_keep_an_answer_is_heard() -> None:
    kept = PlainTextResponse("", headers={"cache-control": "max-age=60"})
    assert send("GET", {}, app=kept).headers["cache-control"] == "max-age=60"
