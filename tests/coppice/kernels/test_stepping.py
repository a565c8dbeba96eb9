"""Training with sparse layers against training with zeros: the same parameters, step by step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.app import build_model
from coppice.errors import TaskAbandoned
from coppice.kernels import layout
from coppice.kernels.placement import Placement, sparse_layers, weights_of
from coppice.kernels.stepping import Watch
from coppice.masks import masked
from coppice.method import Local
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import (
    Weights,
    assign,
    buffers_of,
    dense_tensors,
    masks_of,
    parameters_of,
)
from coppice.training import evaluate, train
from tests.coppice.kernels.nets import Twice, convolutions, images, start
from tests.coppice.test_training import SETTINGS, settings
from tests.coppice.toys import CLASSES, CountingMeter, ToyApp, local


def trained(
    weights: Weights, app: ToyApp, kernels: bool, watch: Watch | None = None, **fields: Any
) -> tuple[nn.Module, Local]:
    model = build_model(app, 0)
    if kernels:
        Placement(model).assign(weights, None, whole=True)
    else:
        assign(model, weights)
    device = local(app, images(43))
    train(model, device, settings(**fields), masks=masks_of(weights), watch=watch)
    return model, device


def assert_same(sparse: nn.Module, dense: nn.Module, masks: dict[str, Mask]) -> None:
    expected = masked(parameters_of(dense), masks)
    found = weights_of(sparse)
    assert list(found) == list(expected)
    torch.testing.assert_close(dense_tensors(found), dense_tensors(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(buffers_of(sparse), buffers_of(dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@pytest.mark.parametrize("make", [convolutions, Twice])
def test_the_parameters_are_those_of_training_with_zeros(
    fields: dict[str, Any], make: Any, variant: str
) -> None:
    app = ToyApp(make)
    weights = start(build_model(app, 0), 0.3)
    sparse, _ = trained(weights, app, kernels=True, **fields)
    dense, _ = trained(weights, app, kernels=False, **fields)
    assert len(dict(sparse_layers(sparse))) == 4
    assert_same(sparse, dense, masks_of(weights))


def test_the_last_batch_may_be_smaller_and_of_any_size(variant: str) -> None:
    app = ToyApp(convolutions)
    weights = start(build_model(app, 0), 0.3)
    for batch_size in (5, 7, 20, 43):
        fields: dict[str, Any] = {"steps": None, "epochs": 1, "batch_size": batch_size}
        sparse, device = trained(weights, app, kernels=True, **fields)
        dense, _ = trained(weights, app, kernels=False, **fields)
        assert_same(sparse, dense, masks_of(weights))
        found, expected = (evaluate(model, app, device.train) for model in (sparse, dense))
        assert found == pytest.approx(dict(expected), rel=1e-3)


@pytest.mark.parametrize("pruned_too", [False, True])
@pytest.mark.parametrize("make", [convolutions, Twice])
def test_who_watches_sees_the_same_gradients(pruned_too: bool, make: Any, variant: str) -> None:
    app = ToyApp(make)
    weights = start(build_model(app, 0), 0.3)
    seen: list[dict[str, Tensor | SparseTensor]] = [{}, {}]
    for kernels, gradients in zip((True, False), seen, strict=True):

        def see(
            name: str,
            gradient: Tensor | SparseTensor,
            gradients: dict[str, Tensor | SparseTensor] = gradients,
        ) -> None:
            gradients[name] = copy.deepcopy(gradient)

        watch = Watch(see, pruned_too, last_only=True)
        trained(weights, app, kernels, watch, steps=3, batch_size=9)
    found, expected = seen
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert isinstance(gradient, SparseTensor) == (name in masks_of(weights) and not pruned_too)
    torch.testing.assert_close(dense_tensors(found), dense_tensors(expected), rtol=1e-3, atol=1e-5)


class Regularized(nn.Module):
    """Adds to its outputs what keeps its weights small."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.hidden(inputs.flatten(1)).tanh())
        small = self.hidden.weight.square().sum()
        return outputs * (1 + small)


class Attacking(nn.Module):
    """Asks for a gradient of its inputs on the way forward."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = inputs.detach().requires_grad_()
            away = self.out(self.hidden(probe.flatten(1)).tanh()).sum()
            (direction,) = torch.autograd.grad(away, probe)
        moved = inputs + 0.1 * direction.sign()
        outputs: Tensor = self.out(self.hidden(moved.flatten(1)).tanh())
        return outputs


@pytest.mark.parametrize("make", [Regularized, Attacking])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_models_with_gradients_of_their_own_train_as_with_zeros(
    make: Any, momentum: float, variant: str
) -> None:
    app = ToyApp(make)
    weights = start(build_model(app, 0), 0.3)
    sparse, _ = trained(weights, app, kernels=True, momentum=momentum)
    dense, _ = trained(weights, app, kernels=False, momentum=momentum)
    assert len(dict(sparse_layers(sparse))) == 2
    assert_same(sparse, dense, masks_of(weights))


def test_training_leaves_no_shared_memory_behind(variant: str) -> None:
    app = ToyApp(convolutions)
    trained(start(build_model(app, 0), 0.3), app, kernels=True)
    assert layout._scratch == {}


def test_a_task_that_was_abandoned_leaves_nothing_to_the_next(variant: str) -> None:
    app = ToyApp(convolutions)
    weights = start(build_model(app, 0), 0.3)
    model = build_model(app, 0)
    placement = Placement(model)
    placement.assign(weights, None, whole=True)
    with pytest.raises(TaskAbandoned):
        train(model, local(app, images(43), meter=CountingMeter(2)), settings(momentum=0.9))
    placement.assign(weights, None, whole=True)
    device = local(app, images(43))
    train(model, device, settings(momentum=0.9), masks=masks_of(weights))
    dense, _ = trained(weights, app, kernels=False, momentum=0.9)
    assert_same(model, dense, masks_of(weights))
