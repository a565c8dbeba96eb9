"""The lottery-ticket checks: whose masks, which weights, and that the masks stay."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from coppice import tree
from coppice.app import build_model
from coppice.domain import derive_seed
from coppice.errors import InvalidPayload, RunFileError
from coppice.masked_averaging import State
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, buffers_of, dense_tensors, masks_of, parameters_of
from tests.coppice.methods.baseline_runs import SEED, bits, counts, simulation
from tests.coppice.toys import ToyApp, with_buffers


@cache
def pruned_model() -> Weights:
    """The model at the end of a run that pruned."""
    settings: dict[str, Any] = {"density": 0.25, "pruning_steps": 2, "pruning_rounds": 4}
    return simulation("iterative", rounds=5, **settings).run().models["global"]


def first(**settings: Any) -> State:
    """The state before round 1."""
    state = simulation("lottery", warm_start=pruned_model(), **settings).state
    assert isinstance(state, State)
    return state


def fresh(seed: int = SEED) -> dict[str, Tensor]:
    return parameters_of(build_model(ToyApp(with_buffers), seed))


def assert_on_masks(state: State, values: dict[str, Tensor], masks: dict[str, Mask]) -> None:
    assert masks_of(state.parameters) == masks
    assert state.parameters.keys() == values.keys()
    for name, item in dense_tensors(state.parameters).items():
        expected = values[name] * masks[name].bits if name in masks else values[name]
        assert torch.equal(item, expected)


# ---- weights -----------------------------------------------------------------------------------


def test_the_original_weights_are_those_of_the_runs_seed() -> None:
    state = first()
    assert_on_masks(state, fresh(), masks_of(pruned_model()))
    # Of the buffers nothing is kept, either.
    buffers = buffers_of(build_model(ToyApp(with_buffers), SEED))
    assert state.buffers.keys() == buffers.keys()
    assert all(torch.equal(state.buffers[name], buffers[name]) for name in buffers)


def test_new_weights_are_those_of_another_seed() -> None:
    new = fresh(derive_seed(SEED, "lottery", "weights"))
    assert not torch.equal(new["0.weight"], fresh()["0.weight"])
    assert_on_masks(first(weights="new"), new, masks_of(pruned_model()))


def test_kept_weights_and_buffers_are_the_files() -> None:
    state = first(weights="kept")
    given = dense_tensors(pruned_model())
    values = {name: given[name] for name in fresh()}
    assert_on_masks(state, values, masks_of(pruned_model()))
    assert all(torch.equal(state.buffers[name], given[name]) for name in state.buffers)
    assert state.buffers["1.num_batches_tracked"] > 0


# ---- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["original", "new"])
def test_random_masks_have_as_many_ones_in_each_layer(weights: str) -> None:
    state = first(mask="random", weights=weights)
    assert counts(state.parameters) == counts(pruned_model())
    masks = masks_of(state.parameters)
    assert all(mask != masks[name] for name, mask in masks_of(pruned_model()).items())
    seed = derive_seed(SEED, "lottery", "weights") if weights == "new" else SEED
    assert_on_masks(state, fresh(seed), masks)


def test_random_masks_come_from_the_seed() -> None:
    masks = masks_of(first(mask="random").parameters)
    assert masks_of(first(mask="random").parameters) == masks
    assert masks_of(first(mask="random", seed=SEED + 1).parameters) != masks


def test_layers_that_the_file_has_no_masks_of_stay_dense() -> None:
    given = dict(pruned_model())
    dense = dense_tensors(given)
    warm: dict[str, Tensor | SparseTensor] = {**dense, "4.weight": given["4.weight"]}
    run = simulation("lottery", warm_start=warm)
    assert masks_of(run.state.parameters) == {"4.weight": masks_of(given)["4.weight"]}
    assert torch.equal(run.state.parameters["0.weight"], fresh()["0.weight"])


# ---- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"weights": "new"}, {"weights": "kept"}, {"mask": "random"}]
)
def test_training_never_leaves_the_masks(settings: dict[str, Any]) -> None:
    run = simulation("lottery", warm_start=pruned_model(), **settings)
    begun = run.state
    masks = masks_of(begun.parameters)
    for round_number in (1, 2, 3):
        done = run.run_round(round_number)
        assert done.metrics["density"] == 14 / 56
        assert masks_of(run.state.parameters) == masks
        weights = dense_tensors(run.models["global"])
        assert all(not weights[name][~mask.bits].any() for name, mask in masks.items())
    before, after = (dense_tensors(state.parameters) for state in (begun, run.state))
    assert all(not torch.equal(before[name], after[name]) for name in masks)


def test_the_same_seed_gives_the_same_run_and_the_state_can_be_saved() -> None:
    def saved(seed: int) -> bytes:
        run = simulation(
            "lottery", rounds=2, seed=seed, warm_start=pruned_model(), weights="new", mask="random"
        )
        return tree.save(run.run().state)

    assert saved(3) == saved(3)
    assert saved(3) != saved(4)
    assert tree.save(tree.load(State, saved(3))) == saved(3)


# ---- refusals ----------------------------------------------------------------------------------


def test_a_run_without_a_pruned_model_is_refused() -> None:
    with pytest.raises(RunFileError, match="give its file as warm_start"):
        simulation("lottery")
    with pytest.raises(RunFileError, match="the one in warm_start has none"):
        simulation("lottery", warm_start=dense_tensors(pruned_model()))


@pytest.mark.parametrize("weights", ["original", "new", "kept"])
def test_another_models_file_is_refused(weights: str) -> None:
    item = SparseTensor.take(torch.ones(2, 2), bits((2, 2), 0))
    with pytest.raises(InvalidPayload, match="not this model's"):
        simulation("lottery", warm_start={"weight": item}, weights=weights)
    wide = SparseTensor.take(torch.ones(9, 4), bits((9, 4), 0))
    with pytest.raises(InvalidPayload, match="this model needs"):
        simulation("lottery", warm_start={**pruned_model(), "0.weight": wide}, weights=weights)


def test_there_are_no_kept_values_at_random_places() -> None:
    with pytest.raises(InvalidPayload, match='set weights to "original" or "new"'):
        first(weights="kept", mask="random")
    with pytest.raises(InvalidPayload, match="weights is 'best'"):
        first(weights="best")
