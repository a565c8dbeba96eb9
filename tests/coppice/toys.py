"""A small app, small data and a device around them, for tests of what learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coppice.app import App
from coppice.data import Examples
from coppice.domain import Capability, ClientId
from coppice.errors import TaskAbandoned
from coppice.method import Local
from coppice.simulated_device import MemoryPrivate

CLASSES = 3
FEATURES = 4
CAPABILITY = Capability(memory_bytes=2**30, num_threads=1, machine="toy")


class ToyApp(App):
    """Classification by any module; the loss is the mean cross entropy."""

    def __init__(self, make_model: Callable[[], nn.Module], held_out: float = 0.25) -> None:
        self.held_out = held_out
        self._make_model = make_model

    def model(self) -> nn.Module:
        return self._make_model()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        accuracy = float((outputs.argmax(dim=1) == targets).float().mean())
        return {"accuracy": accuracy, "loss": float(self.loss(outputs, targets))}

    def load(self, path: Path) -> Examples:
        raise AssertionError("a toy has no files")


def linear() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def two_layers() -> nn.Module:
    """No gradient of it is ever exactly 0."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def with_buffers() -> nn.Module:
    """Batch norm has float buffers and an integer one; dropout draws from torch's generator."""
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES)
    )


def examples(count: int, seed: int = 0) -> Examples:
    """Points about one centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, FEATURES, generator=generator)
    return Examples(noise + 4.0 * nn.functional.one_hot(targets, FEATURES), targets)


class CountingMeter:
    """Counts steps; abandons the task after `limit` of them."""

    def __init__(self, limit: int | None = None) -> None:
        self.steps = 0
        self._limit = limit

    def step_done(self) -> None:
        self.steps += 1
        if self.steps == self._limit:
            raise TaskAbandoned


def local(app: App, train: Examples, **fields: Any) -> Local:
    """A device with these examples; `seed` and any field of Local may be given."""
    needed: dict[str, Any] = {
        "client_id": ClientId("toy"),
        "held_out": train.subset(torch.arange(min(2, len(train)))),
        "capability": CAPABILITY,
        "private": MemoryPrivate(),
        "meter": CountingMeter(),
        "seed": 0,
        "generator": torch.Generator().manual_seed(fields.get("seed", 0)),
    }
    return Local(app=app, train=train, **(needed | fields))
