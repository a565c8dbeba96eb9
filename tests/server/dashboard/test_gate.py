"""Who is nobody reads nothing, who is a viewer changes nothing, whatever the route."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from server.access_records import Role
from tests.server.dashboard.doors import OWN_PAGE, Doors, play
from tests.server.dashboard.stage import Stage

OPEN = {("GET", "/api/session"), ("POST", "/login"), ("POST", "/logout")}
SECRET = {"/api/audit", "/api/access"}


def calls(doors: Doors) -> list[tuple[str, str]]:
    """Every method and path of the API."""
    found = [("GET", "/api/openapi.json"), ("GET", "/api/no/such")]
    for path, methods in doors.app.openapi()["paths"].items():
        at = path.format(run_id=1, token_id=1, name="x")
        found += [(method.upper(), at) for method in methods]
    assert len(found) > 20
    return [call for call in found if call not in OPEN]


def test_stranger_is_refused_everywhere(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller() as stranger:
            for method, path in calls(doors):
                answer = await stranger.request(method, path, json={})
                assert (answer.status_code, answer.json()["error"]) == (401, "NotLoggedIn"), path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["cache-control"] == "no-store"
            assert (await stranger.get("/")).status_code == 200
            assert (await stranger.get("/api/session")).json() == {
                "has_login": True, "who": "", "role": None,
            }  # fmt: skip

    play(tmp_path, scene)


def test_viewer_reads_and_changes_nothing(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller(doors.viewer) as viewer:
            for method, path in calls(doors):
                # Streams do not end.
                if path == "/api/events":
                    continue
                answer = await viewer.request(method, path, json={})
                is_refused = method != "GET" or path in SECRET
                assert (answer.status_code == 403) == is_refused, (method, path)
                if is_refused:
                    assert answer.json()["error"] == "NotAllowed"
            assert (await viewer.get("/api/session")).json()["role"] == Role.VIEWER
        assert doors.store.runs() == []
        assert {outcome for _, _, outcome in doors.noted()} == {"refused"}
        assert ("vera", "POST /api/runs", "refused") in doors.noted()

    play(tmp_path, scene)


def test_operator_does_everything_and_it_is_noted(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller(doors.operator) as operator:
            answer = await operator.post("/api/runs", json={"toml": "", "folder": "/"})
            assert (answer.status_code, answer.json()) == (201, {"run_id": 7})
            new = {"name": "carl", "role": "viewer", "valid_seconds": 60}
            made = await operator.post("/api/access", json=new)
            assert made.status_code == 201
            async with doors.caller(made.json()["token"]) as carl:
                assert (await carl.get("/api/runs")).status_code == 200
                assert (await operator.post("/api/access/carl/revoke", json={})).status_code == 200
                assert (await carl.get("/api/runs")).status_code == 401
            listed = await operator.get("/api/access")
            assert [(item["name"], item["is_now"]) for item in listed.json()] == [
                ("vera", "valid"), ("otto", "valid"), ("carl", "revoked"),
            ]  # fmt: skip
            assert made.json()["token"] not in listed.text
            lines = (await operator.get("/api/audit?newest=true&limit=3")).json()
            assert [(line["who"], line["action"], line["address"]) for line in lines] == [
                ("otto", "create access", "10.0.0.7"),
                ("otto", "revoke access", "10.0.0.7"),
                ("", "log in", "10.0.0.7"),
            ]

    play(tmp_path, scene)


@pytest.mark.parametrize("shown", ["Bearer x", "Bearer", "Basic {}", "{}", "Bearer {}x", ""])
def test_wrong_token_is_nobodys(tmp_path: Path, shown: str) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller() as stranger:
            headers = {"authorization": shown.format(doors.operator)}
            assert (await stranger.get("/api/runs", headers=headers)).status_code == 401
        assert doors.noted() == [("", "log in", "refused")]

    play(tmp_path, scene)


def test_who_guesses_is_slowed_down_and_others_are_not(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        async with doors.caller("guess") as stranger:
            statuses = [(await stranger.get("/api/runs")).status_code for _ in range(40)]
            assert statuses == [401] * 10 + [429] * 30
            login = await stranger.post("/login", json={"token": doors.operator})
            assert (login.status_code, login.json()["error"]) == (429, "ServerBusy")
        async with doors.caller(doors.viewer, "10.0.0.8") as viewer:
            assert (await viewer.get("/api/runs")).status_code == 200
        assert len(doors.noted()) == 10

    play(tmp_path, scene)


def test_token_that_has_expired_or_lost_its_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "operator.token"

    async def scene(doors: Doors) -> None:
        made = await doors.access.keep_local(file)
        assert made is not None
        assert file.read_text() == f"{made}\n"
        assert file.stat().st_mode & 0o777 == 0o600
        assert await doors.access.keep_local(file) is None
        file.write_text(doors.viewer)
        again = await doors.access.keep_local(file)
        assert again not in (None, made)
        async with doors.caller(made) as former, doors.caller(again) as present:
            assert (await former.get("/api/runs")).status_code == 401
            assert (await present.get("/api/access")).status_code == 200
        assert made not in repr(doors.store.access())

    play(tmp_path, scene)


def test_without_a_login_everybody_is_an_operator_and_is_noted_so(tmp_path: Path) -> None:
    async def scene(doors: Doors) -> None:
        stage: Stage = doors.stage
        transport = httpx.ASGITransport(stage.app)
        async with httpx.AsyncClient(transport=transport, base_url=OWN_PAGE["origin"]) as api:
            assert (await api.get("/api/session")).json() == {
                "has_login": False, "who": "anybody", "role": "operator",
            }  # fmt: skip
            assert (await api.get("/api/access")).json()["error"] == "NoAuthority"
            assert (await api.get("/api/audit")).status_code == 200

    play(tmp_path, scene)
