"""FedAvg's server half: the mean, server optimisers, buffers, and rounds that bring nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.domain import ClientId, Participant, TaskKind
from coppice.errors import InvalidPayload
from coppice.method import InitContext, Update
from coppice.methods.fedavg.server import Server, State
from coppice.methods.fedavg.settings import Settings
from coppice.tensors import TensorSpec, dense_group
from tests.coppice.toys import CAPABILITY


class Model(nn.Module):
    """One parameter, a float buffer, a counter and a flag."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
        self.register_buffer("mean", torch.tensor([0.5]))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("seen", torch.tensor([False, True]))


def server(**settings: Any) -> Server:
    return Server(Settings(local_steps=1, **settings))


def start(half: Server, make_model: Callable[[], nn.Module] = Model) -> State:
    return half.init(InitContext(seed=0, make_model=make_model))


def update(*delta: float, examples: int = 1, **buffers: Any) -> Update:
    payload: dict[str, dict[str, Tensor]] = {
        "delta": {"x": torch.tensor(delta, dtype=torch.float64)}
    }
    if buffers:
        payload["buffers"] = {name: torch.as_tensor(value) for name, value in buffers.items()}
    return Update(ClientId("c"), payload, examples)


def after(half: Server, *deltas: tuple[float, float]) -> list[float]:
    """Where `x` is after rounds with these mean updates."""
    state = start(half)
    for round_number, delta in enumerate(deltas, 1):
        state, _ = half.aggregate(state, [update(*delta)], round_number)
    return state.parameters["x"].tolist()


# ---- the mean, and what the server makes of it -------------------------------------------------


def test_the_mean_update_weighted_by_examples_is_added() -> None:
    half = server()
    state, _ = half.aggregate(
        start(half), [update(1.0, 0.0, examples=30), update(5.0, -4.0, examples=10)], 1
    )
    assert state.parameters["x"].tolist() == [3.0, -3.0]


def test_the_servers_learning_rate_scales_the_mean() -> None:
    assert after(server(server_learning_rate=0.5), (2.0, 1.0)) == [2.0, -1.5]


def test_fedavgm_is_that_of_hsu_et_al() -> None:
    # v = 0.9 v + Δ, x = x + 0.5 v: v is 0.2 then 0.08, and -1 then -0.9.
    half = server(server_optimizer="momentum", server_learning_rate=0.5)
    assert after(half, (0.2, -1.0)) == pytest.approx([1.1, -2.5], rel=1e-12)
    assert after(half, (0.2, -1.0), (-0.1, 0.0)) == pytest.approx([1.14, -2.95], rel=1e-12)


def test_fedadam_is_algorithm_2_of_reddi_et_al() -> None:
    half = server(
        server_optimizer="adam",
        server_learning_rate=2.0,
        server_momentum=0.5,
        server_beta2=0.5,
        server_epsilon=1.0,
    )
    # τ = 1, so v starts at 1. Δ = 7: m = 3.5, v = (1 + 49)/2 = 25, step 2 · 3.5/(5 + 1).
    # Δ = 1: m = 0.5, v = 1, step 2 · 0.5/(1 + 1).
    assert after(half, (7.0, 1.0)) == pytest.approx([1 + 7 / 6, -1.5], rel=1e-12)
    # Δ = -5: m = -0.75, v = 25, step -0.25. Δ = 7: m = 3.75, v = 25, step 1.25.
    twice = after(half, (7.0, 1.0), (-5.0, 7.0))
    assert twice == pytest.approx([1 + 7 / 6 - 0.25, -0.25], rel=1e-12)


def test_fedyogi_is_algorithm_2_of_reddi_et_al() -> None:
    half = server(
        server_optimizer="yogi", server_momentum=0.5, server_beta2=0.75, server_epsilon=1.0
    )
    # Δ² above v: v = 1 + 2.25/4 = 1.5625, m = 0.75, step 0.75/(1.25 + 1).
    # Δ² equal to v: the sign is 0 and v stays 1, m = 0.5, step 0.5/2.
    assert after(half, (1.5, 1.0)) == pytest.approx([4 / 3, -1.75], rel=1e-12)
    # Δ² below v: v = 1.5625 - 0.49/4 = 1.44, m = 0.025, step 0.025/(1.2 + 1).
    twice = after(half, (1.5, 1.0), (-0.7, 0.0))
    assert twice == pytest.approx([4 / 3 + 0.025 / 2.2, -1.75 + 0.25 / 2], rel=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "yogi"])
def test_the_second_moment_starts_at_tau_squared(optimizer: Any) -> None:
    half = server(server_optimizer=optimizer, server_epsilon=0.25)
    state = start(half)
    assert state.second_moment["x"].tolist() == [0.0625, 0.0625]
    assert state.moment["x"].tolist() == [0.0, 0.0]
    # No update, no step: 0/(τ + τ).
    assert after(half, (0.0, 0.0)) == [1.0, -2.0]


@pytest.mark.parametrize("optimizer", ["adam", "yogi"])
def test_many_rounds_agree_with_the_formulas_written_out(optimizer: Any) -> None:
    deltas = [0.3, -0.2, 0.05, 0.0, 1.5, -0.7, 0.01]
    x, m, v, tau = 1.0, 0.0, 1e-6, 1e-3
    for delta in deltas:
        m = 0.9 * m + 0.1 * delta
        if optimizer == "adam":
            v = 0.99 * v + 0.01 * delta**2
        else:
            v -= 0.01 * delta**2 * math.copysign(1, v - delta**2)
        x += 0.1 * m / (math.sqrt(v) + tau)
    half = server(server_optimizer=optimizer, server_learning_rate=0.1)
    assert after(half, *((delta, 0.0) for delta in deltas))[0] == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("optimizer", ["none", "momentum", "adam", "yogi"])
def test_parameters_keep_their_type(optimizer: Any) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        half = server(server_optimizer=optimizer)
        state = start(half, partial(Model, dtype))
        delta = {"delta": {"x": torch.tensor([0.5, 0.25], dtype=dtype)}}
        state, _ = half.aggregate(state, [Update(ClientId("c"), delta, 3)], 1)
        assert state.parameters["x"].dtype == dtype
        assert torch.isfinite(state.parameters["x"]).all()
        assert state.parameters["x"][0] > 1.0


# ---- buffers -----------------------------------------------------------------------------------


def test_float_buffers_are_averaged_and_integers_never() -> None:
    half = server(server_learning_rate=0.1)
    one = update(0.0, 0.0, examples=1, mean=[1.0], count=10, seen=[True, False])
    three = update(0.0, 0.0, examples=3, mean=[5.0], count=7, seen=[False, False])
    for order in ([one, three], [three, one]):
        state, _ = half.aggregate(start(half), order, 1)
        assert state.buffers["mean"].tolist() == [4.0]
        assert state.buffers["count"].item() == 10
        assert state.buffers["count"].dtype == torch.int64
        assert state.buffers["seen"].tolist() == [True, False]
        assert list(state.buffers) == ["mean", "count", "seen"]


# ---- rounds that bring nothing -----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["none", "momentum", "adam", "yogi"])
@pytest.mark.parametrize(
    "updates", [[], [update(9.0, 9.0, examples=0, mean=[9.0], count=99, seen=[True, True])]]
)
def test_a_round_without_weight_leaves_the_state_alone(
    optimizer: Any, updates: list[Update]
) -> None:
    half = server(server_optimizer=optimizer)
    state, _ = half.aggregate(start(half), [update(1.0, 1.0)], 1)
    unchanged, metrics = half.aggregate(state, updates, 2)
    assert unchanged is state
    assert metrics == {}


def test_an_update_of_no_examples_moves_nothing_beside_one_of_many() -> None:
    half = server()
    state, _ = half.aggregate(start(half), [update(9.0, 9.0, examples=0), update(1.0, 0.0)], 1)
    assert state.parameters["x"].tolist() == [2.0, -2.0]


def test_aggregating_changes_neither_state_nor_updates() -> None:
    half = server(server_optimizer="adam")
    state, given = start(half), update(1.0, 2.0, mean=[3.0], count=5, seen=[True, True])

    def tensors() -> Iterator[Tensor]:
        for item in fields(state):
            yield from getattr(state, item.name).values()
        for group in given.payload:
            yield from dense_group(given.payload, group).values()

    before = [tensor.clone() for tensor in tensors()]
    half.aggregate(state, [given, given], 1)
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(), strict=True))


# ---- planning, starting, metrics ---------------------------------------------------------------


def test_every_client_of_the_cohort_gets_the_same_task() -> None:
    half = server(learning_rate=0.2, schedule="step", decay=0.5, decay_rounds=2)
    state = start(half)
    cohort = [Participant(ClientId(name), CAPABILITY, 5) for name in "bca"]
    plan = half.plan(state, cohort, 3)
    assert list(plan) == ["b", "c", "a"]
    first = plan[ClientId("b")]
    # One payload object: the server encodes it once.
    assert all(task.payload is first.payload for task in plan.values())
    assert (first.kind, first.round_number) == (TaskKind.TRAIN, 3)
    assert first.settings == {"learning_rate": 0.1}
    assert first.expects == {
        "delta": {"x": TensorSpec((2,), "float64")},
        "buffers": {
            "mean": TensorSpec((1,), "float32"),
            "count": TensorSpec((), "int64"),
            "seen": TensorSpec((2,), "bool"),
        },
    }
    assert half.plan(state, [], 3) == {}


def test_a_warm_start_takes_the_place_of_the_seeds_model() -> None:
    half = server()
    warm = {
        "x": torch.tensor([7.0, 8.0]).double(),
        "mean": torch.tensor([9.0]),
        "count": torch.tensor(4),
        "seen": torch.tensor([True, True]),
    }
    state = half.init(InitContext(0, Model, warm))
    assert {name: tensor.tolist() for name, tensor in half.models(state)["global"].items()} == {
        name: tensor.tolist() for name, tensor in warm.items()
    }
    warm["x"].zero_()
    assert state.parameters["x"].tolist() == [7.0, 8.0]
    with pytest.raises(InvalidPayload, match="'mean' is one"):
        half.init(InitContext(0, Model, {name: warm[name] for name in ("x", "count", "seen")}))


def test_metrics_are_averaged_by_examples_over_those_that_report_them() -> None:
    half = server()
    updates = [
        Update(ClientId("a"), update(0.0, 0.0).payload, 1, metrics={"loss": 1.0}),
        Update(ClientId("b"), update(0.0, 0.0).payload, 3, metrics={"loss": 3.0}),
        Update(ClientId("c"), update(0.0, 0.0).payload, 9),
    ]
    assert half.aggregate(start(half), updates, 1)[1] == {"loss": 2.5}
