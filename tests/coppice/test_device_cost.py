"""What a round costs a device: seconds and bytes, sparse and dense."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from coppice import tree
from coppice.batch_parts import BatchMemory
from coppice.device_cost import (
    DeviceCost,
    LayerCost,
    LayerMemory,
    MemoryCost,
    RoundCost,
    StepMemory,
)
from coppice.errors import InvalidPayload
from coppice.kernels.choice import CostCurve

#: Sparse to 500 kept weights, for (1 - 0.1) · (0.1 + 0.9 · 1/2) is just 0.495.
LAYER = LayerCost.line(fixed=0.1, per_weight=0.0009, dense=0.495, size=1000)
MEMORY = LayerMemory(fixed_bytes=100, bytes_per_weight=16, dense_bytes=8000)


def device(**layers: LayerCost) -> DeviceCost:
    return DeviceCost(
        time=RoundCost(round_seconds=2.0, step_seconds=0.5, seconds_per_value=0.001, layers=layers),
        memory=MemoryCost(
            training=StepMemory(base_bytes=1000, layers=dict.fromkeys(layers, MEMORY)),
            importance=StepMemory(base_bytes=3000, layers=dict.fromkeys(layers, MEMORY)),
        ),
        limit_bytes=20_000,
    )


def at(layer: LayerCost, kept: int) -> float:
    return float(layer.seconds(np.array(kept)))


# ---- a layer -------------------------------------------------------------------------------------


def test_layer_is_a_line_up_to_where_dense_is_clearly_faster() -> None:
    assert at(LAYER, 0) == pytest.approx(0.1)
    assert at(LAYER, 200) == pytest.approx(0.28)
    assert at(LAYER, 480) == pytest.approx(0.532)
    assert at(LAYER, 501) == at(LAYER, 1000) == 0.495


def test_layer_turns_dense_where_placement_makes_it_so() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        fixed, per_weight, dense = rng.uniform(0, 1), rng.uniform(0, 2e-3), rng.uniform(0, 2)
        curve = CostCurve(fixed, per_weight, dense)
        layer = LayerCost.line(fixed, per_weight, dense, 1000)
        for kept in range(0, 1001, 50):
            assert bool(layer.is_dense(np.array(kept))) != curve.is_sparse(kept)
            assert at(layer, kept) == pytest.approx(curve.seconds(kept))


def test_table_is_followed_from_point_to_point() -> None:
    layer = LayerCost(kept=(10, 20, 40), sparse_seconds=(1.0, 3.0, 3.0), dense_seconds=100.0)
    assert [at(layer, kept) for kept in (0, 10, 15, 30, 90)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_layer_without_a_sparse_way_is_dense() -> None:
    layer = LayerCost(kept=(), sparse_seconds=(), dense_seconds=0.7)
    assert at(layer, 0) == at(layer, 10) == 0.7
    assert device(w=layer).peak_bytes({"w": 1}) == 11_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"kept": (0,)},
        {"kept": (5, 5)},
        {"kept": (-1, 5)},
        {"sparse_seconds": (2.0, 1.0)},
        {"sparse_seconds": (0.0, math.nan)},
        {"sparse_seconds": (-1.0, 1.0)},
        {"sparse_seconds": (0.0, 1e10)},
        {"dense_seconds": math.inf},
        {"dense_seconds": -1.0},
        {"kept": tuple(range(100)), "sparse_seconds": tuple(map(float, range(100)))},
    ],
)
def test_what_no_layer_costs_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload):
        tree.from_plain(LayerCost, tree.to_plain(LAYER) | wrong)


# ---- a round -------------------------------------------------------------------------------------


def test_steps_pay_for_computing_and_the_round_for_the_link() -> None:
    time = device(a=LAYER, b=LAYER).time
    # 2 + 3 · (0.5 + 0.28 + 0.495) + 0.001 · 1200
    assert time.seconds({"b": 1000, "a": 200}, 3) == pytest.approx(7.025)
    assert time.seconds({"b": 1000, "a": 200}, 0) == pytest.approx(3.2)


def test_steps_within_a_time_are_the_most_there_are() -> None:
    time, ones = device(a=LAYER).time, {"a": 300}
    for steps in (1, 4, 9):
        assert time.steps_within(time.seconds(ones, steps), ones, 9) == steps
    assert time.steps_within(1e6, ones, 9) == 9
    assert time.steps_within(time.seconds(ones, 1) * 0.999, ones, 9) == 0


def test_layer_needs_the_memory_of_the_way_it_is() -> None:
    """Dense because that is faster, it needs more than it would sparse."""
    cost = device(a=LAYER)
    assert cost.peak_bytes({"a": 300}) == 3000 + 100 + 300 * 16
    assert cost.peak_bytes({"a": 502}) == 3000 + 8000


def test_peak_is_that_of_the_larger_step() -> None:
    cost = device(a=LAYER)
    assert cost.memory.peak_bytes({"a": 100}) == 4700
    more = replace(cost.memory.training, base_bytes=5000)
    assert replace(cost.memory, training=more).peak_bytes({"a": 100}) == 6700
    assert replace(cost.memory, importance=None).peak_bytes({"a": 100}, dense=["a"]) == 9000


def test_round_is_allowed_within_both_limits() -> None:
    cost = device(a=LAYER)
    ones = {"a": 300}
    seconds, peak = cost.time.seconds(ones, 2), cost.peak_bytes(ones)
    assert replace(cost, limit_bytes=peak).allows(ones, 2, seconds)
    assert not replace(cost, limit_bytes=peak - 1).allows(ones, 2, seconds)
    assert not cost.allows(ones, 2, seconds * 0.999)


def test_ones_of_other_parameters_are_refused() -> None:
    cost = device(a=LAYER)
    for ones in ({}, {"b": 1}, {"a": 1, "b": 1}):
        with pytest.raises(ValueError, match="ones of other parameters"):
            cost.time.seconds(ones, 1)
        with pytest.raises(ValueError, match="ones of other parameters"):
            cost.peak_bytes(ones)
        with pytest.raises(ValueError, match="ones of other parameters"):
            cost.memory.peak_bytes(ones)


def test_memory_and_time_are_of_the_same_layers() -> None:
    with pytest.raises(ValueError, match="ones of other parameters"):
        replace(device(a=LAYER), time=device(b=LAYER).time)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, 1e30])
def test_impossible_costs_are_refused(wrong: float) -> None:
    cost = device(a=LAYER)
    for name in ("round_seconds", "step_seconds", "seconds_per_value"):
        with pytest.raises(ValueError, match=f"{name} is"):
            RoundCost(**(tree.to_plain(cost.time) | {"layers": {}, name: wrong}))
    for name in ("fixed_bytes", "bytes_per_weight", "dense_bytes"):
        with pytest.raises(ValueError, match=f"{name} is"):
            LayerMemory(**(tree.to_plain(MEMORY) | {name: wrong}))
    with pytest.raises(ValueError, match="base_bytes is"):
        replace(cost.memory.training, base_bytes=wrong)
    with pytest.raises(ValueError, match="limit_bytes is"):
        replace(cost, limit_bytes=wrong)


def test_cost_survives_the_wire() -> None:
    cost = device(a=LAYER, b=LAYER)
    assert tree.load(DeviceCost, tree.save(cost)) == cost
    assert TypeAdapter(DeviceCost).validate_python(tree.to_plain(cost)) == cost


# ---- batches in parts ----------------------------------------------------------------------------


def in_batches(limit_bytes: float, parts: int = 1) -> DeviceCost:
    """Of 20 examples, 100 bytes each; with importance, which takes 2000 more."""
    cost = device(fc=LAYER)
    batch = BatchMemory(examples=20, parts=parts, bytes_per_example=100.0)
    training, importance = (replace(step, batch=batch) for step in cost.memory.steps)
    memory = MemoryCost(training=training, importance=importance)
    return replace(cost, memory=memory, limit_bytes=limit_bytes)


def test_parts_take_the_bytes_of_their_examples_only() -> None:
    cost, ones = in_batches(1e9), {"fc": 10}
    whole = cost.peak_bytes(ones)
    assert cost.in_parts(1) == cost
    assert cost.in_parts(2).peak_bytes(ones) == whole - 1000
    assert cost.in_parts(8).peak_bytes(ones) == whole - 1700
    assert cost.in_parts(2).in_parts(8) == cost.in_parts(8)
    assert cost.in_parts(8).in_parts(2) == cost.in_parts(8)
    training = cost.memory.training
    assert training.peak_bytes(ones, ()) - training.in_parts(4).peak_bytes(ones, ()) == 1000
    assert cost.in_parts(8).time == cost.time


def test_no_base_is_below_zero() -> None:
    step = in_batches(1e9).memory.training
    assert replace(step, base_bytes=10.0).in_parts(8).base_bytes == 0.0


def test_a_batch_is_split_no_more_than_memory_asks_for() -> None:
    ones = {"fc": 10}
    whole = in_batches(1e9).peak_bytes(ones)
    found = [in_batches(whole - less).fewest_parts(ones) for less in (0, 1, 1000, 1001, 1700)]
    assert found == [1, 2, 2, 4, 8]
    # Where even the most do not fit.
    assert in_batches(whole - 2000).fewest_parts(ones) == 8
    assert in_batches(1e9, parts=4).fewest_parts(ones) == 4
    # Of more weights there is more to save.
    assert in_batches(whole).fewest_parts({"fc": 60}) == 2


def test_what_a_batch_takes_is_kept_with_the_cost() -> None:
    step = in_batches(1e9, parts=2).memory.training
    assert tree.from_plain(StepMemory, tree.to_plain(step)) == step
