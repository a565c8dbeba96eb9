"""FedAvg on Fashion-MNIST over real processes: accuracy and seconds of every round."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fashion_data import DATA, add_data_argument, deal_out, read_both
from benchmarks.processes import RunningServer, all_started, server
from coppice.table import table
from server.printing import size

DESCRIPTION = "conv2 on Fashion-MNIST, non-IID clients: accuracy and seconds of every round"

_TIMEOUT_SECONDS = 6 * 3600.0

_RUN = """\
name = "fashion"
seed = {seed}
[model]
name = "conv2"
[data]
classes = {classes}
input_shape = [1, 28, 28]
scale = 255.0
mean = [0.286]
std = [0.353]
held_out = 0.0
[method]
name = "fedavg"
local_steps = 5
batch_size = 20
learning_rate = {learning_rate}
[cohort]
size = {clients}
[evaluation]
data = "test.npz"
every = {every}
[stop]
rounds = {rounds}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet split")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=5, help="rounds between two evaluations")
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One run, start to end. Returns a case a round."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _deal_out(arguments, folder)
        with server(folder / "server") as running:
            cases = _train(running, arguments, folder)
    shown = [case for case in cases if "accuracy" in case]
    rows = [
        (case["round"], f"{case['accuracy']:.4f}", f"{case['seconds']:.2f}",
         size(case["bytes_down"]), size(case["bytes_up"]))
        for case in shown
    ]  # fmt: skip
    print(table(("round", "test accuracy", "seconds", "down", "up"), rows))
    median = statistics.median(case["seconds"] for case in cases[1:])
    print(f"\nmedian of {median:.2f} s a round, {arguments.clients} clients on this machine")
    return cases


def _deal_out(arguments: argparse.Namespace, folder: Path) -> None:
    train, test = read_both(arguments.data)
    np.savez(folder / "test.npz", x=test.inputs, y=test.labels)
    parts = deal_out(train, arguments.clients, arguments.alpha, arguments.seed)
    for name, part in parts.items():
        np.savez(folder / f"{name}.npz", x=part.inputs, y=part.labels)


def _train(
    running: RunningServer, arguments: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    clients = [
        ("edge_client", "join", running.address, "--insecure", "--name", f"c{n}",
         "--threads", "1", "--once",
         "--data", str(folder / f"c{n}.npz"), "--state", str(folder / f"state-{n}"))
        for n in range(arguments.clients)
    ]  # fmt: skip
    toml = _RUN.format(classes=[*DATA.classes], **vars(arguments)).replace("'", '"')
    with all_started(folder / "clients.log", clients):
        run_id = running.api.post("/runs", {"toml": toml, "folder": str(folder)})["run_id"]
        running.wait_until_ended(run_id, _TIMEOUT_SECONDS)
    evaluations = running.api.get(f"/runs/{run_id}/evaluations")
    accuracy = {item["round_number"]: item["metrics"]["accuracy"] for item in evaluations}
    return [
        {
            "round": item["round_number"],
            "seconds": item["closed_at"] - item["opened_at"],
            "bytes_down": item["bytes_down"],
            "bytes_up": item["bytes_up"],
        }
        | ({"accuracy": accuracy[item["round_number"]]} if item["round_number"] in accuracy else {})
        for item in running.api.get(f"/runs/{run_id}/rounds")
    ]
