"""The real server's page and API: who gets in by HTTPS and a token, and what is known of that."""

from __future__ import annotations

import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet import Fleet, Server
from benchmarks.program import call
from coppice.errors import NotAllowed, NotLoggedIn, ServerUnreachable
from server.api_client import ApiClient, Where
from server.authority import open_authority

SERVER = "server"
TLS = ("--dashboard-tls", "true")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Fleet(tmp_path, secure=True, flags=TLS) as fleet:
        yield fleet.server


def test_operators_token_is_printed_once_and_kept_for_their_commands(server: Server) -> None:
    file = server.data / "operator.token"
    token = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert server.program.printed.count(token) == 1
    assert token.encode() not in (server.data / "coppice.sqlite").read_bytes()
    server.restart()
    assert file.read_text().strip() == token
    assert server.program.printed.count(token) == 1
    listed = call(SERVER, "run", "list", "--json", "--data", server.data)
    assert (listed.code, listed.out) == (0, "[]\n")
    # Revoked, it is replaced at the next start, and only there.
    assert call(SERVER, "access", "revoke", "operator", "--data", server.data).code == 0
    refused = call(SERVER, "run", "list", "--data", server.data)
    assert (refused.code, refused.err.count("\n")) == (5, 1)
    server.restart()
    assert file.read_text().strip() != token
    assert call(SERVER, "run", "list", "--data", server.data).code == 0


def test_other_machines_need_authority_and_token_and_do_what_their_role_may(
    server: Server, tmp_path: Path
) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    authority, file = server.data / "authority" / "ca.pem", tmp_path / "viewer.token"
    create = ("access", "create", "vera", "--role", "viewer", "--json", "--data", server.data)
    token = json.loads(call(SERVER, *create).out)["token"]
    file.write_text(token)
    # As on a machine that has nothing of the server's.
    there = ("--server", server.url, "--data", tmp_path / "nothing")
    trusting = (*there, "--ca-file", authority)
    for flags, code in (
        (there, 4),
        (trusting, 5),
        ((*trusting, "--token-file", file), 0),
    ):
        outcome = call(SERVER, "run", "list", *flags)
        assert (outcome.code, outcome.err.count("\n")) == (code, int(code > 0)), outcome
    create_token = call(SERVER, "token", "create", *trusting, "--token-file", file)
    assert (create_token.code, "only an operator" in create_token.err) == (5, True)
    audit = call(SERVER, "audit", "--json", "--data", server.data)
    assert [(line["who"], line["action"]) for line in json.loads(audit.out)][-2:] == [
        ("operator", "create access"),
        ("vera", "POST /api/tokens"),
    ]
    assert token not in audit.out


def test_authority_of_another_server_is_not_this_ones(server: Server, tmp_path: Path) -> None:
    other = open_authority(tmp_path / "other", "other", [])
    (tmp_path / "other.pem").write_bytes(other.pem)
    with pytest.raises(ServerUnreachable, match="--ca-file"):
        ApiClient(Where(server.url, "x", tmp_path / "other.pem")).get("/runs")
    with pytest.raises(ServerUnreachable):
        ApiClient(server.url.replace("https", "http")).get("/runs")


def test_stream_ends_within_seconds_when_its_token_is_revoked(server: Server) -> None:
    token = server.api.post("/access", {"name": "vera", "role": "viewer"})["token"]
    viewer = ApiClient(Where(server.url, token, server.data / "authority" / "ca.pem"))
    with pytest.raises(NotAllowed):
        viewer.post("/tokens", {})
    stream = viewer.events()
    assert next(stream)["kind"] == "listening"
    server.api.post("/access/vera/revoke", {})
    # It would go on until the server ends.
    assert [event["kind"] for event in stream if event["kind"] != "access_revoked"] == []
    with pytest.raises(NotLoggedIn):
        viewer.get("/runs")


def test_page_is_there_for_everybody_and_tells_nothing(server: Server) -> None:
    context = ssl.create_default_context(cafile=server.data / "authority" / "ca.pem")
    with urllib.request.urlopen(server.url, context=context) as answer:
        page = answer.read().decode()
        assert answer.headers["X-Frame-Options"] == "DENY"
    assert re.search(r'<form id="login"', page)


def test_insecure_server_says_that_it_asks_nobody(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        assert "no login" in fleet.server.program.printed
        assert not (fleet.server.data / "operator.token").exists()
        assert ApiClient(fleet.server.url).get("/session")["has_login"] is False
        line = fleet.server.api.get("/audit")
        assert line == []
