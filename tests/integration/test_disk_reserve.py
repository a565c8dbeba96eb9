"""A disk without room for updates: they wait, everybody is told why, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fleet import Fleet
from benchmarks.program import until
from tests.integration.runs import run_file

#: More than any disk has.
ALL_OF_IT = ("--disk-reserve-mb", "1000000000")


def test_run_waits_for_room_and_goes_on(tmp_path: Path, digits: dict[str, Path]) -> None:
    with Fleet(tmp_path, flags=ALL_OF_IT) as fleet:
        server = fleet.server
        device = fleet.join("pi-1", digits["pi-1"])
        run_id = server.submit(run_file(cohort="{ size = 1 }", stop="{ rounds = 1 }"))
        refused = server.wait_for("call_refused")
        assert "pi-1: the server's disk has no room for this update" in refused["text"]
        assert "disk_reserve_mb" in refused["text"]
        # The device says it too, and when it comes back: so long is a busy server left alone.
        said = until(lambda: "next attempt is in" in device.program.printed, "it waits")
        assert said
        assert list((device.state / "outbox").iterdir())
        assert list((server.data / "blobs" / "partial").iterdir()) == []
        (client,) = server.api.get("/clients")
        assert client["refusals"] == 0
        assert server.ledger(run_id)[0]["outcome"] == "missing"

        device.kill()
        server.kill()
        server._flags = ("--disk-reserve-mb", "0")
        server.start()
        device.start(server)
        assert server.finished(run_id)["round_number"] == 1
        assert [row["outcome"] for row in server.ledger(run_id)] == ["counted"]
