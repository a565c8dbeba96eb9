"""Hostile clients among honest ones: what the firewall refuses, and what each robust rule saves."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.fashion_data import DATA, add_data_argument, deal_out, examples_of, read_both
from benchmarks.hostile_client import spoiled
from benchmarks.processes import RunningServer, all_started, server
from coppice.app import make_app
from coppice.cohort import CohortSpec
from coppice.data import Raw, examples_from
from coppice.domain import MethodSpec, ModelSpec, RunSpec, StopSpec
from coppice.method import ClientHalf, Local, Task, Update, client_half
from coppice.protection import Aggregate, ProtectionSpec
from coppice.simulation import Simulation
from coppice.table import table
from server.refusal_table import refusal_table

DESCRIPTION = "hostile clients (NaN, shape, scaled) among honest ones: accuracy, and who is named"

#: The hostile ones by name, and what each does to its updates.
HOSTILE = {"h-nan": "nan", "h-shape": "shape", "h-scaled": "scaled"}
_TIMEOUT_SECONDS = 3600.0

_RUN = """\
name = "{name}"
seed = {seed}
[model]
name = "{model}"
[data]
classes = {classes}
input_shape = [1, 28, 28]
scale = 255.0
mean = [0.286]
std = [0.353]
held_out = 0.0
[method]
name = "fedavg"
local_steps = {steps}
batch_size = 20
learning_rate = {learning_rate}
[cohort]
size = {size}
gather_seconds = 5
[protection]
firewall = {firewall}
[evaluation]
data = "test.npz"
every = {rounds}
[stop]
rounds = {rounds}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--honest", type=int, default=5, help="clients beside the three hostile")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--steps", type=int, default=10, help="local steps of a round")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet split")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=("processes", "simulated"), help="one half; both unless given"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs with real processes, then simulated ones of each rule. Returns a case a run."""
    train, test = read_both(arguments.data)
    cases = []
    if arguments.only != "simulated":
        cases += _with_processes(arguments, train, test)
    if arguments.only != "processes":
        cases += _simulated(arguments, train, test)
    return cases


# ---- real processes ----


def _with_processes(arguments: argparse.Namespace, train: Raw, test: Raw) -> list[dict[str, Any]]:
    honest = [f"c{number}" for number in range(arguments.honest)]
    everybody = dict.fromkeys(honest, "") | HOSTILE
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        np.savez(folder / "test.npz", x=test.inputs, y=test.labels)
        parts = deal_out(train, len(everybody), arguments.alpha, arguments.seed)
        for name, part in zip(everybody, parts.values(), strict=True):
            np.savez(folder / f"{name}.npz", x=part.inputs, y=part.labels)
        cases = [
            _one_run(arguments, folder, "without-them", dict.fromkeys(honest, ""), True),
            _one_run(arguments, folder, "with-firewall", everybody, True),
            _one_run(arguments, folder, "without-firewall", everybody, False),
        ]
    without = cases[0]["accuracy"]
    rows = [
        (case["case"], case["clients"], f"{100 * case['accuracy']:.2f} %",
         f"{100 * (case['accuracy'] - without):+.2f}", len(case["refusals"]),
         ", ".join(case["left_out"]))
        for case in cases
    ]  # fmt: skip
    print(table(("run", "clients", "accuracy", "points", "refused", "left out"), rows))
    print("\nwith the firewall:\n" + refusal_table(cases[1]["refusals"]) + "\n")
    return cases


def _one_run(
    arguments: argparse.Namespace,
    folder: Path,
    name: str,
    clients: Mapping[str, str],
    firewall: bool,
) -> dict[str, Any]:
    values = {**vars(arguments), "name": name, "size": len(clients)}
    values |= {"firewall": str(firewall).lower(), "classes": [*DATA.classes]}
    toml = _RUN.format(**values).replace("'", '"')
    with server(folder / name) as running:
        commands = [_command(running, folder, name, *item) for item in clients.items()]
        with all_started(folder / f"{name}-clients.log", commands):
            running.wait_for_clients(len(clients))
            run_id = running.api.post("/runs", {"toml": toml, "folder": str(folder)})["run_id"]
            record = running.wait_until_ended(run_id, _TIMEOUT_SECONDS)
        (evaluation,) = running.api.get(f"/runs/{run_id}/evaluations")
        log = running.api.get(f"/runs/{run_id}/log?newest=true")
        return {
            "case": name,
            "clients": len(clients),
            "accuracy": evaluation["metrics"]["accuracy"],
            "rounds": record["round_number"],
            "refusals": running.api.get(f"/runs/{run_id}/refusals"),
            "left_out": [e["client_id"] for e in log if e["kind"] == "client_left_out"],
        }


def _command(
    running: RunningServer, folder: Path, run: str, name: str, kind: str
) -> tuple[str, ...]:
    program = ("benchmarks.hostile_client", kind) if kind else ("edge_client",)
    state = folder / f"{run}-state-{name}"
    return (
        *program, "join", running.address, "--insecure", "--name", name, "--threads", "1", "--once",
        "--data", str(folder / f"{name}.npz"), "--state", str(state),
    )  # fmt: skip


# ---- each rule, simulated ----


RULES: tuple[Aggregate, ...] = ("mean", "clipped", "median", "trimmed", "krum", "multi-krum")


def _simulated(arguments: argparse.Namespace, train: Raw, test: Raw) -> list[dict[str, Any]]:
    count = arguments.honest + len(HOSTILE)
    parts = deal_out(train, count, arguments.alpha, arguments.seed)
    hostile = min(parts)
    found: dict[tuple[str, str], float] = {}
    for kind in ("", "scaled", "flipped"):
        for rule in RULES:
            spec = RunSpec(
                name="poisoned",
                seed=arguments.seed,
                model=ModelSpec(name=arguments.model),
                data=DATA,
                method=MethodSpec(
                    name="fedavg",
                    settings={
                        "local_steps": arguments.steps,
                        "learning_rate": arguments.learning_rate,
                    },
                ),
                cohort=CohortSpec(size=count, quorum=count),
                protection=ProtectionSpec(firewall=False, aggregate=rule),
                stop=StopSpec(rounds=arguments.rounds),
            )
            with _spoiling(hostile, kind):
                run = Simulation(
                    spec,
                    make_app(spec, None),
                    examples_of(parts),
                    held_out=examples_from(test, DATA),
                )
                last = run.run().rounds[-1]
            found[kind, rule] = last.evaluation["server"]["accuracy"]
    kinds = ("", "scaled", "flipped")
    rows = [(rule, *(f"{100 * found[kind, rule]:.2f} %" for kind in kinds)) for rule in RULES]
    print(f"one hostile client of {count}, without the firewall (simulated): accuracy")
    print(table(("aggregate", "none hostile", "scaled by 1000", "turned round"), rows))
    return [
        {"case": f"simulated-{rule}", "hostile": kind, "accuracy": accuracy}
        for (kind, rule), accuracy in found.items()
    ]


@contextmanager
def _spoiling(client_id: str, kind: str) -> Iterator[None]:
    """Simulated clients of this name spoil what they train."""

    class Spoiling:
        def __init__(self, half: ClientHalf) -> None:
            self._half = half

        def __getattr__(self, name: str) -> Any:
            return getattr(self._half, name)

        def run(self, task: Task, local: Local) -> Update:
            update = self._half.run(task, local)
            return spoiled(update, kind) if kind and local.client_id == client_id else update

    with patch("coppice.simulation.client_half", lambda spec: Spoiling(client_half(spec))):
        yield
