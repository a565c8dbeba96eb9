"""Iterative pruning on the server: the smallest weights of the model go when a step is due."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coppice import tree
from coppice.errors import RunFileError
from coppice.masked_averaging import State
from coppice.masks import sparse_weights
from coppice.method import InitContext
from coppice.methods.iterative.server import Server
from coppice.methods.iterative.settings import Settings
from coppice.tensors import dense_tensors, masks_of
from tests.coppice.methods.baseline_runs import (
    PRUNABLE,
    TwoLayers,
    counts,
    ones,
    simulation,
    update,
)

SIZE = sum(PRUNABLE.values())


def server(**settings: Any) -> Server:
    given: dict[str, Any] = {"density": 1 / 3, "pruning_steps": 2, "pruning_rounds": 4}
    return Server(Settings(local_steps=1, **(given | settings)))


def start(half: Server) -> State:
    return half.init(InitContext(0, TwoLayers))


# ---- what is kept ------------------------------------------------------------------------------


def test_the_largest_magnitudes_of_the_whole_model_are_kept() -> None:
    half = server()
    state = start(half)
    # Weights 1, -2, 3, 0.5 and -4, 0.125. Nothing is due after round 1.
    state, metrics = half.aggregate(state, [update(state.parameters)], 1)
    assert metrics["density"] == 1.0
    # After round 2 two of the six go: by now 1 has become 0.25 and 0.125 has become -1.125.
    answer = update(
        state.parameters, {"first.weight": [-0.75, 0.0, 0.0, 0.0], "second.weight": [0.0, -1.25]}
    )
    state, metrics = half.aggregate(state, [answer], 2)
    assert ones(state.parameters) == {"first.weight": [1, 2], "second.weight": [0, 1]}
    assert metrics["density"] == pytest.approx(2 / 3)
    # And two more after round 4, values as they are.
    for round_number in (3, 4):
        state, metrics = half.aggregate(state, [update(state.parameters)], round_number)
    assert metrics["density"] == pytest.approx(1 / 3)
    dense = dense_tensors(state.parameters)
    assert dense["first.weight"].tolist() == [[0.0, 0.0], [3.0, 0.0]]
    assert dense["second.weight"].tolist() == [[-4.0, 0.0]]
    assert dense["first.bias"].tolist() == [0.25, 0.0]
    for round_number in (5, 9):
        later, _ = half.aggregate(state, [update(state.parameters)], round_number)
        assert masks_of(later.parameters) == masks_of(state.parameters)


def test_the_step_of_a_round_that_failed_is_made_up_for() -> None:
    half = server()
    state = start(half)
    assert half.aggregate(state, [], 2) == (state, {})
    state, metrics = half.aggregate(state, [update(state.parameters)], 3)
    assert metrics["density"] == pytest.approx(2 / 3)


def test_weights_that_stay_dense_are_no_part_of_the_share() -> None:
    half = server(keep_dense=("second.weight",), density=0.5)
    state = start(half)
    state, _ = half.aggregate(state, [update(state.parameters)], 4)
    assert ones(state.parameters) == {"first.weight": [1, 2]}
    assert isinstance(state.parameters["second.weight"], torch.Tensor)
    with pytest.raises(RunFileError, match=r"keep_dense names 'third\.weight'"):
        start(server(keep_dense=("third.weight",)))


def test_a_kept_weight_that_becomes_zero_is_not_mistaken_for_a_pruned_one() -> None:
    half = server(density=0.5, pruning_steps=3, pruning_rounds=3)
    state = start(half)
    # 0.125 goes. Then all that is left becomes zero, and one more of these goes: the last.
    state, _ = half.aggregate(state, [update(state.parameters)], 1)
    assert ones(state.parameters) == {"first.weight": [0, 1, 2, 3], "second.weight": [0]}
    answer = update(
        state.parameters, {"first.weight": [-1.0, 2.0, -3.0, -0.5], "second.weight": [4.0]}
    )
    state, _ = half.aggregate(state, [answer], 2)
    assert ones(state.parameters) == {"first.weight": [0, 1, 2, 3], "second.weight": []}


# ---- whole runs --------------------------------------------------------------------------------


def test_a_run_shrinks_step_by_step_and_pruned_weights_stay_zero() -> None:
    run = simulation("iterative", density=0.25, pruning_steps=3, pruning_rounds=6)
    before = masks_of(run.state.parameters)
    kept = []
    for round_number in range(1, 9):
        done = run.run_round(round_number)
        masks = masks_of(run.state.parameters)
        for name, mask in masks.items():
            # No mask ever gains a weight.
            assert not (mask.bits & ~before[name].bits).any()
            assert not dense_tensors(run.models["global"])[name][~mask.bits].any()
        before = masks
        kept.append(sum(counts(run.state.parameters).values()))
        assert done.metrics["density"] == kept[-1] / SIZE
    assert kept == [56, 42, 42, 28, 28, 14, 14, 14]
    assert SIZE == 56


def test_what_is_kept_are_the_largest_of_what_was_there() -> None:
    run = simulation("iterative", density=0.25, pruning_steps=1, pruning_rounds=2)
    plain = simulation("fedavg")
    for round_number in (1, 2):
        run.run_round(round_number)
        plain.run_round(round_number)
    # Until something is pruned, the run is FedAvg's to the bit.
    dense = dense_tensors(plain.models["global"])
    magnitudes = torch.cat([dense[name].abs().reshape(-1) for name in PRUNABLE])
    least = magnitudes.sort(descending=True).values[13]
    for name, item in sparse_weights(run.state.parameters).items():
        assert torch.equal(item.mask.bits, dense[name].abs() >= least)
        assert torch.equal(item.dense()[item.mask.bits], dense[name][item.mask.bits])


def test_the_same_seed_gives_the_same_run_and_the_state_can_be_saved() -> None:
    settings: dict[str, Any] = {"density": 0.25, "pruning_steps": 2, "pruning_rounds": 2}
    one, again, other = (
        tree.save(simulation("iterative", rounds=3, seed=seed, **settings).run().state)
        for seed in (3, 3, 4)
    )
    assert one == again
    assert one != other
    assert tree.save(tree.load(State, one)) == one


def test_updates_may_be_rounded() -> None:
    settings: dict[str, Any] = {"density": 0.25, "pruning_steps": 3, "pruning_rounds": 3}
    result = simulation("iterative", rounds=5, up="int8", **settings).run()
    assert sum(counts(result.state.parameters).values()) == 14
