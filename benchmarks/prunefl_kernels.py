"""PruneFL with sparse kernels and with masked dense layers: accuracy, and what the rounds take."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fashion_data import (
    DATA,
    add_data_argument,
    deal_out,
    examples_of,
    most_classes,
    read_both,
)
from benchmarks.published import round_time
from coppice.app import App, build_model, make_app
from coppice.cohort import CohortSpec
from coppice.data import Examples, examples_from
from coppice.domain import ClientId, MethodSpec, ModelSpec, RunSpec, StopSpec, Workload
from coppice.masks import density, prunable_names
from coppice.model_file import ModelInfo, save_model
from coppice.simulation import Simulation
from coppice.table import table
from coppice.tensors import Weights, assign, masks_of
from coppice.training import evaluate
from coppice.tree import to_plain

DESCRIPTION = "PruneFL with sparse kernels and with masked dense layers: accuracy and time"

_ALPHA = 0.5
_WAYS = ("masked", "kernels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=200, help="tasks of initial pruning included")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--every", type=int, default=10, help="rounds between two evaluations")
    parser.add_argument("--max-density", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, a core each")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="to keep the last models in")


@dataclass(frozen=True)
class _Case:
    seed: int
    rounds: int
    clients: int
    every: int
    max_density: float
    data: Path
    models: Path | None


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both ways of each seed, round by round in turns. Returns a case a seed."""
    cases = [
        _Case(
            seed,
            arguments.rounds,
            arguments.clients,
            arguments.every,
            arguments.max_density,
            arguments.data.resolve(),
            arguments.models,
        )
        for seed in arguments.seeds
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        running = [pool.submit(_run_case, case) for case in cases]
        for done in as_completed(running):
            print(f"seed {done.result()['seed']} is done", flush=True)
    results = [one.result() for one in running]
    print(_curves(results))
    print()
    print(_rounds(results))
    return results


def _run_case(case: _Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    train, test = read_both(case.data)
    parts = deal_out(train, case.clients, _ALPHA, case.seed)
    held_out = examples_from(test, DATA)
    spec = _spec(case, most_classes(parts))
    app = make_app(spec)
    clients = examples_of(parts)
    simulations = {way: Simulation(spec, app, clients, kernels=way == "kernels") for way in _WAYS}
    rounds = []
    for number in range(1, case.rounds + 1):
        record: dict[str, Any] = {"round": number}
        for way, simulation in simulations.items():
            began = time.process_time()
            done = simulation.run_round(number)
            model = simulation.models["global"]
            record[way] = {
                "seconds": time.process_time() - began,
                "density": density(masks_of(model).values()),
                "loss": done.metrics.get("loss"),
            }
            if number % case.every == 0:
                record[way]["accuracy"] = _accuracy(app, model, held_out)
        rounds.append(record)
    for way, simulation in simulations.items() if case.models else ():
        assert case.models is not None
        info = ModelInfo(
            workload=spec.workload,
            round_number=case.rounds,
            metrics={},
            written_by="python -m benchmarks run prunefl-kernels",
        )
        case.models.mkdir(parents=True, exist_ok=True)
        path = case.models / f"{way}-{case.seed}.safetensors"
        save_model(path, simulation.models["global"], info)
    return {"seed": case.seed, "max_density": case.max_density, "rounds": rounds}


def _spec(case: _Case, initial_client: ClientId) -> RunSpec:
    model = ModelSpec(name="conv2")
    anyone = MethodSpec(name="fedavg")
    app = make_app(Workload(name="any", model=model, data=DATA, method=anyone))
    settings = {
        "local_steps": 5,
        "batch_size": 20,
        "learning_rate": 0.03,
        "initial_client": initial_client,
        "initial_accuracy": 1.5 / len(DATA.classes),
        "initial_passes": 50,
        "initial_interval": 10,
        "reconfigure_every": 20,
        "mask_scope": "global",
        "max_density": case.max_density,
        "round_time": to_plain(round_time("conv2", prunable_names(app.model()))),
    }
    return RunSpec(
        name="kernels",
        seed=case.seed,
        model=model,
        data=DATA,
        method=MethodSpec(name="prunefl", settings=settings),
        cohort=CohortSpec(size=case.clients),
        stop=StopSpec(rounds=case.rounds),
    )


def _accuracy(app: App, weights: Weights, held_out: Examples) -> float:
    model = build_model(app, 0)
    assign(model, weights)
    return evaluate(model, app, held_out)["accuracy"]


def _curves(results: Sequence[dict[str, Any]]) -> str:
    """Accuracy by round, mean and spread over the seeds."""
    rows = []
    for index, record in enumerate(results[0]["rounds"]):
        if "accuracy" in record["masked"]:
            found = {
                way: [result["rounds"][index][way]["accuracy"] for result in results]
                for way in _WAYS
            }
            pairs = zip(found["kernels"], found["masked"], strict=True)
            rows.append(
                (record["round"], *(_spread(found[way]) for way in _WAYS),
                 _spread([one - other for one, other in pairs]))
            )  # fmt: skip
    return table(("round", "masked", "kernels", "difference by seed"), rows)


def _rounds(results: Sequence[dict[str, Any]]) -> str:
    """What the rounds of a tenth of the run take, and how dense the model is at its end."""
    total = len(results[0]["rounds"])
    rows = []
    for first in range(0, total, max(1, total // 10)):
        chosen = slice(first, first + max(1, total // 10))
        parts = [result["rounds"][chosen] for result in results]
        seconds = {
            way: [statistics.median(record[way]["seconds"] for record in part) for part in parts]
            for way in _WAYS
        }
        ratios = [
            one / other for one, other in zip(seconds["kernels"], seconds["masked"], strict=True)
        ]
        rows.append(
            (f"{first + 1} to {first + len(parts[0])}",
             _spread([part[-1]["kernels"]["density"] for part in parts]),
             *(_spread(seconds[way]) for way in _WAYS), _spread(ratios))
        )  # fmt: skip
    columns = ("rounds", "density", "masked s/round", "kernels s/round", "kernels / masked")
    return table(columns, rows)


def _spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"
