"""Sparse kernels: a whole training step of a model at many densities, relative to the dense one."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coppice.app import App, build_model, make_app
from coppice.data import Examples
from coppice.domain import Capability, ClientId, DataSpec, MethodSpec, ModelSpec, Workload
from coppice.kernels.choice import inputs_of, measure
from coppice.kernels.library import library, trouble
from coppice.kernels.placement import Placement, sparse_layers
from coppice.masks import masked, prunable_names
from coppice.method import Local
from coppice.model_file import load_weights
from coppice.simulated_device import MemoryPrivate
from coppice.sparse import Mask
from coppice.table import table
from coppice.tensors import Weights, assign, buffers_of, masks_of, parameters_of
from coppice.training import Sgd, train

DESCRIPTION = "what a training step takes with sparse kernels, relative to dense"

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
#: Input shape, classes and batch size, as published for each model.
SHAPES: Mapping[str, tuple[tuple[int, ...], int, int]] = {
    "conv2": ((1, 28, 28), 62, 20),
    "vgg11": ((3, 32, 32), 10, 20),
    "resnet18": ((3, 32, 32), 10, 16),
    "mlp": ((784,), 10, 20),
}
_STEPS_OF_TURN = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument(
        "--models", nargs="+", choices=SHAPES, default=["conv2", "vgg11", "resnet18"]
    )
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of measuring each case")
    parser.add_argument(
        "--masks", type=Path, nargs="+", default=[], metavar="FILE",
        help="models of runs: their masks, too, instead of only random ones (conv2)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both tables. Returns a case for each of their lines."""
    if library() is None:
        raise SystemExit(f"there are no kernels: {trouble()}")
    torch.set_num_threads(arguments.threads)
    cases = []
    for name in arguments.models:
        bench = Bench(name)
        masks = [(f"{density:g}", bench.random(density)) for density in arguments.densities]
        if name == "conv2":
            masks += [(path.stem, bench.of_file(path)) for path in arguments.masks]
        for label, weights in masks:
            cases.append(bench.case(label, weights, arguments.seconds))
            print(_line(cases[-1]), flush=True)
    print()
    print(table(_COLUMNS, [_row(case) for case in cases]))
    print()
    print(table(_LAYER_COLUMNS, [row for case in cases for row in _layer_rows(case)]))
    return cases


class Unmetered:
    """Counts nothing."""

    def step_done(self) -> None:
        """A step."""


@dataclass
class Bench:
    """One model of the registry, with random images."""

    name: str
    workload: Workload = field(init=False)
    app: App = field(init=False)
    local: Local = field(init=False)
    batch_size: int = field(init=False)

    def __post_init__(self) -> None:
        shape, classes, self.batch_size = SHAPES[self.name]
        data = DataSpec(input_shape=shape, classes=tuple(map(str, range(classes))))
        model, method = ModelSpec(name=self.name), MethodSpec(name="fedavg")
        self.workload = Workload(name="any", model=model, data=data, method=method)
        self.app = make_app(self.workload)
        count = self.batch_size * _STEPS_OF_TURN
        examples = Examples(torch.randn(count, *shape), torch.randint(classes, (count,)))
        self.local = Local(
            client_id=ClientId("any"),
            app=self.app,
            seed=0,
            train=examples,
            held_out=examples,
            capability=Capability(memory_bytes=2**30, num_threads=1, machine="any"),
            private=MemoryPrivate(),
            meter=Unmetered(),
            generator=torch.Generator(),
        )

    def model(self) -> nn.Module:
        """A fresh one."""
        return build_model(self.app, 0)

    def random(self, density: float) -> Weights:
        """The model's weights on random masks, of one density in all layers."""
        model, generator = self.model(), torch.Generator().manual_seed(0)
        masks = {
            name: Mask.of(
                torch.rand(model.get_parameter(name).shape, generator=generator) < density
            )
            for name in prunable_names(model)
        }
        return {**masked(parameters_of(model), masks), **buffers_of(model)}

    def of_file(self, path: Path) -> Weights:
        """The model's weights on the masks of a file; random ones where the shapes differ."""
        model = self.model()
        masks = dict(masks_of(load_weights(path)))
        for name in prunable_names(model):
            shape = tuple(model.get_parameter(name).shape)
            if name in masks and masks[name].shape != shape:
                masks[name] = Mask.of(torch.rand(shape) < masks[name].density)
        return {**masked(parameters_of(model), masks), **buffers_of(model)}

    def case(self, label: str, weights: Weights, seconds: float) -> dict[str, Any]:
        """Dense, masked, all layers sparse and the measured choice, timed in turns."""
        ways = {
            "dense": self._turn(self._dense(weights), {}),
            "masked": self._turn(self._dense(weights), masks_of(weights)),
            "sparse": self._turn(self._sparse(weights), {}),
        }
        chosen = Placement(self.model())
        chosen.assign(weights, self.local.train.inputs[: self.batch_size])
        ways["chosen"] = self._turn(chosen.model, chosen.masks)
        times = _in_turns(ways, seconds)
        kept = sum(mask.count for mask in masks_of(weights).values())
        return {
            "model": self.name,
            "masks": label,
            "density": kept / sum(mask.size for mask in masks_of(weights).values()),
            "dense_seconds": statistics.median(times["dense"]),
            "sparse_layers": [name for name, _ in sparse_layers(chosen.model)],
            # Of each the one that was disturbed least.
            "shortest": min(times["chosen"]) / min(times["dense"]),
            "ratios": {name: _ratio(times[name], times["dense"]) for name in ways},
            "layers": self._layers(weights),
        }

    def _dense(self, weights: Weights) -> nn.Module:
        model = self.model()
        assign(model, weights)
        return model

    def _sparse(self, weights: Weights) -> nn.Module:
        placement = Placement(self.model())
        # Whole, so that it shows what the kernels do.
        placement.assign(weights, None, whole=True)
        return placement.model

    def _layers(self, weights: Weights) -> dict[str, dict[str, float]]:
        model = self._sparse(weights)
        layers = dict(sparse_layers(model))
        inputs = inputs_of(model, layers, self.local.train.inputs[: self.batch_size])
        found = {}
        for name, layer in layers.items():
            curve = measure(layer, inputs[name])
            found[name] = {
                "dense": curve.dense,
                "sparse": curve.sparse(layer.mask.count),
                "crossover": curve.crossover / layer.mask.size,
            }
        return found

    def _turn(self, model: nn.Module, masks: Mapping[str, Mask]) -> Callable[[], object]:
        sgd = Sgd(1e-6, steps=_STEPS_OF_TURN, epochs=None, batch_size=self.batch_size)
        return lambda: train(model, self.local, sgd, masks=masks)


def _in_turns(ways: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each turn, after one that does not count; at least five."""
    # Of one thread the processor's time: what else the machine does is not in it.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["dense"]) < 5:
        for name, way in ways.items():
            began = clock()
            way()
            times[name].append((clock() - began) / _STEPS_OF_TURN)
    return times


def _ratio(times: Sequence[float], dense: Sequence[float]) -> tuple[float, float, float]:
    """Median of the paired ratios, and the 10th and 90th of a hundred."""
    ratios = sorted(one / other for one, other in zip(times, dense, strict=True))
    at = len(ratios) // 10
    return statistics.median(ratios), ratios[at], ratios[-1 - at]


_COLUMNS = (
    "model", "masks", "density", "dense ms", "masked", "sparse", "chosen", "10-90 %",
    "shortest", "sparse layers",
)  # fmt: skip
_LAYER_COLUMNS = ("model", "masks", "layer", "dense ms", "sparse ms", "sparse / dense",
    "crossover",
)  # fmt: skip


def _row(case: Mapping[str, Any]) -> tuple[object, ...]:
    ratios = case["ratios"]
    _, low, high = ratios["chosen"]
    return (
        case["model"],
        case["masks"],
        f"{case['density']:.3f}",
        f"{1e3 * case['dense_seconds']:.1f}",
        *(f"{ratios[name][0]:.2f}" for name in ("masked", "sparse", "chosen")),
        f"{low:.2f}-{high:.2f}",
        f"{case['shortest']:.2f}",
        len(case["sparse_layers"]),
    )


def _layer_rows(case: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            case["model"],
            case["masks"],
            name.removesuffix(".weight"),
            f"{1e3 * seconds['dense']:.2f}",
            f"{1e3 * seconds['sparse']:.2f}",
            f"{seconds['sparse'] / seconds['dense']:.2f}",
            # 0: dense at any density; 1: sparse at any.
            f"{min(max(0.0, seconds['crossover']), 1.0):.2f}",
        )
        for name, seconds in case["layers"].items()
    ]


def _line(case: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {ratio[0]:.2f}" for name, ratio in case["ratios"].items())
    milliseconds = 1e3 * case["dense_seconds"]
    return f"{case['model']} at {case['masks']}: {shown} of {milliseconds:.1f} ms"
