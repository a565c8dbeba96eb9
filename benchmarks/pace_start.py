"""The pruned model that both kinds of pruning begin with: PruneFL's initial pruning, simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.fashion_data import DATA, examples_of
from benchmarks.published import round_time
from coppice.app import make_app
from coppice.cohort import CohortSpec
from coppice.data import Raw
from coppice.domain import ClientId, MethodSpec, ModelSpec, RunSpec, StopSpec, Workload
from coppice.masks import prunable_names
from coppice.model_file import ModelInfo, save_model
from coppice.simulation import Simulation
from coppice.tree import to_plain

MODEL = ModelSpec(name="conv2")
_MOST_TASKS = 1000


def pruned_start(
    parts: Mapping[ClientId, Raw], training: Mapping[str, Any], seed: int, file: Path
) -> None:
    """Prune at the strongest device, which is the last, and keep the model."""
    bare = Workload(name="any", model=MODEL, data=DATA, method=MethodSpec(name="fedavg"))
    names = prunable_names(make_app(bare).model())
    settings = {
        **training,
        "mask_scope": "global",
        "initial_client": list(parts)[-1],
        "initial_interval": 10,
        "initial_passes": 300,
        # One and a half times what guessing gets, as published.
        "initial_accuracy": 1.5 / len(DATA.classes),
        "round_time": to_plain(round_time("conv2", names)),
    }
    spec = RunSpec(
        name="start",
        seed=seed,
        model=MODEL,
        data=DATA,
        method=MethodSpec(name="prunefl", settings=settings),
        cohort=CohortSpec(size=len(parts)),
        stop=StopSpec(rounds=_MOST_TASKS),
    )
    simulation = Simulation(spec, make_app(spec), examples_of(parts))
    number = 0
    while simulation.state.initial is not None:
        number += 1
        done = simulation.run_round(number)
        print(f"initial pruning, task {number}: density {done.metrics['density']:.3f}", flush=True)
    info = ModelInfo(
        workload=spec.workload,
        round_number=number,
        metrics={},
        written_by="python -m benchmarks run pace",
    )
    save_model(file, simulation.models["global"], info)
