"""The local loop on masks: pruned weights stay zero, and who watches sees their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.app import build_model
from coppice.data import Examples
from coppice.kernels.stepping import Watch
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import parameters_of
from coppice.training import train
from tests.coppice.test_training import SETTINGS, settings, training
from tests.coppice.toys import ToyApp, examples, local, two_layers


def double() -> nn.Module:
    """Two layers in float64."""
    return nn.Sequential(
        nn.Linear(4, 6, dtype=torch.float64),
        nn.Tanh(),
        nn.Linear(6, 3, dtype=torch.float64),
    )


def pruned(model: nn.Module, seed: int = 0) -> dict[str, Mask]:
    """Masks of all weights, about half of each; the model's pruned weights become 0."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            kept = torch.rand(parameter.shape, generator=generator) < 0.5
            parameter.data = parameter.data.where(kept, 0.0)
            masks[name] = Mask.of(kept)
    return masks


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_pruned_weights_stay_exactly_zero(fields: dict[str, Any]) -> None:
    app = ToyApp(two_layers)
    model = build_model(app, 0)
    masks = pruned(model)
    before = {name: tensor.clone() for name, tensor in parameters_of(model).items()}
    train(model, local(app, examples(22)), settings(**fields), masks=masks)
    for name, tensor in parameters_of(model).items():
        kept = masks[name].bits if name in masks else torch.ones_like(tensor, dtype=torch.bool)
        # Not even -0, which another program may count as a weight.
        assert not tensor[~kept].view(torch.int32).any()
        assert (tensor[kept] != before[name][kept]).any()


def test_full_masks_change_nothing() -> None:
    app = ToyApp(two_layers)
    models = build_model(app, 0), build_model(app, 0)
    full = {
        name: Mask.full(tuple(tensor.shape)) for name, tensor in parameters_of(models[0]).items()
    }
    for model, masks in zip(models, (None, full), strict=True):
        train(model, local(app, examples(22)), settings(momentum=0.9), masks=masks)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_gradients_of_pruned_weights_are_those_of_the_loss_at_zero() -> None:
    app = ToyApp(double)
    model = build_model(app, 0)
    masks = pruned(model)
    data = Examples(examples(8).inputs.double(), examples(8).targets)
    seen: dict[str, Tensor] = {}

    def see(name: str, gradient: Tensor | SparseTensor) -> None:
        assert isinstance(gradient, Tensor)
        seen[name] = gradient.clone()

    watch = Watch(see, pruned_too=True)
    train(model, local(app, data), settings(steps=1, batch_size=8), masks=masks, watch=watch)

    fresh = build_model(app, 0)
    pruned(fresh)

    def loss_at(weight: Tensor, place: int, value: float) -> float:
        with torch.no_grad():
            weight.view(-1)[place] = value
            loss = float(app.loss(fresh(data.inputs), data.targets))
            weight.view(-1)[place] = 0.0
        return loss

    step, found = 1e-3, 0
    for name, mask in masks.items():
        weight = fresh.get_parameter(name)
        assert mask.count < mask.size
        for place in mask.complement().positions.tolist():
            rise = loss_at(weight, place, step) - loss_at(weight, place, -step)
            gradient = float(seen[name].view(-1)[place])
            found += gradient != 0.0
            assert gradient == pytest.approx(rise / (2 * step), rel=1e-3, abs=1e-7)
    # A hidden value that nothing reads any more has none.
    assert found > 10


def test_who_watches_sees_every_step_or_the_last_before_it_is_taken() -> None:
    weights: list[Tensor] = []
    _, model, device, sgd = training(steps=3)

    def see(name: str, gradient: Tensor | SparseTensor) -> None:
        weights.append(model.get_parameter(name).detach().clone())

    before = model.get_parameter("weight").detach().clone()
    train(model, device, sgd, watch=Watch(see))
    of_each_step = weights[:: len(weights) // 3]
    assert len(of_each_step) == 3
    assert torch.equal(of_each_step[0], before)
    assert not torch.equal(of_each_step[1], before)
    number = len(weights)
    weights.clear()
    _, model, device, sgd = training(steps=None, epochs=2, batch_size=22)
    train(model, device, sgd, watch=Watch(see, last_only=True))
    assert len(weights) == number // 3
    train(model, device, settings(steps=0), watch=Watch(see))
    assert len(weights) == number // 3


def test_who_does_not_ask_for_pruned_weights_sees_the_gradients_of_kept_ones() -> None:
    app = ToyApp(two_layers)
    model = build_model(app, 0)
    masks = pruned(model)
    seen: dict[bool, dict[str, Tensor | SparseTensor]] = {True: {}, False: {}}
    for pruned_too, gradients in seen.items():
        watch = Watch(gradients.__setitem__, pruned_too, last_only=True)
        train(
            build_model(app, 0),
            local(app, examples(8)),
            settings(steps=1),
            masks=masks,
            watch=watch,
        )
    assert seen[True].keys() == seen[False].keys() > masks.keys()
    for name, gradient in seen[False].items():
        whole = seen[True][name]
        assert isinstance(whole, Tensor)
        if name in masks:
            assert isinstance(gradient, SparseTensor)
            assert gradient.mask == masks[name]
            assert torch.equal(gradient.values, SparseTensor.take(whole, masks[name]).values)
        else:
            assert isinstance(gradient, Tensor)
