"""The autograd function of sparse layers: the library's forward and backward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from ctypes import byref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from coppice.kernels.layout import batch_first, floats, scratch, to_batch_innermost
from coppice.kernels.library import Library, UpdateArrays, address, library
from coppice.kernels.structure import TILE_FLOATS, Geometry, Structure

if TYPE_CHECKING:
    from coppice.kernels.layers import SparseLayer

#: Rows in memory are a multiple of so many floats.
_ROW_FLOATS = 4


def sparse_convolution(inputs: Tensor, layer: SparseLayer) -> Tensor:
    """(N, in, height, width) → (N, out, height, width), batch-innermost in memory.

    RuntimeError for inputs that do not fit the layer, as of a dense one.
    """
    if torch.is_autocast_enabled("cpu"):
        # The kernels know float32 only.
        inputs = inputs.float()
    geometry = layer.geometry(*inputs.shape[2:])
    channels = layer.mask.size // (layer.mask.shape[0] * math.prod(layer.form()[0]))
    if inputs.dtype != torch.float32 or inputs.shape[1] != channels:
        raise RuntimeError(
            f"a sparse layer of {channels} input channels in float32 was given "
            f"{inputs.dtype} {list(inputs.shape)}"
        )
    if len(inputs) == 0:
        # Nothing, but tied to what it would be a function of.
        shape = (0, layer.mask.shape[0], geometry.out_height, geometry.out_width)
        return inputs.sum() * inputs.new_zeros(shape)
    if layer.stepper is not None and layer.weight.requires_grad and torch.is_grad_enabled():
        layer.stepper.used()
    apply: Callable[..., Tensor] = _SparseConvolution.apply
    return apply(inputs, layer.weight, layer._parameters["bias"], layer)


class _SparseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: SparseLayer
    ) -> Tensor:
        found = library()
        assert found is not None
        count, _, height, width = inputs.shape
        structure = layer.structure(height, width, count)
        laid_out = to_batch_innermost(found, inputs, _padded_batch(count, structure.geometry))
        outputs = _forward(found, structure, weight, bias, laid_out)
        ctx.layer, ctx.structure, ctx.count = layer, structure, count
        ctx.save_for_backward(laid_out)
        return batch_first(outputs, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = library()
        assert found is not None
        (laid_out,) = ctx.saved_tensors
        layer, structure = ctx.layer, ctx.structure
        gradient = to_batch_innermost(found, gradients[0], laid_out.shape[-1])
        # Perhaps the layer has seen images of another size since.
        layer.adopt(structure)
        weight = layer.weight.detach()
        stepper = layer.stepper if ctx.needs_input_grad[1] else None
        if stepper is None or not stepper.is_armed:
            stepper = None
            how = UpdateArrays(address(scratch("gradient", weight.numel()).zero_()))
        else:
            if stepper.needs_dense:
                # Of a layer that is used again, it has to last until the last use has come back.
                own = scratch if stepper.is_only_use else _new
                stepper.add_dense(_dense_gradient(laid_out, gradient, layer, own))
            how = stepper.arrays(weight)
        d_input = None
        if ctx.needs_input_grad[0]:
            d_input = _backward(found, structure, weight, how, laid_out, gradient)
        else:
            _weight_gradient(found, structure, weight, how, laid_out, gradient)
        if stepper is not None:
            stepper.came_back(found, weight)
        d_bias = None
        if ctx.needs_input_grad[2]:
            d_bias = floats(structure.rows)
            sizes = structure.rows, gradient[0].numel(), torch.get_num_threads()
            found.row_sums(address(gradient), address(d_bias), *sizes)
        if d_input is not None:
            d_input = batch_first(d_input, ctx.count)
        # The weights' gradient is the stepper's.
        return d_input, None, d_bias, None


def _forward(
    found: Library, structure: Structure, weight: Tensor, bias: Tensor | None, laid_out: Tensor
) -> Tensor:
    geometry, batch = structure.geometry, laid_out.shape[-1]
    outputs = floats(structure.rows, geometry.out_height, geometry.out_width, batch)
    # Where several tiles read the weights it pays to bring them into their order first.
    is_stored = geometry.out_height * geometry.out_width * batch <= TILE_FLOATS
    if structure.stored_at is not None and not is_stored:
        ordered = scratch("weights", structure.count)
        torch.index_select(weight, 0, structure.stored_at, out=ordered)
        weight = ordered
    padded = _padded(found, laid_out, geometry)
    found.forward(
        byref(structure.layer),
        address(weight),
        is_stored,
        address(bias),
        address(padded),
        address(outputs),
        batch,
        torch.get_num_threads(),
    )
    return outputs


def _backward(
    found: Library,
    structure: Structure,
    weight: Tensor,
    how: UpdateArrays,
    laid_out: Tensor,
    gradient: Tensor,
) -> Tensor:
    """The gradient of the input, laid out as that is."""
    geometry, batch = structure.geometry, laid_out.shape[-1]
    threads = torch.get_num_threads()
    inner = laid_out
    d_inner = d_input = torch.empty_like(laid_out)
    if geometry.is_packed:
        inner = _padded(found, laid_out, geometry)
        d_inner = scratch("d_inner", *inner.shape)
    spread = _spread(found, gradient, geometry)
    found.backward(
        byref(structure.layer),
        address(weight),
        byref(how),
        address(spread),
        address(inner),
        address(d_inner),
        batch,
        threads,
    )
    if geometry.is_packed:
        borders = geometry.top, geometry.left, geometry.stride, geometry.phases
        sizes = *laid_out.shape[:3], *borders, *geometry.padded, batch
        found.unpad(address(d_inner), address(d_input), *sizes, threads)
    return d_input


def _weight_gradient(
    found: Library,
    structure: Structure,
    weight: Tensor,
    how: UpdateArrays,
    laid_out: Tensor,
    gradient: Tensor,
) -> None:
    padded = _padded(found, laid_out, structure.geometry)
    found.weight_gradient(
        byref(structure.layer),
        address(weight),
        byref(how),
        address(gradient),
        address(padded),
        laid_out.shape[-1],
        torch.get_num_threads(),
    )


def _new(use: str, *shape: int) -> Tensor:
    return floats(*shape)


def _dense_gradient(
    laid_out: Tensor, gradient: Tensor, layer: SparseLayer, memory: Callable[..., Tensor]
) -> Tensor:
    """The gradient of all entries of the weight, kept or pruned, of the weight's shape."""
    shape = layer.mask.shape
    kernel, stride, (above, below, left, right) = layer.form()
    if kernel == (1, 1) and stride == 1 and not any((above, below, left, right)):
        result = memory("dense gradient", shape[0], laid_out.shape[0])
        return torch.mm(gradient.flatten(1), laid_out.flatten(1).t(), out=result).view(shape)
    padded = functional.pad(laid_out, (0, 0, left, right, above, below))
    height, width = (stride * extent for extent in gradient.shape[1:3])
    result = memory("dense gradient", shape[0], laid_out.shape[0], *kernel)
    # An entry of the kernels at a time: torch's own takes four times the memory of the result.
    for row, column in itertools.product(*map(range, kernel)):
        seen = padded[:, row : row + height : stride, column : column + width : stride]
        result[:, :, row, column] = torch.mm(gradient.flatten(1), seen.flatten(1).t())
    return result.view(shape)


def _padded(found: Library, laid_out: Tensor, geometry: Geometry) -> Tensor:
    """The input with its border, in the phases of the stride."""
    channels, height, width, batch = laid_out.shape
    if geometry.stride == 1 and geometry.padded == (height, width):
        return laid_out
    result = scratch("padded", channels * geometry.phases**2, *geometry.padded, batch)
    borders = geometry.top, geometry.left, geometry.stride, geometry.phases
    sizes = channels, height, width, *borders, *geometry.padded, batch
    found.pad(address(laid_out), address(result), *sizes, torch.get_num_threads())
    return result


def _spread(found: Library, gradient: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the output with a border, where kernels reach beyond it."""
    channels, height, width, batch = gradient.shape
    if geometry.spread == (height, width):
        return gradient
    result = scratch("spread", channels, *geometry.spread, batch)
    sizes = channels, height, width, *geometry.spread_border, 1, 1, *geometry.spread, batch
    found.pad(address(gradient), address(result), *sizes, torch.get_num_threads())
    return result


def _padded_batch(count: int, geometry: Geometry) -> int:
    """The least batch with which rows are multiples of four floats in memory."""
    out, into = geometry.out_width, geometry.inner[1]
    # Rows without a gap are one.
    if out == geometry.padded[1]:
        out *= geometry.out_height
    if into == geometry.spread[1]:
        into *= geometry.inner[0]
    batch = count
    while out * batch % _ROW_FLOATS or into * batch % _ROW_FLOATS:
        batch += 1
    return batch
