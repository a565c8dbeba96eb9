"""Two classes that the weakest devices alone hold: what one mask and masks of their own learn."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks.fashion_data import DATA, add_data_argument, deal_out, examples_of, read_both
from benchmarks.pace import ALPHA, SIZES, TRAINING, WAYS
from benchmarks.pace_clock import round_seconds, spread, total_seconds
from benchmarks.pace_report import reports_of
from benchmarks.pace_start import MODEL, pruned_start
from coppice.app import App, build_model, make_app
from coppice.cohort import CohortSpec
from coppice.cost_learning import LearnedCost
from coppice.data import Examples, Raw, examples_from
from coppice.device_cost import DeviceCost
from coppice.domain import ClientId, MethodSpec, RunSpec, StopSpec
from coppice.model_file import load_weights
from coppice.simulation import Simulation
from coppice.table import table
from coppice.tensors import Weights, assign
from coppice.training import evaluate
from coppice.tree import from_plain

DESCRIPTION = "classes that weak devices alone hold, simulated with the costs that pace measured"

#: The two weakest devices alone hold these classes, and no others do.
HELD_BY_WEAK = (8, 9)
_WEAK = 2
#: Ways to train where they do, and settings besides those of the way.
_CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "one-mask": ("one-mask", {}),
    "pace-skip": ("pace", {"absent": "skip"}),
    "pace-zero": ("pace", {"absent": "zero"}),
}
#: Test examples of an evaluation.
_TESTED = 2500
_UNION = "global"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/pace"),
        help="folder that the scenario pace wrote (default: %(default)s)",
    )


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    seed: int
    rounds: int
    data: Path
    results: Path


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases. Returns the accuracies of each."""
    results: Path = arguments.results.resolve()
    cases = [
        Case(name, seed, arguments.rounds, arguments.data.resolve(), results)
        for seed in arguments.seeds
        for name in _CASES
    ]
    for seed in arguments.seeds:
        _start(seed, cases[0])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        pending = [pool.submit(run_case, case) for case in cases]
        for number, _ in enumerate(as_completed(pending), start=1):
            print(f"{number} of {len(cases)} runs are done", flush=True)
    found = [done.result() for done in pending]
    print(report(found))
    return found


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy on each class, of the union and of the smallest cut."""
    rows = []
    for name in dict.fromkeys(run["name"] for run in runs):
        last = [run["accuracy"] for run in runs if run["name"] == name]
        for label, pick in (("union", lambda item: item[_UNION]), ("smallest cut", _smallest)):
            if name == "one-mask" and label == "smallest cut":
                continue
            by_class = [pick(item) for item in last]
            per_class = [f"{mean(values):.2f}" for values in zip(*by_class, strict=True)]
            overall = spread([mean(values) for values in by_class], "{:.3f}")
            rows.append((name, label, overall, *per_class))
    classes = (f"class {number}" for number in range(len(DATA.classes)))
    return table(("way", "of", "accuracy", *classes), rows)


def _smallest(by_model: Mapping[str, list[float]]) -> list[float]:
    # Cuts are named by their density.
    return by_model[min(name for name in by_model if name != _UNION)]


def run_case(case: Case) -> dict[str, Any]:
    """Simulate one run with the costs of real devices, and evaluate its models."""
    torch.set_num_threads(1)
    train, test = read_both(case.data)
    way, more = _CASES[case.name]
    method, settings = WAYS[way]
    spec = RunSpec(
        name=case.name,
        seed=case.seed,
        model=MODEL,
        data=DATA,
        method=MethodSpec(name=method, settings={**settings, **more}),
        cohort=CohortSpec(size=len(SIZES)),
        stop=StopSpec(rounds=case.rounds),
    )
    app = make_app(spec)
    real = real_run(case.results)
    simulation = Simulation(
        spec,
        app,
        examples_of(deal(train, case.seed)),
        warm_start=load_weights(_start(case.seed, case)),
        kernels=True,
        costs=costs(real),
        pause_seconds=pause_seconds(real),
    )
    models = simulation.run().models
    held_out = examples_from(_only(test, slice(_TESTED)), DATA)
    accuracy = {name: _by_class(app, weights, held_out) for name, weights in models.items()}
    return {"name": case.name, "seed": case.seed, "accuracy": accuracy}


def _start(seed: int, case: Case) -> Path:
    """The pruned model that runs of a seed begin with; made if it is not there."""
    file = case.results / f"held-{seed}.safetensors"
    if not file.exists():
        pruned_start(deal(read_both(case.data)[0], seed), TRAINING, seed, file)
    return file


def real_run(results: Path) -> dict[str, Any]:
    """The real run whose costs are used."""
    files = sorted(results.glob("clock-*-pace.json"))
    if not files:
        raise SystemExit(f"{results} has no run with pace: first run the scenario pace")
    found: dict[str, Any] = json.loads(files[0].read_text())
    return found


def costs(real: Mapping[str, Any]) -> dict[ClientId, DeviceCost]:
    """What the devices had learned at the end of a real run, with the memory that they had."""
    return {
        ClientId(name): from_plain(LearnedCost, plain).cost(
            median(item["budget_bytes"] for item in reports_of(real, name))
        )
        for name, plain in real["costs"].items()
    }


def pause_seconds(real: Mapping[str, Any]) -> float:
    """What a round takes besides the slowest device, in the median of a real run."""
    longest: dict[int, float] = {}
    for item in real["reports"]:
        told = item["report"]
        number = told["round_number"]
        longest[number] = max(longest.get(number, 0.0), total_seconds(told))
    lasted = dict(enumerate(round_seconds(real), start=1))
    return median(lasted[number] - seconds for number, seconds in longest.items())


def deal(train: Raw, seed: int) -> dict[ClientId, Raw]:
    """The examples of each device, by name, weakest first."""
    rare = np.isin(train.labels, HELD_BY_WEAK)
    common = deal_out(_only(train, ~rare), len(SIZES), ALPHA, seed)
    weak = deal_out(_only(train, rare), _WEAK, 100.0, seed)
    return {
        ClientId(name): _joined(part, more)
        for name, part, more in zip(SIZES, common.values(), _then_none(weak), strict=True)
    }


def _then_none(parts: Mapping[ClientId, Raw]) -> Iterator[Raw | None]:
    yield from parts.values()
    yield from [None] * (len(SIZES) - len(parts))


def _only(raw: Raw, rows: Any) -> Raw:
    return Raw(raw.inputs[rows], raw.labels[rows])


def _joined(first: Raw, second: Raw | None) -> Raw:
    if second is None:
        return first
    return Raw(
        np.concatenate([first.inputs, second.inputs]), np.concatenate([first.labels, second.labels])
    )


def _by_class(app: App, weights: Weights, held_out: Examples) -> list[float]:
    """Accuracy on the test examples of each class, of which there are about equally many."""
    model = build_model(app, 0)
    assign(model, weights)
    return [
        evaluate(model, app, held_out.subset(torch.nonzero(held_out.targets == number).flatten()))[
            "accuracy"
        ]
        for number in range(len(DATA.classes))
    ]
