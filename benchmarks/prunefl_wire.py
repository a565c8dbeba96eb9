"""A run of the PruneFL study over real processes and simulated: the models must be equal."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fashion_data import (
    add_data_argument,
    deal_out,
    examples_of,
    most_classes,
    read_both,
)
from benchmarks.processes import RunningServer, all_started, server
from benchmarks.prunefl import ALPHA, Case, spec_of_case
from coppice.app import make_app
from coppice.domain import RunSpec, StopSpec
from coppice.model_file import load_weights
from coppice.simulation import Simulation
from coppice.sparse import SparseTensor
from coppice.table import table
from coppice.tensors import Weights
from coppice.tree import to_plain
from server.printing import size

DESCRIPTION = "PruneFL over real processes and simulated: the same model in the end"

_TIMEOUT_SECONDS = 6 * 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--rounds", type=int, default=75, help="tasks of initial pruning included")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both runs. Returns a case a round; ends the program when the models differ."""
    torch.set_num_threads(1)
    case = Case(
        "prunefl", arguments.seed, arguments.rounds, arguments.clients, 1, arguments.data, Path()
    )
    train, _ = read_both(arguments.data)
    parts = deal_out(train, arguments.clients, ALPHA, arguments.seed)
    spec = spec_of_case(case, most_classes(parts))
    spec = replace(spec, stop=StopSpec(rounds=arguments.rounds))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, part in parts.items():
            np.savez(folder / f"{name}.npz", x=part.inputs, y=part.labels)
        with server(folder / "server") as running:
            rounds, over_wire = _train(running, spec, [*parts], folder)
    simulated = Simulation(spec, make_app(spec), examples_of(parts)).run()
    rows = []
    for real, same in zip(rounds, simulated.rounds, strict=True):
        rows.append(
            (same.round_number, f"{same.metrics['density']:.4f}", f"{real['seconds']:.2f}",
             size(real["bytes_down"]), size(real["bytes_up"]))
        )  # fmt: skip
        found = (real["bytes_down"], real["bytes_up"], real["loss"])
        if found != (same.bytes_down, same.bytes_up, same.metrics["loss"]):
            raise SystemExit(f"round {same.round_number} is another one in the simulation")
    print(table(("round", "density", "seconds", "down", "up"), rows))
    if not _same(over_wire, simulated.models["global"]):
        raise SystemExit("the models differ")
    print(f"\nafter {len(rounds)} rounds both models are the same, to the last bit")
    return rounds


def _train(
    running: RunningServer, spec: RunSpec, names: list[str], folder: Path
) -> tuple[list[dict[str, Any]], Weights]:
    clients = [
        ("edge_client", "join", running.address, "--insecure", "--name", name,
         "--threads", "1", "--once",
         "--no-kernels",  # their results differ by rounding
         "--data", str(folder / f"{name}.npz"), "--state", str(folder / f"state-{name}"))
        for name in names
    ]  # fmt: skip
    with all_started(folder / "clients.log", clients):
        run_id = running.api.post("/runs", {"toml": _toml(spec), "folder": str(folder)})["run_id"]
        running.wait_until_ended(run_id, _TIMEOUT_SECONDS)
    rounds = [
        {
            "round": item["round_number"],
            "seconds": item["closed_at"] - item["opened_at"],
            "bytes_down": item["bytes_down"],
            "bytes_up": item["bytes_up"],
            **{key: item["metrics"][key] for key in ("loss", "density")},
        }
        for item in running.api.get(f"/runs/{run_id}/rounds")
    ]
    (model,) = (folder / "server" / "models").glob("*.safetensors")
    return rounds, load_weights(model)


def _toml(spec: RunSpec) -> str:
    """A run file of the spec."""
    plain = {key: value for key, value in to_plain(spec).items() if value is not None}
    method = plain.pop("method")
    plain["method"] = {"name": method["name"], **method["settings"]}
    return "\n".join(f"{key} = {_value(value)}" for key, value in plain.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inner = (f'"{key}" = {_value(item)}' for key, item in value.items() if item is not None)
        return "{ " + ", ".join(inner) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(
        _bits(item) == _bits(right[name]) for name, item in left.items()
    )


def _bits(item: torch.Tensor | SparseTensor) -> tuple[object, bytes]:
    if isinstance(item, SparseTensor):
        return item.mask.fingerprint, item.values.numpy().tobytes()
    return None, item.numpy().tobytes()
