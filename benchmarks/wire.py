"""Sparse payloads: bytes against formulas and entropy, speed against a memory copy, peak memory."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.peak import peak_bytes
from coppice.aggregation import WeightedMean
from coppice.sparse import Mask, SparseTensor
from coppice.table import table
from coppice.tensors import Payload, spec_of
from coppice.wire.header import padded
from coppice.wire.header_reader import read_header
from coppice.wire.payload import check, decode, encode
from server.printing import size

DESCRIPTION = "sparse payloads: bytes, distance from entropy, speed and peak memory"

_DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
_SPEED_DENSITY = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=9, help="of each timed operation")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both tables. Returns a case for each of their lines."""
    sizes = [_sizes(arguments.weights, density) for density in _DENSITIES]
    print(f"{arguments.weights} weights, masks drawn at random; bytes\n")
    columns = (
        "density", "header", "values", "mask", "encoding", "entropy", "mask / entropy",
        "fixed-width indices",
    )  # fmt: skip
    rows = [
        (case["density"], case["header_bytes"], case["values_bytes"], case["mask_bytes"],
         case["encoding"], case["entropy_bytes"], case["mask_bytes"] / case["entropy_bytes"],
         case["fixed_width_bytes"])
        for case in sizes
    ]  # fmt: skip
    print(table(columns, rows))
    speeds = _speeds(arguments.weights, arguments.repeats)
    print(f"\nat density {_SPEED_DENSITY}, one thread, medians of {arguments.repeats}\n")
    print(
        table(
            ("operation", "seconds", "times a copy of the values", "peak memory"),
            [
                (case["operation"], case["seconds"], f"{case['times_copy']:.1f}",
                 size(case["peak_bytes"]))
                for case in speeds
            ],
        )
    )  # fmt: skip
    return [*sizes, *speeds]


def _tensor(weights: int, density: float, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    mask = Mask.of(torch.rand(weights, generator=generator) < density)
    return SparseTensor(mask, torch.randn(mask.count, generator=generator))


# ---- bytes ---------------------------------------------------------------------------------------


def _sizes(weights: int, density: float) -> dict[str, Any]:
    """What a tensor's payload consists of; ends the program where a formula does not hold."""
    item = _tensor(weights, density)
    mask, values = item.mask, 4 * item.mask.count
    alone = encode({"delta": {"w": item}}, known={mask.fingerprint})
    inline = encode({"delta": {"w": item}})
    (entry,) = (header := read_header(memoryview(inline), None)).entries
    mask_bytes = entry.length - values
    _require(len(inline), header.start + padded(values + mask_bytes))
    _require(len(alone), read_header(memoryview(alone), None).start + padded(values))
    if entry.encoding == "bitmap":
        _require(mask_bytes, -(-weights // 8))
    share = mask.density
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return {
        "density": density,
        "ones": mask.count,
        "header_bytes": header.start,
        "values_bytes": values,
        "mask_bytes": mask_bytes,
        "encoding": entry.encoding,
        "entropy_bytes": math.ceil(weights * entropy / 8),
        "fixed_width_bytes": math.ceil(mask.count * math.ceil(math.log2(weights)) / 8),
    }


def _require(found: int, expected: int) -> None:
    if found != expected:
        raise SystemExit(f"{found} bytes on the wire; the formula says {expected}")


# ---- speed and memory ----------------------------------------------------------------------------

#: An operation, ready to be carried out again and again.
_Operation = Callable[[], object]


def _operations(weights: int) -> Mapping[str, Callable[[], _Operation]]:
    """What is measured, each with its own preparation."""
    item = _tensor(weights, _SPEED_DENSITY)
    payload: Payload = {"delta": {"w": item}}
    known = {item.mask.fingerprint: item.mask}

    def inline() -> bytearray:
        return encode(payload)

    def alone() -> bytearray:
        return encode(payload, known=known)

    def fold(*, other_masks: bool) -> _Operation:
        mean = WeightedMean()
        mean.add({"w": item}, 1.0)
        if other_masks:
            mean.add({"w": _tensor(weights, _SPEED_DENSITY, seed=1)}, 1.0)
        return lambda: mean.add({"w": item}, 1.0)

    generator = torch.Generator()
    return {
        "copy the values": lambda: item.values.clone,
        "encode values only": lambda: alone,
        "encode with the mask": lambda: inline,
        "encode values only, int8": lambda: (
            lambda: encode(payload, known=known, coding={"delta": "int8"}, generator=generator)
        ),
        "decode values only": lambda: _with(alone(), lambda data: decode(data, None, known)),
        "decode with the mask": lambda: _with(inline(), decode),
        "check values only": lambda: _with(alone(), lambda data: check(data, spec_of(payload))),
        "fold, one mask": lambda: fold(other_masks=False),
        "fold, unlike masks": lambda: fold(other_masks=True),
    }


def _with(data: bytearray, operation: Callable[[bytearray], object]) -> _Operation:
    return lambda: operation(data)


def _speeds(weights: int, repeats: int) -> list[dict[str, Any]]:
    names = list(_operations(1000))
    context = multiprocessing.get_context("spawn")
    found = []
    for name in names:
        # A process each: what one operation leaves behind is not the next one's to use.
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found.append(pool.submit(_measure, name, weights, repeats).result())
    return found


def _measure(name: str, weights: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    operations = _operations(weights)
    copy, operation = operations["copy the values"](), operations[name]()
    # The first time, with all that is found once and kept, such as the positions of a mask's ones.
    peak = peak_bytes(operation)
    # In turns, for what else the machine does to disturb both alike.
    pairs = [(_seconds(copy), _seconds(operation)) for _ in range(repeats)]
    return {
        "operation": name,
        "seconds": statistics.median(seconds for _, seconds in pairs),
        "times_copy": statistics.median(seconds / copied for copied, seconds in pairs),
        "peak_bytes": peak,
    }


def _seconds(operation: _Operation) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start
