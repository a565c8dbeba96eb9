"""An app of one's own, as the documentation has it, on real devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fleet import Device, Fleet
from benchmarks.program import ROOT

EXAMPLES = ROOT / "docs" / "examples"
APP = EXAMPLES / "my_app.py"
ROUNDS = 6


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the sensors of three machines say: each vibrates at a pace of its own."""
    folder = tmp_path_factory.mktemp("readings")
    chance = np.random.default_rng(5)
    files = {}
    for number in range(1, 4):
        time = np.arange(600)[:, np.newaxis]
        wave = 0.4 * np.sin(time / (2 + number) + np.arange(3)) + [0.0, 0.0, 1.0]
        warmth = 45 + 10 * np.sin(time / 50)
        rows = np.hstack([wave, warmth]) + chance.normal(scale=0.02, size=(600, 4))
        path = files[f"machine-{number}"] = folder / f"machine-{number}.csv"
        np.savetxt(path, rows, delimiter=",", header="x,y,z,celsius", comments="")
    return files


def test_example_app_learns_and_a_device_with_another_app_is_refused(
    tmp_path: Path, readings: dict[str, Path]
) -> None:
    text = (EXAMPLES / "my_app.toml").read_text().replace("rounds = 50", f"rounds = {ROUNDS}")
    other = tmp_path / "my_app.py"
    other.write_text(APP.read_text().replace("WINDOW_ROWS = 16", "WINDOW_ROWS = 16  # or 32"))
    refusals = {
        "changed": (("--app", other), "copy the server's file to this device and join again"),
        "without": ((), "copy that file to this device and join with --app FILE"),
    }
    with Fleet(tmp_path) as fleet:
        server = fleet.server
        run_id = server.submit(text, EXAMPLES)
        refused = {
            name: Device(name, tmp_path, readings["machine-1"], *flags).start(server)
            for name, (flags, _) in refusals.items()
        }
        for name, device in refused.items():
            assert device.program.wait() == 5
            assert device.program.printed.splitlines()[-1].endswith(refusals[name][1])
        for name, path in readings.items():
            fleet.join(name, path, "--app", APP)
        run = server.finished(run_id)
        losses = [item["metrics"]["loss"] for item in server.api.get(f"/runs/{run_id}/evaluations")]
        assert len(losses) == ROUNDS
        assert run["best_value"] == min(losses) < 0.5 * losses[0]
