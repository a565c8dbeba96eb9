"""Resident memory of a real `fedclient`, idle and in training, with kernels and with masks."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.kernels import Bench
from benchmarks.processes import RunningServer, server, started
from coppice.memory import forget_peak, peak_resident_bytes
from coppice.model_file import ModelInfo, save_model
from coppice.table import table
from server.printing import size

DESCRIPTION = "resident memory of a real fedclient, idle and in training"

_EXAMPLES = 400
_TIMEOUT_SECONDS = 600.0
_GLANCE_SECONDS = 0.05
#: Long enough for what the process still does after it has joined.
_SETTLED_SECONDS = 4.0
_RUN = """\
name = "memory"
model = {{ name = "conv2" }}
data = {{ input_shape = [1, 28, 28], classes = {classes} }}
stop = {{ rounds = {rounds} }}
cohort = {{ size = 1 }}
evaluation = {{ on_clients = false }}
{start}
[method]
name = "{method}"
local_steps = 20
batch_size = 20
learning_rate = 0.01
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.2, 0.05])
    parser.add_argument("--rounds", type=int, default=4)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A device a case, one after the other. Returns a case for each of the table's lines."""
    cases = []
    for density in arguments.densities:
        for way, flags in (("masks", ["--no-kernels"]), ("kernels", [])):
            with tempfile.TemporaryDirectory() as text, server(Path(text) / "server") as running:
                measured = _measure(Path(text), running, density, flags, arguments.rounds)
            cases.append({"density": density, "way": way, **measured})
    print(
        table(
            ("density", "layers", "joined, idle", "training", "peak", "after the run"),
            [
                (case["density"], case["way"], *(size(case[key]) for key in
                 ("idle_bytes", "training_bytes", "peak_bytes", "after_bytes")))
                for case in cases
            ],
        )
    )  # fmt: skip
    return cases


def _measure(
    folder: Path, running: RunningServer, density: float, flags: list[str], rounds: int
) -> dict[str, int]:
    bench = Bench("conv2")
    start = ""
    if density < 1:
        info = ModelInfo(workload=bench.workload, round_number=0, metrics={}, written_by="nobody")
        save_model(folder / "start.safetensors", bench.random(density), info)
        start = 'warm_start = "start.safetensors"'
    data = bench.workload.data
    assert data is not None
    classes = [*data.classes]
    generator = np.random.default_rng(0)
    images = generator.standard_normal((_EXAMPLES, 1, 28, 28), np.float32)
    labels = generator.integers(len(classes), size=_EXAMPLES)
    np.savez(folder / "data.npz", x=images, y=labels)
    method = "lottery" if start else "fedavg"
    toml = _RUN.format(classes=classes, rounds=rounds, start=start, method=method)
    device = ("edge_client", "join", running.address, "--insecure", "--threads", "1", *flags,
              "--data", str(folder / "data.npz"), "--state", str(folder / "state"))  # fmt: skip
    with started(folder / "client.log", *device) as process:
        client = psutil.Process(process.pid)
        _wait_until_joined(running)
        time.sleep(_SETTLED_SECONDS)
        idle = client.memory_info().rss
        forget_peak(process.pid)
        run_id = running.api.post("/runs", {"toml": toml, "folder": str(folder)})["run_id"]
        seen = _watch(running, run_id, client)
        peak = peak_resident_bytes(process.pid)
        time.sleep(_SETTLED_SECONDS)
        after = client.memory_info().rss
    training = int(statistics.median(seen))
    return {
        "idle_bytes": idle, "training_bytes": training, "peak_bytes": peak, "after_bytes": after
    }  # fmt: skip


def _wait_until_joined(running: RunningServer) -> None:
    end = time.monotonic() + _TIMEOUT_SECONDS
    while not running.api.get("/clients"):
        if time.monotonic() > end:
            raise RuntimeError("the device did not join")
        time.sleep(_GLANCE_SECONDS)


def _watch(running: RunningServer, run_id: int, client: psutil.Process) -> list[int]:
    """Resident bytes of the device, again and again from its first update to the run's end."""
    seen = []
    end = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < end:
        if running.api.get(f"/runs/{run_id}/rounds"):
            seen.append(client.memory_info().rss)
        run: dict[str, Any] = running.api.get(f"/runs/{run_id}")
        if run["ended_at"] is not None:
            if run["state"] != "finished":
                raise RuntimeError(f"the run {run['state']}: {run['reason']}")
            return seen
        time.sleep(_GLANCE_SECONDS)
    raise RuntimeError("the run did not end")
