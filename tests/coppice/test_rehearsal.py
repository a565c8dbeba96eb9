"""Rounds and layers that are tried on random masks, before there are any real ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from coppice.app import bare_model
from coppice.domain import MethodSpec, TaskKind
from coppice.kernels import choice
from coppice.kernels.placement import Placement
from coppice.method import Local, Task, client_half
from coppice.rehearsal import LAYER_DENSITIES, random_weights, time_layers
from coppice.sparse import SparseTensor
from coppice.tensors import weight_group
from tests.coppice.kernels.nets import Twice, convolutions, images
from tests.coppice.toys import CountingMeter, ToyApp, local

NAMES = ["0.weight", "3.weight", "7.weight", "9.weight"]
TRAINING = {"local_steps": 50, "batch_size": 4}


def ticks() -> itertools.count[int]:
    return itertools.count()


def device(**fields: object) -> Local:
    return local(ToyApp(convolutions), images(12), kernels=True, **fields)


def test_random_weights_are_of_the_whole_model_and_train() -> None:
    with torch.device("meta"):
        bare = convolutions()
    weights = random_weights(bare, NAMES, 0.5, torch.Generator().manual_seed(0))
    assert weights.keys() == bare.state_dict().keys()
    for name, item in weights.items():
        assert isinstance(item, SparseTensor) == (name in NAMES)
    placement = Placement(bare)
    placement.assign(weights, None)
    outputs = bare(images(4).inputs)
    assert outputs.isfinite().all()
    assert outputs.std() > 1e-3


def test_a_users_own_values_stay_where_there_is_no_mask() -> None:
    model = convolutions()
    weights = random_weights(model, NAMES, 0.5, torch.Generator())
    bias = weights["0.bias"]
    assert isinstance(bias, torch.Tensor)
    assert torch.equal(bias, model.get_parameter("0.bias"))


@pytest.mark.parametrize("method", ["fedavg", "prunefl"])
def test_a_rehearsed_round_is_one_of_its_steps_and_answers_as_a_real_one(method: str) -> None:
    half = client_half(MethodSpec(name=method, settings=TRAINING))
    meter = CountingMeter()
    update = half.rehearse(device(meter=meter), 0.25, steps=3)
    assert update is not None
    assert update.steps == meter.steps == 3
    delta = weight_group(update.payload, "delta")
    masked = {name: item for name, item in delta.items() if isinstance(item, SparseTensor)}
    assert list(masked) == NAMES
    kept = sum(item.mask.count for item in masked.values())
    assert 0.15 < kept / sum(item.mask.size for item in masked.values()) < 0.35
    assert update.payload["buffers"]


def test_what_a_run_keeps_dense_is_dense_in_the_rehearsal() -> None:
    settings = {**TRAINING, "keep_dense": ["9.weight"]}
    half = client_half(MethodSpec(name="prunefl", settings=settings))
    update = half.rehearse(device(), 0.25, steps=1)
    assert update is not None
    assert isinstance(weight_group(update.payload, "delta")["9.weight"], torch.Tensor)
    assert "9.weight" not in dict(half.layer_costs(device(), iter(range(10**6)).__next__))


def test_without_examples_there_is_nothing_to_rehearse() -> None:
    half = client_half(MethodSpec(name="fedavg", settings=TRAINING))
    none = local(ToyApp(convolutions), images(0), kernels=True)
    assert half.rehearse(none, 0.1, steps=1) is None
    assert list(half.layer_costs(none, iter(range(10)).__next__)) == []


def test_without_kernels_no_layer_has_a_cost_of_its_own() -> None:
    half = client_half(MethodSpec(name="fedavg", settings=TRAINING))
    dense = local(ToyApp(convolutions), images(8), kernels=False)
    assert list(half.layer_costs(dense, iter(range(10)).__next__)) == []


def test_every_layer_that_is_used_is_timed_at_every_density() -> None:
    placement = Placement(bare_model(ToyApp(Twice), 0))
    names = ["into.weight", "again.weight", "unused.weight", "out.weight"]
    calls = ticks()

    def clock() -> float:
        return float(next(calls))

    found = dict(
        time_layers(placement, names, images(4).inputs, torch.Generator().manual_seed(0), clock)
    )
    assert found.keys() == set(names) - {"unused.weight"}
    for fit in found.values():
        # Each pass takes one tick.
        assert fit.cost.dense_seconds == 1.0
        assert fit.cost.sparse_seconds[-1] == pytest.approx(1.0)
    passes = (choice._PASSES + 1) * (len(LAYER_DENSITIES) + 1)
    assert next(calls) == 2 * passes * len(found)


def test_of_a_large_layer_the_time_of_all_rows_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_LARGEST", 4 * 64)
    placement = Placement(bare_model(ToyApp(Twice), 0))
    calls = ticks()
    timed = time_layers(
        placement, ["into.weight"], images(4).inputs, torch.Generator(), lambda: float(next(calls))
    )
    ((_, fit),) = timed
    # 4 of 16 rows took one tick.
    assert fit.cost.dense_seconds == 4.0
    assert fit.cost.kept[-1] == 16 * 64


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of examples that a model sees at a time from now on."""
    sizes: list[int] = []
    forward: Any = nn.Sequential.forward

    def noted(self: nn.Sequential, input: torch.Tensor) -> torch.Tensor:
        sizes.append(len(input))
        outputs: torch.Tensor = forward(self, input)
        return outputs

    monkeypatch.setattr(nn.Sequential, "forward", noted)
    return sizes


def test_nothing_that_a_device_does_in_parts_sees_more_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = client_half(MethodSpec(name="fedavg", settings={**TRAINING, "batch_size": 8}))
    sizes = seen_by(monkeypatch)
    in_parts = device(parts=4)
    assert half.examples_per_step(in_parts) == 8
    update = half.rehearse(in_parts, 0.25, steps=3)
    assert update is not None
    assert update.steps == 3
    list(half.layer_costs(in_parts, iter(range(10**6)).__next__))
    weights = random_weights(convolutions(), NAMES, 0.9, torch.Generator())
    names = {name for name in weights if "running" in name or "num_batches" in name}
    parameters = {name: item for name, item in weights.items() if name not in names}
    payload = {"parameters": parameters, "buffers": {name: weights[name] for name in names}}
    half.evaluate(Task(TaskKind.EVALUATE, 1, payload), replace(in_parts, held_out=images(12)))
    assert max(sizes) == 2


def test_a_step_in_parts_goes_through_a_layer_once_for_each() -> None:
    half = client_half(MethodSpec(name="fedavg", settings=TRAINING))
    whole, in_parts = (
        dict(half.layer_costs(device(parts=parts), iter(range(10**6)).__next__)) for parts in (1, 2)
    )
    # Each pass takes one tick, of however many examples it is.
    for name, fit in whole.items():
        assert in_parts[name].cost.dense_seconds == 2 * fit.cost.dense_seconds


def test_a_batch_is_no_larger_than_what_a_device_has() -> None:
    half = client_half(MethodSpec(name="fedavg", settings={**TRAINING, "batch_size": 50}))
    assert half.examples_per_step(device()) == 12
