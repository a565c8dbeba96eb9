"""Logging in at the page: the cookie, what it is good for, and how it ends."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from server.sessions import LIFE_SECONDS
from tests.server.dashboard.doors import OWN_PAGE, URL, Doors, play


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def log_in(api: httpx.AsyncClient, token: str) -> httpx.Response:
    answer = await api.post("/login", json={"token": token}, headers=OWN_PAGE)
    assert answer.status_code == 200, answer.text
    return answer


def test_cookie_stands_for_the_token_until_logout(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller() as api:
            answer = await log_in(api, f" {doors.operator} ")
            assert answer.json() == {"has_login": True, "who": "otto", "role": "operator"}
            cookie = answer.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert "Path=/" in cookie
            assert "Secure" not in cookie
            assert doors.operator not in cookie
            assert (await api.get("/api/access")).status_code == 200
            kept = dict(api.cookies)
            await api.post("/logout", json={}, headers=OWN_PAGE)
            assert not api.cookies
            api.cookies.update(kept)
            answer = await api.get("/api/runs")
            assert (answer.status_code, answer.json()["message"]) == (
                401, "the session has ended: log in again",
            )  # fmt: skip
        assert doors.noted() == [("otto", "log in", "done")]

    play(tmp_path, scene)


def test_by_https_the_cookie_travels_by_nothing_else(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller() as api:
            url = URL.replace("http:", "https:")
            answer = await api.post(f"{url}/login", json={"token": doors.viewer})
            assert "Secure" in answer.headers["set-cookie"]

    play(tmp_path, scene)


def test_wrong_token_opens_nothing_and_is_noted(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller() as api:
            for token in ("", "x", doors.operator[:-1]):
                answer = await api.post("/login", json={"token": token})
                assert (answer.status_code, answer.json()["error"]) == (401, "NotLoggedIn")
                assert "set-cookie" not in answer.headers
            assert (await api.post("/login", json={"token": "x" * 201})).status_code == 422
        assert doors.noted() == [("", "log in", "refused")] * 3

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://127.0.0.1:7480"},
        {"origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": URL},
    ],
)
def test_with_a_cookie_only_the_own_page_changes_anything(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    new = {"name": "carl", "role": "viewer"}

    async def scene(doors: Doors) -> None:
        async with doors.caller() as api:
            await log_in(api, doors.operator)
            answer = await api.post("/api/access", json=new, headers=headers)
            assert answer.status_code == 403
            assert len(doors.access.all()) == 2
            for number, own in enumerate((OWN_PAGE, {"sec-fetch-site": "same-origin"})):
                body = new | {"name": f"carl-{number}"}
                assert (await api.post("/api/access", json=body, headers=own)).status_code == 201

    play(tmp_path, scene)


def test_session_ends_by_itself_and_with_its_token(tmp_path: Path) -> None:
    clock = Clock()

    async def scene(doors: Doors) -> None:
        async with doors.caller() as first, doors.caller() as second:
            await log_in(first, doors.operator)
            clock.now += LIFE_SECONDS / 2
            await log_in(second, doors.viewer)
            clock.now += LIFE_SECONDS / 2
            assert (await first.get("/api/runs")).status_code == 401
            assert (await second.get("/api/runs")).status_code == 200
            await doors.access.revoke("vera")
            answer = await second.get("/api/runs")
            assert (answer.status_code, answer.json()["message"].partition(";")[0]) == (
                401, "the token vera was revoked",
            )  # fmt: skip

    play(tmp_path, scene, clock)


def test_grant_ends_with_what_it_rests_on(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        by_token = doors.access.by_token(doors.viewer, "")
        session = doors.access.log_in(doors.viewer, "")
        assert session.cookie is not None
        assert (by_token.holds(), session.holds()) == (True, True)
        doors.access.log_out(session.cookie)
        assert (by_token.holds(), session.holds()) == (True, False)
        await doors.access.revoke("vera")
        assert by_token.holds() is False

    play(tmp_path, scene)
