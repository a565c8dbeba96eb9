"""Refused updates over the HTTP API."""

from __future__ import annotations

from pathlib import Path

import httpx

from coppice.domain import BlobRef
from coppice.protection import Finding
from coppice.tree import to_plain
from server.store_quarantine import add_refusal
from tests.server.dashboard.stage import Stage
from tests.server.dashboard.test_api import got, play, run_to_its_end


def test_refused_updates_are_told_with_their_reasons(tmp_path: Path) -> None:
    async def scene(stage: Stage, api: httpx.AsyncClient) -> None:
        run_id = await run_to_its_end(stage, api)
        path = f"/runs/{run_id}/refusals"
        assert await got(api, path) == []
        finding = Finding("size", "it is too large", {"times": 50.0})
        (task, *_) = stage.store.tasks(run_id, 1)
        with stage.store._write() as connection:
            add_refusal(connection, task, BlobRef("a" * 64, 9), finding, 1e9)
        (refusal,) = await got(api, path)
        assert refusal["client_id"] == task.client_id
        assert refusal["finding"] == to_plain(finding)
        assert await got(api, f"{path}?after={refusal['refusal_id']}") == []

    play(tmp_path, scene)
