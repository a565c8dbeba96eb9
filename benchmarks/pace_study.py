"""Accuracy against replayed time: dense FL, one mask and pace, with the costs of real devices."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.fashion_data import DATA, add_data_argument, deal_out, examples_of, read_both
from benchmarks.pace import ALPHA, SIZES, TRAINING, WAYS
from benchmarks.pace_report import reports_of, round_seconds, total_seconds
from benchmarks.pace_start import MODEL, pruned_start
from benchmarks.pace_study_report import draw, report
from coppice.app import App, build_model, make_app
from coppice.cost_learning import LearnedCost
from coppice.data import Examples, Raw, examples_from
from coppice.device_cost import DeviceCost
from coppice.domain import ClientId, CohortSpec, MethodSpec, RunSpec, StopSpec
from coppice.model_file import load_weights
from coppice.simulation import Simulation
from coppice.tensors import Weights, assign
from coppice.training import evaluate
from coppice.tree import from_plain

DESCRIPTION = "accuracy against replayed time with the costs that the scenario pace measured"

#: Of the second table: the two weakest devices alone hold these classes, and no others do.
HELD_BY_WEAK = (8, 9)
_WEAK = 2
#: Ways to train where they do, and settings besides those of the way.
_HELD_WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "held-one-mask": ("one-mask", {}),
    "held-pace-skip": ("pace", {"absent": "skip"}),
    "held-pace-zero": ("pace", {"absent": "zero"}),
}


#: Rounds of each: they do not last equally long.
ROUNDS: Mapping[str, int] = {
    "dense": 80,
    "one-mask": 150,
    "pace": 300,
    **dict.fromkeys(_HELD_WAYS, 100),
}
#: Test examples of an evaluation.
_TESTED = 2500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--every", type=int, default=10, help="rounds between two evaluations")
    parser.add_argument(
        "--targets", type=float, nargs="+", default=[0.7, 0.8, 0.85], help="accuracies to reach"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/pace"),
        help="folder that the scenario pace wrote; finished runs there are not run again",
    )
    parser.add_argument("--figure", type=Path, help="file to draw the curves into (.svg)")


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    name: str
    seed: int
    every: int
    data: Path
    results: Path

    @property
    def file(self) -> Path:
        """Where its rounds are written."""
        return self.results / "study" / f"{self.name}-{self.seed}.json"

    @property
    def rounds(self) -> int:
        """About as many as the slowest way does in half an hour."""
        return ROUNDS[self.name]

    @property
    def is_held(self) -> bool:
        """Whether the weakest devices alone hold two of the classes."""
        return self.name in _HELD_WAYS


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases that have no results yet. Returns those of all of them."""
    results: Path = arguments.results.resolve()
    (results / "study").mkdir(parents=True, exist_ok=True)
    cases = [
        Case(name, seed, arguments.every, arguments.data.resolve(), results)
        for names in (WAYS, _HELD_WAYS)
        for seed in arguments.seeds
        for name in names
    ]
    missing = [case for case in cases if not case.file.exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        running = {pool.submit(run_case, case): case for case in missing}
        for done in as_completed(running):
            done.result()
            print(f"{running[done].file.stem} is done", flush=True)
    runs = [json.loads(case.file.read_text()) for case in cases]
    print(report(runs, long_run(results), arguments.targets))
    if arguments.figure is not None:
        draw(runs, arguments.figure)
    return runs


def long_run(results: Path) -> dict[str, Any]:
    """The real run whose costs are replayed."""
    files = sorted(results.glob("long-*-pace.json"))
    if not files:
        raise SystemExit(f"{results} has no long run: first run the scenario pace")
    found: dict[str, Any] = json.loads(files[-1].read_text())
    return found


def run_case(case: Case) -> None:
    """Simulate one run with the costs of real devices; its rounds go to a file."""
    torch.set_num_threads(1)
    train, test = read_both(case.data)
    parts = deal(train, case)
    spec = _spec(case)
    app = make_app(spec)
    start = None
    if spec.method.name != "fedavg":
        kind = "held" if case.is_held else "start"
        # A name of its own while it is made: another process may make the same one.
        file = case.results / f"{kind}-{case.seed}.safetensors"
        if not file.exists():
            own = file.with_name(f"{file.stem}-{case.name}.safetensors")
            pruned_start(parts, TRAINING, case.seed, own)
            own.replace(file)
        start = load_weights(file)
    simulation = Simulation(
        spec,
        app,
        examples_of(parts),
        warm_start=start,
        kernels=True,
        costs=costs(long_run(case.results)),
    )
    held_out = examples_from(_only(test, slice(_TESTED)), DATA)
    overhead = server_seconds(long_run(case.results))
    rounds: list[dict[str, Any]] = []
    for number in range(1, case.rounds + 1):
        done = simulation.run_round(number)
        record: dict[str, Any] = {
            "round": number,
            "seconds": max(done.seconds.values()) + overhead,
            "by_device": dict(done.seconds),
            "bytes_down": done.bytes_down,
            "bytes_up": done.bytes_up,
            "metrics": dict(done.metrics),
        }
        if number % case.every == 0:
            models = simulation.models
            # Each takes a while; what cuts are worth is asked at the end only.
            names = list(models) if number == case.rounds else ["global"]
            record["accuracy"] = {name: _by_class(app, models[name], held_out) for name in names}
        rounds.append(record)
    case.file.write_text(json.dumps({"name": case.name, "seed": case.seed, "rounds": rounds}))


def costs(real: Mapping[str, Any]) -> dict[ClientId, DeviceCost]:
    """What the devices had learned at the end of a real run, with the memory that they had."""
    return {
        ClientId(name): from_plain(LearnedCost, plain).cost(
            median(item["budget_bytes"] for item in reports_of(real, name))
        )
        for name, plain in real["costs"].items()
    }


def server_seconds(real: Mapping[str, Any]) -> float:
    """What a round takes besides the slowest device, in the median of a real run."""
    longest: dict[int, float] = {}
    for item in real["reports"]:
        told = item["report"]
        number = told["round_number"]
        longest[number] = max(longest.get(number, 0.0), total_seconds(told))
    lasted = dict(enumerate(round_seconds(real), start=1))
    return median(lasted[number] - seconds for number, seconds in longest.items())


def deal(train: Raw, case: Case) -> dict[ClientId, Raw]:
    """The examples of each device, by name, weakest first."""
    if not case.is_held:
        parts = deal_out(train, len(SIZES), ALPHA, case.seed)
        return dict(zip(map(ClientId, SIZES), parts.values(), strict=True))
    rare = np.isin(train.labels, HELD_BY_WEAK)
    common = deal_out(_only(train, ~rare), len(SIZES), ALPHA, case.seed)
    weak = deal_out(_only(train, rare), _WEAK, 100.0, case.seed)
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


def _spec(case: Case) -> RunSpec:
    way, more = _HELD_WAYS.get(case.name, (case.name, {}))
    method, settings = WAYS[way]
    return RunSpec(
        name=case.name,
        seed=case.seed,
        model=MODEL,
        data=DATA,
        method=MethodSpec(name=method, settings={**settings, **more}),
        cohort=CohortSpec(size=len(SIZES)),
        stop=StopSpec(rounds=case.rounds),
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
