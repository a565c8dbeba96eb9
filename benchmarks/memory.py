"""Peak memory of training steps, dense, masked and sparse, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.kernels import SHAPES, Bench
from benchmarks.peak import peak_bytes
from coppice.app import bare_model, build_model
from coppice.kernels.placement import Placement
from coppice.sparse import Mask, SparseTensor
from coppice.table import table
from coppice.tensors import assign, dense_tensors, masks_of
from coppice.training import Sgd, train
from server.printing import size

DESCRIPTION = "peak memory of training with sparse kernels, relative to dense"

#: Sparse as far as it goes, and as a device does it, which measures first what is faster.
_WAYS = ("masked", "sparse", "chosen")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    models = ["conv2", "vgg11", "resnet18"]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=models)
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.5, 0.2, 0.1, 0.05])
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes of a case; the least counts"
    )


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The table. Returns a case for each of its lines."""
    cases = []
    for name in arguments.models:
        momentum, repeats = arguments.momentum, arguments.repeats
        dense = _least_peak(name, 1.0, "dense", momentum, repeats)
        for density in arguments.densities:
            peaks = {way: _least_peak(name, density, way, momentum, repeats) for way in _WAYS}
            cases.append({"model": name, "density": density, "dense_bytes": dense, **peaks})
    print("peak above what the process holds before it gets the model\n")
    print(
        table(
            ("model", "density", "dense", *_WAYS, *(f"{way} / dense" for way in _WAYS)),
            [
                (case["model"], case["density"], size(case["dense_bytes"]),
                 *(size(case[way]) for way in _WAYS),
                 *(f"{case[way] / case['dense_bytes']:.2f}" for way in _WAYS))
                for case in cases
            ],
        )
    )  # fmt: skip
    return cases


def _least_peak(name: str, density: float, way: str, momentum: float, repeats: int) -> int:
    # A process each: what one step leaves behind in the allocator would serve the next. The least
    # of them, for that is what is needed: the rest is how the allocator happened to be cut up.
    peaks = []
    context = multiprocessing.get_context("spawn")
    for _ in range(repeats):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks.append(pool.submit(_peak, name, density, way, momentum).result())
    return min(peaks)


def _peak(name: str, density: float, way: str, momentum: float) -> int:
    torch.set_num_threads(1)
    # What torch sets up at its first step is no model's.
    warm = Bench("mlp")
    weights = warm.random(0.1)
    _train(warm, weights, "sparse", momentum)
    _train(warm, weights, "masked", momentum)
    bench = Bench(name)
    weights = bench.random(density)
    if way == "dense":
        weights = dense_tensors(weights)
    # As they come off the wire: without what masks keep once it was computed.
    weights = {
        name: SparseTensor(Mask(item.mask.shape, item.mask.packed), item.values)
        if isinstance(item, SparseTensor)
        else item
        for name, item in weights.items()
    }
    return peak_bytes(lambda: _train(bench, weights, way, momentum))


def _train(bench: Bench, weights: Any, way: str, momentum: float) -> None:
    sgd = Sgd(1e-6, steps=4, epochs=None, batch_size=bench.batch_size, momentum=momentum)
    if way in ("sparse", "chosen"):
        placement = Placement(bare_model(bench.app, 0))
        batch = bench.local.train.inputs[: bench.batch_size]
        placement.assign(weights, batch if way == "chosen" else None)
        model, masks = placement.model, placement.masks
    else:
        model = build_model(bench.app, 0)
        assign(model, weights)
        masks = masks_of(weights)
    train(model, bench.local, sgd, masks=masks)
