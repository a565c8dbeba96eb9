"""A device's identity: it lasts over restarts, renews itself, and ends when it is revoked."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from benchmarks.fleet import Fleet
from benchmarks.program import call, until
from tests.integration.runs import APP, app_file, run_file

CLIENT, SERVER = "edge_client", "server"
DAY_SECONDS = 86400.0


def test_revoked_device_is_cut_off_in_mid_training_and_the_run_goes_on(
    tmp_path: Path, digits: dict[str, Path]
) -> None:
    with Fleet(tmp_path, secure=True) as fleet:
        server = fleet.server
        for name, path in digits.items():
            fleet.join(name, path, "--app", APP)
        device = fleet.devices["pi-2"]
        device.gate.close()
        run_id = server.submit(app_file(cohort="{ size = 3, quorum = 2 }", stop="{ rounds = 2 }"))
        device.gate.wait_until_reached()
        outcome = call(SERVER, "client", "revoke", "pi-2", "--data", server.data)
        assert (outcome.code, outcome.err) == (0, "")

        # Nothing but its revocation tells the round not to wait for it.
        server.finished(run_id)
        assert device.program.is_running
        assert {
            (row["round_number"], row["client_id"]): row["outcome"] for row in server.ledger(run_id)
        } == {
            (1, "pi-1"): "counted",
            (1, "pi-2"): "missing",
            (1, "pi-3"): "counted",
            (2, "pi-1"): "counted",
            (2, "pi-3"): "counted",
        }
        device.gate.open()
        assert device.program.wait() == 5
        assert "pi-2 was revoked" in device.program.printed
        # Its key lets it in no more, and nor does the token by which it came.
        device.start(server)
        assert device.program.wait() == 5


def test_device_that_waits_is_told_that_it_was_revoked(
    tmp_path: Path, digits: dict[str, Path]
) -> None:
    with Fleet(tmp_path, secure=True) as fleet:
        device = fleet.join("pi-1", digits["pi-1"])
        until(lambda: "joined" in device.program.printed, "it waits", device.program)
        fleet.server.api.post("/members/pi-1/revoke", {})
        assert device.program.wait() == 5
        assert "pi-1 was revoked" in device.program.printed


def test_identity_outlives_restarts_of_both_and_a_reinstallation(
    tmp_path: Path, digits: dict[str, Path]
) -> None:
    with Fleet(tmp_path, secure=True) as fleet:
        server, device = fleet.server, fleet.join("pi-1", digits["pi-1"], "--once")
        server.wait_for("client_joined", client_id="pi-1")
        device.program.terminate()
        server.restart()
        # Of the old installation there is nothing but the key and what the server gave for it.
        kept = tmp_path / "kept"
        kept.mkdir()
        for name in ("device.key", "membership.json"):
            shutil.copy(device.state / name, kept)
        shutil.rmtree(device.state)
        kept.rename(device.state)
        device.start(server)
        run_id = server.submit(run_file(cohort="{ size = 1 }"))
        server.finished(run_id)
        assert device.program.wait() == 0
        (client,) = server.api.get("/clients")
        assert client["client_id"] == "pi-1"
        assert len(server.api.get("/tokens")) == 2


def test_certificate_renews_itself_while_the_device_waits(
    tmp_path: Path, digits: dict[str, Path]
) -> None:
    flags = ("--certificate-days", str(30 / DAY_SECONDS))
    with Fleet(tmp_path, secure=True, flags=flags) as fleet:
        device = fleet.join("pi-1", digits["pi-1"])
        fleet.server.wait_for("member_renewed", client_id="pi-1")
        until(lambda: "renewed" in device.program.printed, "it has it", device.program)
        run_id = fleet.server.submit(run_file(cohort="{ size = 1 }", stop="{ rounds = 1 }"))
        fleet.server.finished(run_id)
        # The connection was good all the time.
        assert "lost" not in device.program.printed


@pytest.mark.parametrize("knows", [True, False], ids=["by its clock", "its clock is slow"])
def test_device_that_was_away_for_too_long_comes_back_by_its_key(
    tmp_path: Path, digits: dict[str, Path], knows: bool
) -> None:
    flags = ("--certificate-days", str(4 / DAY_SECONDS))
    with Fleet(tmp_path, secure=True, flags=flags) as fleet:
        device = fleet.join("pi-1", digits["pi-1"], "--once")
        fleet.server.wait_for("client_joined", client_id="pi-1")
        device.program.terminate()
        path = device.state / "membership.json"
        membership = json.loads(path.read_text())
        until(lambda: time.time() > membership["expires_at"] + 0.5, "it has expired")
        if not knows:
            path.write_text(json.dumps(membership | {"expires_at": time.time() + DAY_SECONDS}))
        device.start(fleet.server)
        run_id = fleet.server.submit(run_file(cohort="{ size = 1 }", stop="{ rounds = 1 }"))
        fleet.server.finished(run_id)
        assert device.program.wait() == 0
        fleet.server.wait_for("member_renewed", client_id="pi-1")
        assert json.loads(path.read_text())["certificate"] != membership["certificate"]
