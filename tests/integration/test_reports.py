"""What real devices measured of their rounds reaches the API, the terminal, and the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.fleet import Fleet
from benchmarks.program import call, until
from coppice.domain import RoundReport
from tests.integration.runs import run_file


def reports(fleet: Fleet, run_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.server.api.get(f"/runs/{run_id}/reports")
    return found


def test_each_round_of_a_device_is_reported(tmp_path: Path, digits: dict[str, Path]) -> None:
    with Fleet(tmp_path) as fleet:
        server = fleet.server
        device = fleet.join("pi-1", digits["pi-1"])
        run_id = server.submit(run_file(cohort="{ size = 1 }"))
        server.finished(run_id)
        # The last one comes with the poll after the last round.
        found = until(lambda: reports(fleet, run_id)[2:] and reports(fleet, run_id), "all told")
        assert [item["report"]["round_number"] for item in found] == [1, 2, 3]
        for item in found:
            report = item["report"]
            assert (item["client_id"], report["steps"], report["density"]) == ("pi-1", 5, 1.0)
            assert report["download_seconds"] > 0
            assert report["compute_seconds"] > 0
            assert report["upload_seconds"] > 0
            # Python with torch, and no more than there was.
            assert 50 * 2**20 < report["peak_bytes"] < report["budget_bytes"]
            assert report["bound_by"]
            assert report["forecast"] is None
        (client,) = server.api.get("/clients")
        assert client["last_round"] == found[-1]
        assert client["capability"]["memory_bytes"] > 0

        status = json.loads(call("edge_client", "status", "--json", "--state", device.state).out)
        assert status["last_round"] == found[-1]["report"]
        shown = call("server", "run", "show", run_id, "--data", server.data)
        assert shown.out.splitlines()[-1].split()[:5] == ["pi-1", "3", "5", "0.0", "%"]

        server.kill()
        with server.store() as store:
            assert [record.report for record in store.reports(run_id)] == [
                RoundReport(**item["report"]) for item in found
            ]
