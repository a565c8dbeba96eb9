"""The API as a program on the same machine sees it, over a real store and coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from coppice.domain import ClientId
from coppice.errors import NotJoined
from coppice.tree import to_plain
from tests.server.dashboard.stage import (
    CAPABILITY,
    PATIENCE_SECONDS,
    RUN_FILE,
    SPEC,
    Stage,
    client,
)

Play = Callable[[Stage, httpx.AsyncClient], Awaitable[None]]

OF_A_RUN = [
    "",
    "/rounds",
    "/evaluations",
    "/ledger",
    "/reports",
    "/refusals",
    "/log",
    "/models",
    "/model",
]


@contextlib.asynccontextmanager
async def http(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(stage.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as api:
        yield api


def play(folder: Path, scene: Play) -> None:
    """Run a scene with the coordinator at work."""

    async def performance() -> None:
        async with Stage(folder).playing() as stage, http(stage) as api:
            await scene(stage, api)

    asyncio.run(performance())


async def run_to_its_end(stage: Stage, api: httpx.AsyncClient) -> int:
    """Submit the sample run and let three devices do all of it."""
    answer = await api.post("/api/runs", json={"toml": RUN_FILE, "folder": "/"})
    assert answer.status_code == 201, answer.text
    run_id = answer.json()["run_id"]
    ended = asyncio.create_task(stage.ended(run_id))
    stage.let(3 * 2 * SPEC.stop.rounds)
    await stage.enter("pi-1", "pi-2", "pi-3")
    await ended
    return int(run_id)


async def got(api: httpx.AsyncClient, path: str) -> Any:
    answer = await api.get(f"/api{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- what is read ------------------------------------------------------------------------------


def test_before_the_first_run_there_is_nothing_to_tell(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        status = await got(api, "/status")
        assert status == json.loads(json.dumps(asdict(stage.coordinator.snapshot())))
        assert status["run_id"] is None
        assert status["phase"] == "idle"
        for path in ("/runs", "/clients", "/log"):
            assert await got(api, path) == []

    play(tmp_path, scene)


def test_a_run_can_be_followed_from_its_submission_to_its_end(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)
        run = await got(api, f"/runs/{run_id}")
        assert await got(api, "/runs") == [run]
        assert run["spec"]["name"] == "digits"
        assert (run["state"], run["round_number"]) == ("finished", 4)
        assert (run["best_round"], run["best_value"]) == (4, pytest.approx(0.84))
        rounds = await got(api, f"/runs/{run_id}/rounds")
        assert [item["round_number"] for item in rounds] == [1, 2, 3, 4]
        assert {item["state"] for item in rounds} == {"committed"}
        assert rounds[0]["metrics"] == {"loss": 1.0}
        evaluations = await got(api, f"/runs/{run_id}/evaluations")
        assert [item["round_number"] for item in evaluations] == [1, 2, 3, 4]
        assert evaluations[0]["where"] == "clients"
        ledger = await got(api, f"/runs/{run_id}/ledger")
        assert len(ledger) == 3 * 2 * 4
        assert {row["outcome"] for row in ledger if row["kind"] == "train"} == {"counted"}
        log = await got(api, f"/runs/{run_id}/log")
        assert [line["kind"] for line in log][-1] == "run_ended"

    play(tmp_path, scene)


def test_long_lists_come_in_pages(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)

        async def numbers(path: str, key: str) -> list[int]:
            return [item[key] for item in await got(api, f"/runs/{run_id}{path}")]

        assert await numbers("/rounds?after=1&limit=2", "round_number") == [2, 3]
        assert await numbers("/rounds?after=4", "round_number") == []
        assert await numbers("/evaluations?after=3", "round_number") == [4]
        lines = await numbers("/log", "event_id")
        assert await numbers("/log?limit=2", "event_id") == lines[:2]
        assert await numbers(f"/log?after={lines[1]}&limit=2", "event_id") == lines[2:4]
        assert await numbers("/log?newest=true&limit=2", "event_id") == lines[-2:]
        everything = [item["event_id"] for item in await got(api, "/log")]
        assert set(everything) > set(lines)
        newest = await got(api, "/log?newest=true&limit=3")
        assert [item["event_id"] for item in newest] == everything[-3:]

    play(tmp_path, scene)


def test_a_client_comes_with_its_presence(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        for name in ("not-seen-since", "long-gone"):
            await stage.resources.write(stage.store.join_client, client(name))
        await stage.resources.write(stage.store.leave_client, ClientId("long-gone"), "")
        await stage.coordinator.join(client("here"))
        await stage.coordinator.join(client("gone"))
        await stage.coordinator.leave(ClientId("gone"), "switched off")
        await stage.coordinator.refused(ClientId("here"), NotJoined("garbage"))
        clients = {item["client_id"]: item for item in await got(api, "/clients")}
        assert {name: item["presence"] for name, item in clients.items()} == {
            "here": "idle",
            "gone": "left",
            "not-seen-since": "lost",
            "long-gone": "left",
        }
        assert clients["here"]["live"]["steps_done"] == 0
        assert clients["here"]["refusals"] == 1
        assert clients["here"]["labels"] == {"site": "barn"}
        assert clients["gone"]["left_reason"] == "switched off"
        assert clients["not-seen-since"]["live"] is None
        assert (await got(api, "/status"))["refusals"] == 1

    play(tmp_path, scene)


def test_a_client_comes_with_what_it_has_and_what_its_last_round_took(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)
        now = replace(CAPABILITY, memory_bytes=7, memory_bound_by="memory.max of /x")
        await stage.coordinator.join(client("new"))
        # The others go on polling, and each poll says what they have.
        stage.resources.presence.told(ClientId("new"), now)
        clients = {item["client_id"]: item for item in await got(api, "/clients")}
        assert clients["new"]["capability"] == to_plain(now)
        assert clients["pi-2"]["capability"] == to_plain(CAPABILITY)
        assert clients["new"]["last_round"] is None
        last = clients["pi-1"]["last_round"]
        assert (last["run_id"], last["client_id"]) == (run_id, "pi-1")
        assert last["report"]["round_number"] == 4
        assert last["report"]["compute_seconds"] == 16.0
        assert last["report"]["forecast"]["why"] == "memory"

    play(tmp_path, scene)


def test_what_rounds_took_can_be_exported(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)
        path = f"/runs/{run_id}/reports"
        reports = await got(api, path)
        rounds = sorted((item["client_id"], item["report"]["round_number"]) for item in reports)
        assert rounds == [(f"pi-{n}", number) for n in (1, 2, 3) for number in (1, 2, 3, 4)]
        assert reports[0]["report"]["budget_bytes"] == 400_000_000
        assert reports[0]["report"]["density"] == 0.25
        first = reports[0]["report_id"]
        assert await got(api, f"{path}?after={first}&limit=2") == reports[1:3]
        assert await got(api, f"{path}?newest=true&limit=2") == reports[-2:]
        assert (await api.get(f"/api{path}?limit=1001")).status_code == 422

    play(tmp_path, scene)


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)
        metrics = {"accuracy": float("nan"), "loss": float("inf")}
        await stage.resources.write(
            stage.store.record_evaluation, run_id, 4, "server", metrics, None
        )
        evaluations = await got(api, f"/runs/{run_id}/evaluations")
        assert evaluations[-1]["metrics"] == {"accuracy": None, "loss": None}

    play(tmp_path, scene)


def test_the_model_is_there_when_the_run_has_ended(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        waiting = await stage.coordinator.submit(SPEC)
        answer = await api.get(f"/api/runs/{waiting}/model")
        assert answer.status_code == 404
        assert "saved when the run ends" in answer.json()["message"]
        await stage.coordinator.stop_run(waiting)
        run_id = await run_to_its_end(stage, api)
        path = stage.resources.model_path(run_id, "digits")
        path.write_bytes(b"tensors")
        answer = await api.get(f"/api/runs/{run_id}/model")
        assert answer.content == b"tensors"
        assert path.name in answer.headers["content-disposition"]
        assert await got(api, f"/runs/{run_id}/models") == ["global"]
        path.unlink()
        assert await got(api, f"/runs/{run_id}/models") == []
        answer = await api.get(f"/api/runs/{run_id}/model")
        assert (answer.status_code, answer.json()["error"]) == (404, "UnknownBlob")

    play(tmp_path, scene)


def test_each_model_of_an_ended_run_is_there_by_its_name(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)
        waiting = await stage.coordinator.submit(SPEC)
        for number in (run_id, waiting):
            for name in ("global", "cut-0.5", "cut-0.125"):
                path = stage.resources.model_path(number, "digits", name)
                path.write_bytes(f"{number} {name}".encode())
        (tmp_path / "models" / f"{run_id}-other.safetensors").touch()
        names = await got(api, f"/runs/{run_id}/models")
        assert names == ["global", "cut-0.125", "cut-0.5"]
        for name in names:
            answer = await api.get(f"/api/runs/{run_id}/model", params={"name": name})
            assert answer.text == f"{run_id} {name}"
        assert await got(api, f"/runs/{waiting}/models") == []
        for name in ("cut-0.1", "", "*", "../store.sqlite", f"{run_id}-digits"):
            answer = await api.get(f"/api/runs/{run_id}/model", params={"name": name})
            assert (answer.status_code, answer.json()["error"]) == (404, "UnknownBlob")
            assert "but global, cut-0.125, cut-0.5" in answer.json()["message"]
        answer = await api.get(f"/api/runs/{run_id}/model", params={"name": "x" * 64})
        assert answer.status_code == 422

    play(tmp_path, scene)


# ---- what is changed ---------------------------------------------------------------------------


def test_a_mistake_in_a_run_file_is_told_with_its_key(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        wrong = RUN_FILE.replace("size = 3", "size = 0")
        answer = await api.post("/api/runs", json={"toml": wrong, "folder": "/"})
        assert answer.status_code == 422
        assert answer.json()["error"] == "RunFileError"
        assert "cohort.size" in answer.json()["message"]
        assert await got(api, "/runs") == []

    play(tmp_path, scene)


def test_stopping_ends_a_run_once(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await stage.coordinator.submit(SPEC)
        ended = asyncio.create_task(stage.ended(run_id))
        assert (await api.post(f"/api/runs/{run_id}/stop", json={})).status_code == 202
        await ended
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await got(api, "/status"))["run_id"] is not None:
                await asyncio.sleep(0)
        assert (await got(api, f"/runs/{run_id}"))["state"] == "stopped"
        again = await api.post(f"/api/runs/{run_id}/stop", json={})
        assert (again.status_code, again.json()["error"]) == (404, "UnknownRun")

    play(tmp_path, scene)


# ---- what is refused ---------------------------------------------------------------------------


def test_what_is_not_there_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        for path in OF_A_RUN:
            answer = await api.get(f"/api/runs/7{path}")
            assert (answer.status_code, answer.json()["error"]) == (404, "UnknownRun")
            assert "there is no run 7" in answer.json()["message"]
        answer = await api.get("/api/nothing")
        assert (answer.status_code, answer.json()["error"]) == (404, "InvalidMessage")
        answer = await api.get("/../api.py")
        assert answer.status_code == 404

    play(tmp_path, scene)


def test_numbers_outside_their_bounds_are_refused(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        for path in (
            "/log?after=-1",
            "/log?after=2147483648",
            "/log?limit=0",
            "/log?limit=1001",
            "/log?newest=maybe",
            "/runs/0",
            "/runs/2147483648",
            "/runs/one",
            "/runs/1/rounds?limit=1001",
            "/runs/1/log?limit=1001",
            "/runs/1/evaluations?after=-1",
        ):
            answer = await api.get(f"/api{path}")
            assert (answer.status_code, answer.json()["error"]) == (422, "InvalidMessage"), path

    play(tmp_path, scene)


def test_a_submission_that_is_none_is_refused(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        for body in (
            {},
            {"toml": RUN_FILE},
            {"toml": 1, "folder": "/"},
            {"toml": "#" * (2**20 + 1), "folder": "/"},
            {"toml": RUN_FILE, "folder": "x" * 5000},
            {"toml": RUN_FILE, "folder": "/", "surprise": 1},
        ):
            answer = await api.post("/api/runs", json=body)
            assert (answer.status_code, answer.json()["error"]) == (422, "InvalidMessage")
        assert await got(api, "/runs") == []

    play(tmp_path, scene)


def test_a_store_that_fails_is_a_problem_of_its_own(tmp_path: Path) -> None:
    async def scene() -> None:
        stage = Stage(tmp_path)
        stage.store.close()
        (tmp_path / "store.sqlite").write_bytes(b"no database any more" * 1000)
        async with http(stage) as api:
            answer = await api.get("/api/runs")
        assert (answer.status_code, answer.json()["error"]) == (503, "StoreUnusable")
        assert "store.sqlite" in answer.json()["message"]
        stage.store.close()

    asyncio.run(scene())


# ---- what is promised --------------------------------------------------------------------------


def test_the_app_is_guarded_and_serves_the_page(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        assert "page.js" in (await api.get("/")).text
        assert (await api.get("/page.js")).headers["content-type"].startswith("text/javascript")
        foreign = await api.get("/api/status", headers={"host": "evil.example"})
        assert foreign.status_code == 403

    play(tmp_path, scene)


def test_the_api_describes_itself(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        answer = await api.get("/api/openapi.json")
        described = answer.json()
        assert {f"/api/runs/{{run_id}}{path}" for path in OF_A_RUN} < set(described["paths"])
        assert {"/api/status", "/api/clients", "/api/log", "/api/events"} < set(described["paths"])
        shapes = described["components"]["schemas"]
        assert "best_value" in shapes["RunRecord"]["properties"]
        assert "presence" in shapes["SeenClient"]["properties"]
        assert set(shapes["Problem"]["properties"]) == {"error", "message"}
        # The frame's own shape of an error, which nothing here answers with.
        assert "HTTPValidationError" not in shapes

    play(tmp_path, scene)
