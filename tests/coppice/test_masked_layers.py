"""A layer that is trained on a mask computes what one does that multiplies by the mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, assign, parameters_of
from coppice.training import Sgd, train
from tests.coppice.toys import ToyApp, examples, local

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, padding=1), (3, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (3, 2, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), (3, 4, 6, 6)),
}


def masked(layer: nn.Module) -> Mask:
    """Half of the layer's weights are pruned, in the layer itself by being zero."""
    assert isinstance(layer.weight, Tensor)
    generator = torch.Generator().manual_seed(1)
    mask = Mask.of(torch.rand(layer.weight.shape, generator=generator) < 0.5)
    parameters: Weights = parameters_of(layer)
    weights = {**parameters, "weight": SparseTensor.take(layer.weight, mask)}
    assign(layer, weights)
    return mask


def outcome(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs and the gradient of the inputs, for one loss."""
    leaf = inputs.clone().requires_grad_()
    outputs = forward(leaf)
    (outputs * torch.linspace(-1, 1, outputs.numel()).reshape(outputs.shape)).sum().backward()
    assert leaf.grad is not None
    return outputs.detach(), leaf.grad


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_masked_layer(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    inputs = torch.randn(shape)
    # The reference multiplies by the mask in the graph; its own weights are not zero anywhere.
    reference = {key: value.clone().requires_grad_() for key, value in parameters_of(layer).items()}
    mask = masked(layer)
    effective = reference | {"weight": reference["weight"] * mask.bits}

    outputs, towards_inputs = outcome(layer, inputs)
    expected, expected_inputs = outcome(lambda x: functional_call(layer, effective, x), inputs)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(towards_inputs, expected_inputs, rtol=1e-5, atol=1e-6)
    gradients = {key: parameter.grad for key, parameter in layer.named_parameters()}
    assert gradients["weight"] is not None
    assert reference["weight"].grad is not None
    torch.testing.assert_close(gradients["bias"], reference["bias"].grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradients["weight"] * mask.bits, reference["weight"].grad, rtol=1e-5, atol=1e-6
    )
    # Of pruned weights, too, there is a gradient: without it nothing could grow back.
    assert (gradients["weight"][~mask.bits] != 0).any()


def test_a_step_on_a_mask_is_the_step_of_the_masked_layer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    mask = masked(layer)
    before = layer.weight.detach().clone()
    device = local(ToyApp(lambda: layer), examples(4))
    loss = nn.functional.cross_entropy(layer(device.train.inputs), device.train.targets)
    (gradient,) = torch.autograd.grad(loss, layer.weight)
    sgd = Sgd(learning_rate=0.1, steps=1, epochs=None, batch_size=4)
    train(layer, device, sgd, masks={"weight": mask})
    assert not layer.weight[~mask.bits].any()
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * gradient * mask.bits)
