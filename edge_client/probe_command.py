"""`fedclient probe`: what training a model costs this device, measured, as tables."""

from __future__ import annotations

import json
import math
import os
from argparse import Namespace
from dataclasses import asdict
from typing import Any

# Before torch is imported, which reads it (see edge_client.join).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from coppice.app import Classification
from coppice.batch_parts import part_size
from coppice.data import Examples
from coppice.domain import ClientId, DataSpec, MethodSpec, ModelSpec, WireSpec
from coppice.layer_fit import LayerFit
from coppice.method import Local, client_half
from coppice.rehearsal import LAYER_DENSITIES
from coppice.table import table
from edge_client.console import Console, size_text
from edge_client.limits import memory_budget
from edge_client.meter import Meter, capability
from edge_client.probe import NoPrivate, Probe, Prober
from edge_client.processor import lasting_clock

_SEED = 0


def probe(arguments: Namespace) -> int:
    """Measure, and print the tables or JSON. Returns the exit code."""
    console = Console()
    has = capability(arguments.threads)
    torch.set_num_threads(has.num_threads)
    if not arguments.json:
        console.say(
            "device",
            f"{size_text(has.memory_bytes)} of memory to use, by {has.memory_bound_by}; "
            f"{has.cores:.3g} cores; threads: {has.num_threads}",
        )
        console.say("model", f"{arguments.model}, batches of {arguments.batch_size}")
    local = _local(arguments)
    settings = {"local_steps": 1, "batch_size": arguments.batch_size}
    half = client_half(MethodSpec(name="fedavg", settings=settings))
    clock = lasting_clock(local.capability.num_threads)
    prober = Prober(half, local, WireSpec(), lambda: memory_budget().budget_bytes, clock)

    def tell(text: str) -> None:
        if not arguments.json:
            console.say("done", text)

    found = prober.probe(tell)
    assert found is not None
    if arguments.json:
        print(json.dumps(_plain(found), indent=2))
    else:
        print(f"\n{_layers(found)}\n\n{_rounds(found)}")
    return 0


def _local(arguments: Namespace) -> Local:
    """Random examples: what a step takes does not depend on what they show."""
    shape, classes = arguments.input_shape, arguments.classes
    data = DataSpec(input_shape=shape, classes=tuple(map(str, range(classes))))
    generator = torch.Generator().manual_seed(_SEED)
    count = arguments.batch_size
    examples = Examples(
        torch.randn(count, *shape, generator=generator),
        torch.randint(classes, (count,), generator=generator),
    )
    return Local(
        client_id=ClientId("probe"),
        app=Classification(ModelSpec(name=arguments.model), data),
        seed=_SEED,
        train=examples,
        held_out=examples,
        capability=capability(arguments.threads),
        private=NoPrivate(),
        meter=Meter(lambda steps: None),
        generator=generator,
        kernels=not arguments.no_kernels,
    )


def _layers(found: Probe) -> str:
    if not found.layers:
        return "layers: all dense, there are no kernels (`fedclient doctor` says why)"
    header = ("layer", "weights", *(f"ms at {d:g}" for d in LAYER_DENSITIES), "dense ms",
              "dense from", "fit")  # fmt: skip
    return table(header, [_layer(name, fit) for name, fit in found.layers.items()])


def _layer(name: str, fit: LayerFit) -> tuple[object, ...]:
    cost, size = fit.cost, fit.cost.kept[-1]
    densities = torch.linspace(0, 1, 201).numpy()
    dense = densities[cost.is_dense((size * densities).astype(int))]
    times = cost.sparse((size * torch.tensor(LAYER_DENSITIES).numpy()).astype(int))
    return (
        name.removesuffix(".weight"),
        size,
        *(f"{1e3 * seconds:.2f}" for seconds in times),
        f"{1e3 * cost.dense_seconds:.2f}",
        f"{dense[0]:.2f}" if dense.size else "never",
        f"line, within {fit.max_relative_residual:.0%}" if fit.is_line else "table",
    )


def _rounds(found: Probe) -> str:
    """What was rehearsed, beside what the layers' costs and the memory model say of it."""
    rows = [
        (
            f"{item.density:g}",
            f"{1e3 * item.seconds_per_step:.1f}",
            f"{1e3 * found.seconds_per_step(item.ones):.1f}",
            size_text(item.peak_bytes),
            size_text(round(found.peak_bytes(item.ones))),
        )
        for item in found.rehearsals
    ]
    header = ("density", "ms a step", "predicted", "peak memory", "predicted")
    densest = found.rehearsals[-1].density
    text = f"all densities fit the {size_text(found.budget_bytes)} of memory"
    if densest < 1:
        text = (
            f"densities above {densest:g} were not tried: they might need more than the "
            f"{size_text(found.budget_bytes)} of memory"
        )
    if (batch := found.batch).parts > 1:
        size = part_size(batch.examples, batch.parts)
        text += (
            f"\nbatches are split into {batch.parts} parts of up to {size} examples, one after the "
            "other: larger ones might need more memory than that"
        )
    return f"{table(header, rows)}\n\n{text}"


def _plain(found: Probe) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "budget_bytes": found.budget_bytes,
        "parts": found.batch.parts,
        "step_seconds": found.time.step_seconds,
        "max_relative_residual": number(found.max_relative_residual),
        "layers": {
            name: {
                **asdict(fit.cost),
                "is_line": fit.is_line,
                "r_squared": number(fit.r_squared),
                "max_relative_residual": number(fit.max_relative_residual),
            }
            for name, fit in found.layers.items()
        },
        "rounds": [
            {
                **asdict(item),
                "predicted_seconds_per_step": found.seconds_per_step(item.ones),
                "predicted_peak_bytes": found.peak_bytes(item.ones),
            }
            for item in found.rehearsals
        ],
        "memory": asdict(found.memory),
    }
