"""Hostile devices among honest ones, all real processes: the model is the honest ones' own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fleet import Fleet
from benchmarks.program import ROOT, Program, call, until
from coppice.partition import IidPartitioner
from tests.integration.runs import run_file, saved, simulated

#: The hostile ones, and what each does to its updates (`benchmarks/hostile_client.py`).
HOSTILE = {"h-nan": "nan", "h-scaled": "scaled", "h-shape": "shape"}
HONEST = ("c0", "c1", "c2", "c3", "c4")
#: Refused updates after which a device is left out.
STRIKES = 2

REASONS = {
    "h-nan": "delta/hidden.0.0.weight has values that are not finite",
    "h-shape": "delta/hidden.0.0.weight is float32 [3, 5]; the task expects float32 [32, 256]",
    "h-scaled": "times the round's median",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of digits for each of the eight."""
    folder = tmp_path_factory.mktemp("parts")
    with np.load(ROOT / "deploy" / "demo" / "digits.npz", allow_pickle=False) as file:
        x, y = file["x"].repeat(2, axis=-1).repeat(2, axis=-2), file["y"]
    names = (*HONEST, *HOSTILE)
    found = IidPartitioner(num_partitions=len(names)).partition(y, seed=3)
    for name, part in zip(names, found, strict=True):
        np.savez(folder / f"{name}.npz", x=x[part], y=y[part])
    return {name: folder / f"{name}.npz" for name in names}


def is_told(program: Program) -> bool:
    return "this device is left out of the run" in program.printed


def test_three_hostile_devices_of_eight_change_nothing(
    tmp_path: Path, parts: dict[str, Path]
) -> None:
    keys = {
        "stop": f"{{ rounds = {STRIKES} }}",
        "protection": f"{{ strikes = {STRIKES} }}",
    }
    with Fleet(tmp_path) as fleet:
        for name in HONEST:
            fleet.join(name, parts[name], "--no-kernels")
        for name, kind in HOSTILE.items():
            module = f"-m benchmarks.hostile_client {kind}"
            fleet.join(name, parts[name], "--no-kernels", module=module)
        for name in parts:
            fleet.server.wait_for("client_joined", client_id=name)
        text = run_file(cohort="{ size = 8, quorum = 8, gather_seconds = 90 }", **keys)
        run = fleet.server.finished(fleet.server.submit(text))
        run_id = run["run_id"]

        # Bit by bit what the honest ones alone come to.
        alone = run_file(cohort="{ size = 5 }", **keys)
        assert saved(fleet.server.model(run)) == simulated(alone, {n: parts[n] for n in HONEST})

        refusals = fleet.server.api.get(f"/runs/{run_id}/refusals")
        named = sorted((item["client_id"], item["round_number"]) for item in refusals)
        assert named == sorted((name, n) for name in HOSTILE for n in range(1, STRIKES + 1))
        for item in refusals:
            assert REASONS[item["client_id"]] in item["finding"]["reason"]
        for name in HOSTILE:
            fleet.server.wait_for("update_refused", client_id=name)
            fleet.server.wait_for("client_left_out", client_id=name)
        outcomes = {
            (row["client_id"] in HOSTILE, row["outcome"]) for row in fleet.server.ledger(run_id)
        }
        assert outcomes == {(True, "refused"), (False, "counted")}

        shown = call("server", "run", "show", run_id, "--server", fleet.server.url)
        assert all(reason in shown.out for reason in REASONS.values())
        for name, reason in REASONS.items():
            program = fleet.devices[name].program
            until(partial(is_told, program), f"{name} was told", program)
            assert program.printed.count(reason) == STRIKES
        for name in HONEST:
            assert "refused" not in fleet.devices[name].program.printed
