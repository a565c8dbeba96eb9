"""PruneFL and conventional FL on Fashion-MNIST: size, accuracy, bytes and modelled time."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
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
from benchmarks.prunefl_report import draw, report
from benchmarks.published import LOCAL_STEPS, round_time
from coppice.app import App, build_model, make_app
from coppice.cohort import CohortSpec
from coppice.data import Examples, examples_from
from coppice.domain import ClientId, MethodSpec, Metrics, ModelSpec, RunSpec, StopSpec, Workload
from coppice.masks import prunable_names
from coppice.methods.prunefl.server import State
from coppice.model_file import ModelInfo, load_weights, save_model
from coppice.simulation import SimulatedRound, Simulation
from coppice.tensors import Weights, assign, masks_of
from coppice.training import evaluate
from coppice.tree import to_plain

DESCRIPTION = "PruneFL against conventional FL on Fashion-MNIST, simulated, several seeds"

ALPHA = 0.5
#: What the study is about.
METHODS = ("fedavg", "prunefl")
#: What else PruneFL is compared with, at the density or on the masks that it ended with: the method
#: of the run, and settings of it.
COMPARED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "snip": ("snip", {}),
    "iterative": ("iterative", {}),
    "lottery-original": ("lottery", {"weights": "original"}),
    "lottery-new": ("lottery", {"weights": "new"}),
    "lottery-random": ("lottery", {"weights": "new", "mask": "random"}),
}

_TRAINING = {"local_steps": LOCAL_STEPS, "batch_size": 20, "learning_rate": 0.03}
_ROUNDS_MAX = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=(*METHODS, *COMPARED),
        default=list(METHODS),
        help="what to run; all but fedavg and prunefl need prunefl's results",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=500, help="of federated training")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--every", type=int, default=20, help="rounds between two evaluations")
    parser.add_argument(
        "--targets", type=float, nargs="+", default=[0.75, 0.8, 0.84], help="accuracies to reach"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/prunefl"),
        help="folder of finished runs, which are not run again (default: %(default)s)",
    )
    parser.add_argument("--figure", type=Path, help="file to draw the curves into (.svg)")


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    method: str
    seed: int
    rounds: int
    clients: int
    every: int
    data: Path
    results: Path

    @property
    def file(self) -> Path:
        """Where its rounds are written, complete or not at all."""
        return self.results / f"{self.method}-{self.seed}.json"

    @property
    def pruned(self) -> Case:
        """PruneFL's run of this seed."""
        return replace(self, method="prunefl")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases that have no results yet. Returns those of all of them."""
    shared = (arguments.rounds, arguments.clients, arguments.every, arguments.data.resolve())
    arguments.results.mkdir(parents=True, exist_ok=True)
    cases = [
        Case(method, seed, *shared, arguments.results)
        for seed in arguments.seeds
        for method in arguments.methods
    ]
    missing = [case for case in cases if not case.file.exists()]
    _run_all([case for case in missing if case.method in METHODS], arguments.jobs)
    _run_all([case for case in missing if case.method in COMPARED], arguments.jobs)
    runs = [json.loads(case.file.read_text()) for case in cases]
    print(report(runs, arguments.targets))
    if arguments.figure is not None:
        draw(runs, arguments.figure)
    return runs


def _run_all(cases: Sequence[Case], jobs: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {pool.submit(run_case, case): case for case in cases}
        for done in as_completed(running):
            done.result()
            print(f"{running[done].file.stem} is done", flush=True)


def run_case(case: Case) -> None:
    """Simulate one run; its rounds go to a file, its last model beside it."""
    torch.set_num_threads(1)
    train, test = read_both(case.data)
    parts = deal_out(train, case.clients, ALPHA, case.seed)
    spec = spec_of_case(case, most_classes(parts))
    app = make_app(spec)
    held_out = examples_from(test, DATA)
    clients = examples_of(parts)
    warm_start = None
    if spec.method.name == "lottery":
        warm_start = load_weights(case.pruned.file.with_suffix(".safetensors"))
    simulation = Simulation(spec, app, clients, warm_start=warm_start)
    rounds: list[dict[str, Any]] = []
    number = done = 0
    began = time.monotonic()
    while done < case.rounds:
        number += 1
        result = simulation.run_round(number)
        state = simulation.state
        if not (isinstance(state, State) and (state.initial is not None or state.rounds == 0)):
            done += 1
        record = _record(done, result, simulation.models["global"])
        if done and done % case.every == 0:
            record |= {"test": _test(app, simulation.models["global"], held_out)}
        rounds.append(record)
        if number % 10 == 0 or "test" in record:
            _say(case, record, time.monotonic() - began)
    info = ModelInfo(
        workload=spec.workload,
        round_number=number,
        metrics=rounds[-1].get("test", {}),
        written_by="python -m benchmarks run prunefl",
    )
    save_model(case.file.with_suffix(".safetensors"), simulation.models["global"], info)
    text = json.dumps(
        {
            "method": case.method,
            "seed": case.seed,
            "clients": case.clients,
            "spec": to_plain(spec),
            "seconds": time.monotonic() - began,
            "rounds": rounds,
        }
    )
    case.file.write_text(text + "\n")


def _say(case: Case, record: Mapping[str, Any], seconds: float) -> None:
    accuracy = f", accuracy {record['test']['accuracy']:.3f}" if "test" in record else ""
    line = f"{case.file.stem}: round {record['round']} of {case.rounds}{accuracy}"
    print(f"{line}, {seconds:.0f} s", flush=True)


def _workload(case: Case, initial_client: ClientId) -> dict[str, Any]:
    """The fields of a run's spec that say what is trained."""
    names = prunable_names(_app().model())
    method, more = COMPARED.get(case.method, (case.method, {}))
    settings: dict[str, Any] = {**_TRAINING, **more}
    if method in ("snip", "iterative"):
        last = json.loads(case.pruned.file.read_text())["rounds"][-1]
        settings["density"] = last["metrics"]["density"]
    if method == "iterative":
        settings["pruning_rounds"] = case.rounds // 2
    if method == "prunefl":
        settings |= {
            "mask_scope": "global",
            "importance": "every_round",
            "initial_client": initial_client,
            # One and a half times what guessing gets, as published.
            "initial_accuracy": 1.5 / len(DATA.classes),
            "round_time": to_plain(round_time("conv2", names)),
        }
    return {
        "name": case.method,
        "seed": case.seed,
        "model": ModelSpec(name="conv2"),
        "data": DATA,
        "method": MethodSpec(name=method, settings=settings),
    }


def _app() -> App:
    model = ModelSpec(name="conv2")
    return make_app(Workload(name="any", model=model, data=DATA, method=MethodSpec(name="fedavg")))


def spec_of_case(case: Case, initial_client: ClientId) -> RunSpec:
    """What the case trains; PruneFL prunes first at this client."""
    return RunSpec(
        **_workload(case, initial_client),
        cohort=CohortSpec(size=case.clients),
        stop=StopSpec(rounds=_ROUNDS_MAX),
    )


def _record(done: int, result: SimulatedRound, model: Weights) -> dict[str, Any]:
    return {
        "round": done,
        "ones": {name: mask.count for name, mask in masks_of(model).items()} or None,
        "bytes_down": result.bytes_down,
        "bytes_up": result.bytes_up,
        "metrics": dict(result.metrics),
    }


def _test(app: App, model: Weights, held_out: Examples) -> Metrics:
    module = build_model(app, 0)
    assign(module, model)
    return evaluate(module, app, held_out)
