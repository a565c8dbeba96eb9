"""SNIP on the server: what is scored, what is kept, and who can take part in scoring."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coppice import tree
from coppice.errors import RunFileError
from coppice.masked_averaging import State
from coppice.masks import sparse_weights
from coppice.method import InitContext
from coppice.methods.snip.server import Server, dense_training_bytes
from coppice.methods.snip.settings import Settings
from coppice.sparse import SparseTensor
from coppice.tensors import dense_tensors, masks_of
from tests.coppice.methods.baseline_runs import (
    PRUNABLE,
    TwoLayers,
    counts,
    ones,
    participant,
    simulation,
    update,
)


def server(density: float = 0.5, **settings: Any) -> Server:
    return Server(Settings(local_steps=1, density=density, **settings))


def start(half: Server) -> State:
    return half.init(InitContext(0, TwoLayers))


# ---- what is kept ------------------------------------------------------------------------------


def test_the_largest_products_of_weight_and_gradient_are_kept() -> None:
    half = server()
    state = start(half)
    # |w·Δ| is 1, 0.2, 0.3, 2 and 0.4, 0.5: of six the three largest are 2, 1 and 0.5.
    answer = update(
        state.parameters, {"first.weight": [-1.0, 0.1, 0.1, 4.0], "second.weight": [0.1, -4.0]}
    )
    state, metrics = half.aggregate(state, [answer], 1)
    assert ones(state.parameters) == {"first.weight": [0, 3], "second.weight": [1]}
    assert metrics["density"] == 0.5
    # They have moved by the update; what is not kept is zero.
    dense = dense_tensors(state.parameters)
    assert dense["first.weight"].tolist() == [[0.0, 0.0], [0.0, 4.5]]
    assert dense["second.weight"].tolist() == [[0.0, -3.875]]
    assert dense["first.bias"].tolist() == [0.25, 0.0]


def test_the_gradient_is_the_mean_weighted_by_examples() -> None:
    half = server(density=1 / 6)
    state = start(half)
    # The mean is (1·4 + 3·0) / 4 = 1 in the first entry, (1·0 + 3·1) / 4 = 0.75 in the second,
    # where the weight is twice as large.
    answers = [
        update(state.parameters, {"first.weight": [4.0, 0.0, 0.0, 0.0]}, num_examples=1),
        update(state.parameters, {"first.weight": [0.0, 1.0, 0.0, 0.0]}, num_examples=3),
    ]
    state, _ = half.aggregate(state, answers, 1)
    assert ones(state.parameters) == {"first.weight": [1], "second.weight": []}


def test_weights_that_stay_dense_are_no_part_of_the_share() -> None:
    half = server(keep_dense=("second.weight",))
    state = start(half)
    answer = update(state.parameters, {"first.weight": [1.0, 1.0, 1.0, 1.0]})
    state, metrics = half.aggregate(state, [answer], 1)
    assert ones(state.parameters) == {"first.weight": [1, 2]}
    assert metrics["density"] == 0.5
    assert isinstance(state.parameters["second.weight"], torch.Tensor)


def test_only_the_first_round_with_updates_prunes() -> None:
    half = server()
    state = start(half)
    assert half.aggregate(state, [], 1) == (state, {})
    answer = update(state.parameters, {"first.weight": [1.0, 1.0, 1.0, 0.0]})
    state, _ = half.aggregate(state, [answer], 2)
    masks = masks_of(state.parameters)
    assert sum(mask.count for mask in masks.values()) == 3
    # The kept weights fall to zero: they are kept all the same.
    zeroing = update(
        state.parameters,
        {name: (-item.values).tolist() for name, item in sparse_weights(state.parameters).items()},
    )
    state, metrics = half.aggregate(state, [zeroing], 3)
    assert masks_of(state.parameters) == masks
    assert metrics["density"] == 0.5
    assert not dense_tensors(state.parameters)["first.weight"].any()


# ---- who scores --------------------------------------------------------------------------------

#: Four times eight float32: six weights and a bias of two.
NEEDED_BYTES = 4 * 4 * 8


def test_the_need_is_four_times_the_dense_parameters() -> None:
    half = server()
    state = start(half)
    assert dense_training_bytes(state.parameters) == NEEDED_BYTES
    state, _ = half.aggregate(state, [update(state.parameters)], 1)
    assert dense_training_bytes(state.parameters) == NEEDED_BYTES


def test_only_clients_that_can_hold_the_dense_model_score() -> None:
    half = server()
    state = start(half)
    cohort = [
        participant("small", NEEDED_BYTES - 1),
        participant("just", NEEDED_BYTES),
        participant("large"),
    ]
    assert list(half.plan(state, cohort, 1)) == ["just", "large"]
    state, _ = half.aggregate(state, [update(state.parameters)], 1)
    assert list(half.plan(state, cohort, 2)) == ["small", "just", "large"]


def test_where_no_client_can_the_run_says_what_is_missing() -> None:
    half = server()
    wide = half.init(InitContext(0, lambda: torch.nn.Linear(2**10, 2**10, bias=False)))
    cohort = [participant("ada", 3 * 2**20), participant("ben", 15 * 2**20)]
    message = (
        "a client needs 16.0 MiB of memory; of the 2 in this round, ben has most: 15.0 MiB. "
        "Let a device with more join"
    )
    with pytest.raises(RunFileError, match=message):
        half.plan(wide, cohort, 1)
    assert half.plan(wide, [], 1) == {}


# ---- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.25, 0.1, 0.01, 1.0])
def test_a_run_keeps_exactly_what_was_asked_for(density: float) -> None:
    run = simulation("snip", density=density)
    rounds = [run.run_round(number) for number in (1, 2, 3)]
    size = sum(PRUNABLE.values())
    kept = sum(counts(run.state.parameters).values())
    assert kept == round(density * size)
    assert [done.metrics["density"] for done in rounds] == [kept / size] * 3


def test_pruned_weights_stay_zero_and_kept_ones_train() -> None:
    run = simulation("snip", density=0.25)
    run.run_round(1)
    first = run.state
    masks = masks_of(first.parameters)
    for number in (2, 3, 4):
        run.run_round(number)
        assert masks_of(run.state.parameters) == masks
        weights = dense_tensors(run.models["global"])
        assert all(not weights[name][~mask.bits].any() for name, mask in masks.items())
    before, after = (dense_tensors(state.parameters) for state in (first, run.state))
    assert all(not torch.equal(before[name], after[name]) for name in masks)


def test_the_first_round_is_fedavgs() -> None:
    run, plain = simulation("snip", density=0.25), simulation("fedavg")
    run.run_round(1)
    plain.run_round(1)
    dense, masks = plain.models["global"], masks_of(run.state.parameters)
    for name, item in run.models["global"].items():
        expected = dense[name]
        assert isinstance(expected, torch.Tensor)
        if isinstance(item, SparseTensor):
            expected = SparseTensor.take(expected, masks[name]).values
            item = item.values
        assert torch.equal(item, expected)


def test_the_same_seed_gives_the_same_run_and_the_state_can_be_saved() -> None:
    one, again, other = (
        tree.save(simulation("snip", density=0.25, rounds=3, seed=seed).run().state)
        for seed in (3, 3, 4)
    )
    assert one == again
    assert one != other
    assert tree.save(tree.load(State, one)) == one
