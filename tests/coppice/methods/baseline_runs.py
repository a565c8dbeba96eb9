"""Small runs of the methods that PruneFL is compared with, and what their tests look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coppice.cohort import CohortSpec
from coppice.domain import (
    AppSpec,
    Capability,
    ClientId,
    MethodSpec,
    Participant,
    RunSpec,
    StopSpec,
    WireSpec,
)
from coppice.masks import sparse_weights
from coppice.method import Update
from coppice.simulation import Simulation
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights
from tests.coppice.toys import CLASSES, FEATURES, ToyApp, examples, with_buffers

SEED = 3

#: Prunable weights of `with_buffers`.
PRUNABLE = {"0.weight": FEATURES * 8, "4.weight": 8 * CLASSES}

_TRAINING: Mapping[str, Any] = {"local_epochs": 1, "batch_size": 5}


def simulation(
    method: str,
    *,
    rounds: int = 6,
    seed: int = SEED,
    warm_start: Weights | None = None,
    up: Any = "float32",
    **settings: Any,
) -> Simulation:
    """Three clients with a small model that has two prunable layers and buffers."""
    spec = RunSpec(
        name="toy",
        seed=seed,
        app=AppSpec(name="toy.py", digest="0" * 64),
        method=MethodSpec(name=method, settings={**_TRAINING, **settings}),
        cohort=CohortSpec(size=3),
        stop=StopSpec(rounds=rounds),
        wire=WireSpec(up=up),
    )
    clients = {ClientId(f"c{number}"): examples(12 + number, seed=number) for number in range(3)}
    return Simulation(spec, ToyApp(with_buffers), clients, warm_start=warm_start)


class TwoLayers(nn.Module):
    """Weights to reckon with by hand: `first` has four, `second` has two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
            self.first.bias.copy_(torch.tensor([0.25, 0.0]))
            self.second.weight.copy_(torch.tensor([[-4.0, 0.125]]))


def update(
    weights: Weights,
    changes: Mapping[str, Sequence[float]] | None = None,
    num_examples: int = 1,
) -> Update:
    """An answer that changes these parameters, given in the order of their ones, and no other."""
    delta: dict[str, Tensor | SparseTensor] = {}
    for name, item in weights.items():
        values = item.values if isinstance(item, SparseTensor) else item
        change = torch.tensor((changes or {}).get(name, [0.0] * values.numel()))
        delta[name] = SparseTensor(item.mask, change) if isinstance(item, SparseTensor) else change
    return Update(ClientId("c"), {"delta": delta}, num_examples)


def participant(name: str, memory_bytes: int = 2**30) -> Participant:
    return Participant(ClientId(name), Capability(memory_bytes, 1, "toy"), 10)


def ones(weights: Weights) -> dict[str, list[int]]:
    """The kept entries of every sparse tensor, row-major."""
    return {name: item.mask.positions.tolist() for name, item in sparse_weights(weights).items()}


def counts(weights: Weights) -> dict[str, int]:
    return {name: item.mask.count for name, item in sparse_weights(weights).items()}


def bits(shape: tuple[int, ...], *kept: int) -> Mask:
    flat = torch.zeros(shape, dtype=torch.bool)
    flat.view(-1)[list(kept)] = True
    return Mask.of(flat)
