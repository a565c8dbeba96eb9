"""Tokens and members by the API."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from coppice.join_token import parse_token
from server.authority import open_authority
from server.config import Address
from server.dashboard.api import make_app
from server.dashboard.members import Enrolments
from server.members import Members
from tests.server.host import Host


async def unused(*_: object) -> int:
    raise AssertionError("no run is submitted")


def play(folder: Path, scene: Any, *, insecure: bool = False) -> None:
    async def performance() -> None:
        async with Host(folder).open() as host:
            authority = open_authority(folder / "authority", "host", [])
            members = Members(host.resources, host.coordinator, authority, 100.0, 100.0)
            members.port = 7434
            enrolments = None if insecure else Enrolments(members, Address("10.0.0.7", 7433))
            app = make_app(host.coordinator, host.resources, unused, enrolments)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as api:
                await scene(api)

    asyncio.run(performance())


def test_token_is_told_once(tmp_path: Path) -> None:
    async def scene(api: httpx.AsyncClient) -> None:
        answer = await api.post("/api/tokens", json={"uses": 2})
        made = answer.json()
        token = parse_token(made["token"])
        assert (answer.status_code, made["token_id"], token.port) == (201, 1, 7434)
        assert made["join"] == f"fedclient join 10.0.0.7:7433 --token {made['token']}"
        listed = await api.get("/api/tokens")
        assert [(item["uses"], item["is_now"]) for item in listed.json()] == [(2, "valid")]
        assert made["token"] not in listed.text
        assert (await api.post("/api/tokens/1/revoke", json={})).status_code == 200
        assert (await api.get("/api/tokens")).json()[0]["is_now"] == "revoked"
        lines = (await api.get("/api/audit")).json()
        assert [(line["who"], line["action"], line["detail"]) for line in lines] == [
            ("anybody", "create token", "for 2 devices"),
            ("anybody", "revoke token", "1"),
        ]

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "body", [{"uses": 0}, {"uses": 10_001}, {"valid_seconds": 0}, {"valid_seconds": 4e7}, {"x": 1}]
)
def test_bad_wish_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async def scene(api: httpx.AsyncClient) -> None:
        assert (await api.post("/api/tokens", json=body)).status_code == 422
        assert (await api.get("/api/tokens")).json() == []

    play(tmp_path, scene)


def test_what_is_not_there_cannot_be_revoked(tmp_path: Path) -> None:
    async def scene(api: httpx.AsyncClient) -> None:
        for path, error in (("tokens/9", "UnknownToken"), ("members/pi-9", "UnknownMember")):
            answer = await api.post(f"/api/{path}/revoke", json={})
            assert (answer.status_code, answer.json()["error"]) == (404, error)
        assert (await api.get("/api/members")).json() == []

    play(tmp_path, scene)


def test_without_certificates_there_is_nothing_of_this(tmp_path: Path) -> None:
    async def scene(api: httpx.AsyncClient) -> None:
        for answer in (await api.post("/api/tokens", json={}), await api.get("/api/members")):
            assert (answer.status_code, answer.json()["error"]) == (409, "NoAuthority")

    play(tmp_path, scene, insecure=True)
