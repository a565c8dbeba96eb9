"""Sparse layers against dense ones with zeros: forward, and the gradients of all that has one."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.kernels.layers import SparseLayer, make_dense, make_sparse, why_dense
from coppice.kernels.step import Step, Stepper
from coppice.sparse import Mask, SparseTensor

CASES = 200
DENSITIES = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
BATCHES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 20, 21, 32, 64)


def random_layer(choice: random.Random, same: bool = True) -> tuple[nn.Module, Tensor]:
    """A layer and inputs for it: any kernel, stride, padding, batch and layout in memory."""
    batch, narrow, wide = choice.choice(BATCHES), choice.randint(1, 40), choice.randint(1, 40)
    bias = choice.random() < 0.7
    if choice.random() < 0.3:
        layer: nn.Module = nn.Linear(10 * narrow, 5 * wide, bias=bias)
        inputs = torch.randn(batch, 10 * narrow)
        return layer, inputs.t().contiguous().t() if choice.random() < 0.5 else inputs
    dimensions = choice.choice((1, 2, 2))
    kernel = [choice.randint(1, 5) for _ in range(dimensions)]
    stride = choice.choice((1, 1, 2, 3))
    padding: Any = tuple(choice.randint(0, size + 1) for size in kernel)
    if stride == 1 and choice.random() < 0.3:
        padding = choice.choice(("same", "valid")) if same else "valid"
    sizes = [choice.randint(size, 14) for size in kernel]
    inputs = torch.randn(batch, narrow, *sizes)
    if dimensions == 1:
        return nn.Conv1d(narrow, wide, kernel[0], stride, padding, bias=bias), inputs
    layer = nn.Conv2d(narrow, wide, (kernel[0], kernel[1]), stride, padding, bias=bias)
    if choice.random() < 0.5:
        inputs = inputs.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    return layer, inputs


def masked(layer: nn.Module, density: float) -> SparseTensor:
    """The layer's weight on a random mask; what it prunes becomes 0 in the layer."""
    weight = layer.get_parameter("weight").detach()
    mask = Mask.of(torch.rand(weight.shape) < density)
    weight.mul_(mask.bits)
    return SparseTensor.take(weight, mask)


def gradients(
    layer: nn.Module, inputs: Tensor, outer: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Outputs, the gradient of the inputs, and those of the parameters."""
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    outer = torch.randn(outputs.shape) if outer is None else outer
    named = dict(layer.named_parameters())
    first, *rest = torch.autograd.grad(outputs, [inputs, *named.values()], outer, allow_unused=True)
    return outputs, first, dict(zip(named, rest, strict=True))


def sparse_gradients(
    layer: SparseLayer, inputs: Tensor, outer: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The same of a sparse layer, the weight's in the order of the mask's ones."""
    seen: list[Tensor] = []
    layer.stepper = Stepper(Step(rate=0.0))
    layer.stepper.watch, layer.stepper.is_armed = seen.append, True
    outputs, d_inputs, others = gradients(layer, inputs, outer)
    (d_weight,) = seen
    return outputs, d_inputs, others | {"weight": layer.in_order(d_weight).values}


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal but for the order of summation."""
    assert found.shape == expected.shape
    if expected.numel():
        scale = float(expected.detach().abs().max()) + 1e-3
        assert float((found - expected).detach().abs().max()) < 2e-5 * scale


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("seed", range(CASES))
def test_a_sparse_layer_is_the_dense_one_with_zeros(seed: int, variant: str, threads: int) -> None:
    torch.manual_seed(seed)
    choice = random.Random(seed)
    dense, inputs = random_layer(choice)
    weight = masked(dense, choice.choice(DENSITIES))
    sparse = make_sparse(copy.deepcopy(dense), weight)
    outer = torch.randn(dense(inputs).shape)
    outputs, d_inputs, others = gradients(dense, inputs, outer)
    found, found_inputs, found_others = sparse_gradients(sparse, inputs, outer)
    assert_near(found, outputs)
    assert_near(found_inputs, d_inputs)
    others["weight"] = SparseTensor.take(others["weight"], weight.mask).values
    assert found_others.keys() == others.keys()
    for name, gradient in others.items():
        assert_near(found_others[name], gradient)


@pytest.mark.parametrize("seed", range(0, CASES, 3))
def test_the_dense_gradient_is_that_of_the_dense_layer(seed: int, variant: str) -> None:
    torch.manual_seed(seed)
    choice = random.Random(seed)
    dense, inputs = random_layer(choice, same=False)
    sparse = make_sparse(copy.deepcopy(dense), masked(dense, choice.choice(DENSITIES)))
    outer = torch.randn(dense(inputs).shape)
    _, _, others = gradients(dense, inputs, outer)
    seen: list[Tensor] = []
    sparse.stepper = Stepper(Step(rate=0.0))
    sparse.stepper.watch, sparse.stepper.watches_pruned = seen.append, True
    sparse.stepper.is_armed = True
    sparse(inputs).backward(outer)
    (d_weight,) = seen
    assert_near(d_weight, others["weight"])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_layer_computes_no_gradient_of_the_data(
    seed: int, variant: str, threads: int
) -> None:
    torch.manual_seed(seed)
    dense = nn.Conv2d(1, 8, 5, padding=2)
    weight = masked(dense, 0.5)
    sparse = make_sparse(copy.deepcopy(dense), weight)
    inputs, outer = torch.randn(20, 1, 9, 9), torch.randn(20, 8, 9, 9)
    (expected,) = torch.autograd.grad(dense(inputs), [dense.weight], outer)
    sparse.stepper = Stepper(Step(rate=1.0))
    sparse.stepper.is_armed = True
    sparse(inputs).backward(outer)
    moved = weight.values - sparse.sparse_weight().values
    assert_near(moved, SparseTensor.take(expected, weight.mask).values)


def test_empty_rows_give_the_bias_and_empty_columns_no_gradient(variant: str) -> None:
    dense = nn.Linear(6, 4)
    kept = torch.zeros(4, 6, dtype=torch.bool)
    kept[2, 3] = True
    sparse = make_sparse(dense, SparseTensor(Mask.of(kept), torch.tensor([2.0])))
    inputs = torch.ones(3, 6, requires_grad=True)
    outputs = sparse(inputs)
    assert dense.bias is not None
    expected = dense.bias.detach() + torch.tensor([0.0, 0.0, 2.0, 0.0])
    assert torch.equal(outputs.detach(), expected.expand(3, 4))
    outputs.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.0]).expand(3, 6))


def test_leading_dimensions_and_single_images_are_as_in_the_dense_layer(variant: str) -> None:
    for dense, inputs in (
        (nn.Linear(12, 5), torch.randn(3, 2, 12)),
        (nn.Linear(12, 5), torch.randn(12)),
        (nn.Conv1d(3, 4, 3), torch.randn(3, 8)),
        (nn.Conv2d(3, 4, 3), torch.randn(3, 8, 7)),
    ):
        weight = masked(dense, 0.5)
        expected = dense(inputs)
        assert_near(make_sparse(dense, weight)(inputs), expected)


def test_images_of_another_size_move_the_weights_but_do_not_change_them(variant: str) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(48, 40, 3, padding=1)
    weight = masked(dense, 0.3)
    layer = make_sparse(copy.deepcopy(dense), weight)
    for size in (4, 14, 32, 4):
        inputs = torch.randn(4, 48, size, size)
        assert_near(layer(inputs), dense(inputs))
        assert torch.equal(layer.sparse_weight().values, weight.values)
    layer.assign(2 * weight.values)
    assert torch.equal(layer.sparse_weight().values, 2 * weight.values)


def test_a_change_in_place_of_the_outputs_is_part_of_the_gradient(variant: str) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(3, 4, 3)
    weight = masked(dense, 0.5)
    sparse = make_sparse(copy.deepcopy(dense), weight)
    inputs = torch.randn(5, 3, 6, 6)
    expected, found = (
        gradients(nn.Sequential(layer, nn.ReLU(inplace=True)), inputs, torch.ones(5, 4, 4, 4))
        for layer in (dense, sparse)
    )
    assert_near(found[0], expected[0])
    assert_near(found[1], expected[1])


def test_a_layer_is_the_same_object_when_it_becomes_sparse_and_dense_again(variant: str) -> None:
    layer = nn.Linear(8, 6)
    layer.weight.requires_grad_(False)
    weight = masked(layer, 0.5)
    sparse = make_sparse(layer, weight)
    assert id(sparse) == id(layer)
    assert (layer.in_features, layer.out_features) == (8, 6)
    assert isinstance(layer, nn.Linear)
    assert not layer.weight.requires_grad
    dense = make_dense(sparse)
    assert dense is layer
    assert type(layer) is nn.Linear
    assert layer.weight.is_meta
    assert layer.weight.shape == (6, 8)
    assert not layer.weight.requires_grad
    assert "mask" not in vars(layer)


def test_weights_that_need_no_gradient_stay(variant: str) -> None:
    for frozen_late in (False, True):
        layer = nn.Linear(8, 6)
        weight = masked(layer, 0.5)
        layer.weight.requires_grad_(frozen_late)
        sparse = make_sparse(layer, weight)
        sparse.weight.requires_grad_(False)
        sparse.stepper = Stepper(Step(rate=1.0))
        sparse.stepper.is_armed = True
        inputs = torch.randn(4, 8, requires_grad=True)
        sparse(inputs).sum().backward()
        assert inputs.grad is not None
        assert torch.equal(sparse.sparse_weight().values, weight.values)


def test_images_of_another_size_between_forward_and_backward_do_no_harm(variant: str) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(48, 40, 3, padding=1)
    weight = masked(dense, 0.3)
    small, large = torch.randn(4, 48, 4, 4), torch.randn(4, 48, 32, 32)
    results = []
    for layer in (dense, make_sparse(copy.deepcopy(dense), weight)):
        seen: list[Tensor] = []
        if isinstance(layer, SparseLayer):
            layer.stepper = Stepper(Step(rate=0.0))
            layer.stepper.watch, layer.stepper.is_armed = seen.append, True
        one, other = small.clone().requires_grad_(), large.clone().requires_grad_()
        (layer(one).sum() + (layer(other) ** 2).sum()).backward()
        if isinstance(layer, SparseLayer):
            gradient = layer.in_order(seen[0]).values
        else:
            assert layer.weight.grad is not None
            gradient = SparseTensor.take(layer.weight.grad, weight.mask).values
        results.append((one.grad, other.grad, gradient))
    for expected, found in zip(*results, strict=True):
        assert expected is not None
        assert found is not None
        assert_near(found, expected)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(8, 4), torch.randn(2, 7)),
        (nn.Linear(8, 4), torch.randn(2, 8, dtype=torch.float64)),
        (nn.Linear(8, 4), torch.ones(2, 8, dtype=torch.int64)),
        (nn.Conv2d(3, 4, 3), torch.randn(2, 2, 8, 8)),
        (nn.Conv2d(3, 4, 3, stride=2), torch.randn(2, 3, 2, 2)),
        (nn.Conv1d(3, 4, 5), torch.randn(2, 3, 4)),
    ],
)
def test_inputs_that_do_not_fit_are_refused_as_by_a_dense_layer(
    layer: nn.Module, inputs: Tensor, variant: str
) -> None:
    with pytest.raises(RuntimeError):
        layer(inputs)
    sparse = make_sparse(copy.deepcopy(layer), masked(layer, 0.5))
    with pytest.raises(RuntimeError):
        sparse(inputs)


def test_images_too_wide_for_16_bits_are_refused(variant: str) -> None:
    dense = nn.Conv2d(1, 2, (5, 1))
    sparse = make_sparse(copy.deepcopy(dense), masked(dense, 1.0))
    with pytest.raises(RuntimeError, match="too wide"):
        sparse(torch.randn(1, 1, 6, 20_000))
    assert_near(sparse(inputs := torch.randn(1, 1, 6, 16_000)), dense(inputs))


def test_a_batch_of_none_gives_none(variant: str) -> None:
    for dense, shape in ((nn.Linear(8, 4), (0, 8)), (nn.Conv2d(3, 4, 3), (0, 3, 8, 8))):
        sparse = make_sparse(copy.deepcopy(dense), masked(dense, 0.5))
        inputs = torch.zeros(shape, requires_grad=True)
        outputs = sparse(inputs)
        assert outputs.shape == dense(inputs).shape
        outputs.sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.shape == shape


def test_half_precision_by_autocast_is_computed_in_full(variant: str) -> None:
    dense = nn.Linear(8, 4)
    sparse = make_sparse(copy.deepcopy(dense), masked(dense, 0.5))
    inputs = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = sparse(inputs.bfloat16())
    assert_near(found, dense(inputs.bfloat16().float()))


def test_a_copy_has_the_weights_and_is_its_own(variant: str) -> None:
    dense = nn.Conv2d(48, 40, 3, padding=1)
    weight = masked(dense, 0.3)
    layer = make_sparse(dense, weight)
    inputs = torch.randn(4, 48, 6, 6)
    expected = layer(inputs)
    twin = copy.deepcopy(layer)
    assert_near(twin(inputs), expected)
    twin.assign(0 * weight.values)
    assert torch.equal(layer.sparse_weight().values, weight.values)


def test_no_gradient_of_a_gradient_is_silently_left_out(variant: str) -> None:
    layer = make_sparse(dense := nn.Linear(8, 4), masked(dense, 0.5))
    inputs = torch.randn(4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad((layer(inputs) ** 2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Scaled(nn.Linear):
    """Somebody's own layer."""


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "groups"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilated"),
        (nn.Conv2d(4, 4, 3, stride=(1, 2)), "strides"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Linear(4, 4, dtype=torch.float64), "float64"),
        (nn.Embedding(4, 4), "Embedding"),
        (Scaled(4, 4), "Scaled"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_what_no_sparse_layer_can_do_stays_dense_for_a_reason(
    layer: nn.Module, reason: str
) -> None:
    assert reason in (why_dense(layer) or "")
    weight = SparseTensor(Mask.full((1,)), torch.zeros(1))
    with pytest.raises(ValueError, match=reason):
        make_sparse(layer, weight)


def test_the_index_arrays_take_less_than_a_dense_weight(variant: str) -> None:
    dense = nn.Linear(1000, 1000)
    layer = make_sparse(dense, masked(dense, 0.1))
    layer(torch.randn(20, 1000))
    assert isinstance(layer, SparseLayer)
    structure = layer.structure(1, 1, 20)
    assert structure.count == layer.weight.numel()
    # Two offsets of 16 bits and a position of 32.
    assert structure.size_bytes < 8 * structure.count + 64 * 1000
