"""An evaluating process, or a module's one, and an app and data for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

from coppice import tree
from coppice.app import app_digest
from coppice.domain import AppSpec, Workload
from coppice.methods.fedavg.server import State
from server.evaluation import Evaluator
from tests.server.run_samples import SPEC

PATIENCE_SECONDS = 60.0
WORKLOAD = SPEC.workload

Scene = Callable[[Evaluator], Awaitable[None]]
Run = Callable[[Scene], None]

#: An app whose every part says that it was here, and whose model is as slow as a test needs.
APP = """
import os
import torch
from torch import nn

print("imported", flush=True)
os.system("echo a child of the app")

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        while os.path.exists(HOLD):
            pass
        return inputs.sum(1) * self.w

def model():
    print("model", flush=True)
    return Model()

def loss(outputs, targets):
    return ((outputs - targets) ** 2).mean()

def metrics(outputs, targets):
    print("metrics", flush=True)
    return {"error": METRIC, "count": float(len(targets))}

def load_data(path):
    print("data", flush=True)
    return torch.ones(5, 3), torch.ones(5)
"""


class OwnApp:
    """An app module of its own, with what its run says of it."""

    def __init__(self, folder: Path, metric: str = "0.25") -> None:
        self.hold = folder / "hold"
        self.path = folder / "own.py"
        self.path.write_text(APP.replace("METRIC", metric).replace("HOLD", repr(str(self.hold))))
        spec = AppSpec(name="own.py", digest=app_digest(self.path))
        self.workload: Workload = replace(WORKLOAD, model=None, data=None, app=spec)
        self.state = folder / "own state"
        self.state.write_bytes(tree.save(State({"w": torch.zeros(())}, {})))
        self.data = str(self.path)


def write_data(folder: Path) -> Path:
    """Eight examples for WORKLOAD: six of class 0, two of class 1."""
    path = folder / "test.npz"
    np.savez(path, x=np.ones((8, 3), np.float32), y=np.array([0] * 6 + [1] * 2))
    return path


@contextlib.contextmanager
def evaluating() -> Iterator[Run]:
    """Plays scenes with one evaluator: a new child takes seconds to begin."""
    with asyncio.Runner() as runner:
        evaluator = Evaluator()
        try:
            yield lambda scene: runner.run(asyncio.wait_for(scene(evaluator), PATIENCE_SECONDS))
        finally:
            runner.run(evaluator.close())


def child_of(evaluator: Evaluator) -> psutil.Process:
    assert evaluator._child is not None
    return psutil.Process(evaluator._child.pid)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)
