"""A device killed in mid-round: it comes back, or the round goes on without it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.fleet import Fleet
from tests.integration.runs import app_file, saved, simulated


def test_device_killed_in_training_and_started_again_is_counted_once(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server, device = app_fleet.server, app_fleet.devices["pi-2"]
    device.gate.close()
    text = app_file()
    run_id = server.submit(text)
    device.gate.wait_until_reached()
    device.kill()
    device.gate.open()
    device.start(server)

    run = server.finished(run_id)
    rows = server.ledger(run_id)
    assert {row["outcome"] for row in rows} == {"counted"}
    assert Counter((row["round_number"], row["client_id"]) for row in rows) == Counter(
        (round_number, name) for round_number in (1, 2, 3) for name in digits
    )
    assert saved(server.model(run)) == simulated(text, digits)


def test_run_goes_on_without_a_device_that_never_comes_back(app_fleet: Fleet) -> None:
    server, device = app_fleet.server, app_fleet.devices["pi-2"]
    device.gate.close()
    run_id = server.submit(
        app_file(
            cohort="{ size = 3, quorum = 2, lost_after_seconds = 10, gather_seconds = 1 }",
            stop="{ rounds = 2 }",
        )
    )
    device.gate.wait_until_reached()
    device.kill()

    server.finished(run_id)
    outcomes = {
        (row["round_number"], row["client_id"]): row["outcome"] for row in server.ledger(run_id)
    }
    assert outcomes == {
        (1, "pi-1"): "counted",
        (1, "pi-2"): "missing",
        (1, "pi-3"): "counted",
        (2, "pi-1"): "counted",
        (2, "pi-3"): "counted",
    }
    device.gate.open()
    device.start(server)
