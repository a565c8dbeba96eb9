"""Convolution and linear layers that hold nothing but their kept weights.

Tensors keep the shapes that every module expects, batch first. In memory they lie batch-innermost,
as the library needs them: the strides say so, torch's elementwise operations, views and `flatten`
keep them, and where they were lost a layer lays its input out anew. So a layer fits into any model,
and how fast it is, not what it computes, depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coppice.kernels.convolution import sparse_convolution
from coppice.kernels.step import Stepper
from coppice.kernels.structure import MAX_OFFSET, Geometry, Structure
from coppice.sparse import Mask, SparseTensor


class SparseLayer(nn.Module):
    """A dense layer that has become sparse: the same object, of another class.

    `weight` is its kept weights, one-dimensional: in the order of the mask's ones until there was
    an input, and after in that of the structure.
    """

    mask: Mask
    weight: Tensor
    #: Takes the weights' steps; without one the layer computes no gradient of them.
    stepper: Stepper | None
    _structure: Structure | None

    def form(self) -> tuple[tuple[int, int], int, tuple[int, int, int, int]]:
        """Height and width of the kernel, stride, and rows and columns of zeros around images."""
        return (1, 1), 1, (0, 0, 0, 0)

    def geometry(self, height: int, width: int) -> Geometry:
        """The layer for images of this size. RuntimeError when they are too small or too wide."""
        kernel, stride, (above, below, left, right) = self.form()
        down, across = height + above + below - kernel[0], width + left + right - kernel[1]
        if min(down, across) < 0:
            raise RuntimeError(f"images of {height}x{width} are too small for a kernel of {kernel}")
        outputs = (down // stride + 1, across // stride + 1)
        geometry = Geometry(height, width, *kernel, stride, above, left, *outputs)
        if geometry.reach > MAX_OFFSET:
            raise RuntimeError(f"images of {height}x{width} are too wide for a sparse layer")
        return geometry

    def structure(self, height: int, width: int, batch: int) -> Structure:
        """The index arrays for images of this size; made anew when it is another one."""
        geometry = self.geometry(height, width)
        if self._structure is None or self._structure.geometry != geometry:
            self.adopt(Structure(self.mask, geometry, batch))
        assert self._structure is not None
        return self._structure

    def adopt(self, new: Structure) -> None:
        """Bring the weights, and what belongs to them, into the order of these index arrays."""
        old = self._structure
        if old is new:
            return

        def reorder(stored: Tensor) -> None:
            new.store(stored.clone() if old is None else old.restore(stored), stored)

        reorder(self.weight.detach())
        if self.stepper is not None:
            self.stepper.reordered(reorder)
        self._structure = new

    def sparse_weight(self) -> SparseTensor:
        """The weight; its values are copies."""
        return self.in_order(self.weight.detach())

    def in_order(self, stored: Tensor) -> SparseTensor:
        """What lies as the weights do, in the order of the mask's ones; a copy."""
        values = stored.clone() if self._structure is None else self._structure.restore(stored)
        return SparseTensor(self.mask, values)

    def assign(self, values: Tensor) -> None:
        """Take new values of the kept weights, float32, in the order of the mask's ones."""
        if self._structure is None:
            self.weight.detach().copy_(values)
        else:
            self._structure.store(values, self.weight.detach())

    def __getstate__(self) -> Mapping[str, Any]:
        """For copies: without index arrays, which hold addresses, nor steps under way."""
        weight = nn.Parameter(self.sparse_weight().values, self.weight.requires_grad)
        parameters = {**self._parameters, "weight": weight}
        return self.__dict__ | {"_parameters": parameters, "_structure": None, "stepper": None}


class SparseLinear(SparseLayer, nn.Linear):
    """`nn.Linear` on a mask."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        flat = input if input.dim() == 2 else input.reshape(-1, input.shape[-1])
        outputs = sparse_convolution(flat[:, :, None, None], self)[:, :, 0, 0]
        return outputs.reshape(*input.shape[:-1], outputs.shape[1])


class SparseConv2d(SparseLayer, nn.Conv2d):
    """`nn.Conv2d` on a mask."""

    def form(self) -> tuple[tuple[int, int], int, tuple[int, int, int, int]]:
        """As it says."""
        kernel = (self.kernel_size[0], self.kernel_size[1])
        return kernel, self.stride[0], _borders(self.padding, kernel)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, height, width) → (N, out, height, width); N may be missing."""
        outputs = sparse_convolution(input if input.dim() == 4 else input[None], self)
        return outputs if input.dim() == 4 else outputs[0]


class SparseConv1d(SparseLayer, nn.Conv1d):
    """`nn.Conv1d` on a mask."""

    def form(self) -> tuple[tuple[int, int], int, tuple[int, int, int, int]]:
        """As of images of one row."""
        kernel = (1, self.kernel_size[0])
        padding = self.padding if isinstance(self.padding, str) else (0, *self.padding)
        return kernel, self.stride[0], _borders(padding, kernel)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, length) → (N, out, length); N may be missing."""
        images = (input if input.dim() == 3 else input[None])[:, :, None]
        outputs = sparse_convolution(images, self)[:, :, 0]
        return outputs if input.dim() == 3 else outputs[0]


_SPARSE: Mapping[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}
_DENSE = {sparse: dense for dense, sparse in _SPARSE.items()}


def make_sparse(layer: nn.Module, weight: SparseTensor) -> SparseLayer:
    """Let a dense layer become a sparse one with this weight. ValueError when it cannot."""
    if (reason := why_dense(layer)) is not None:
        raise ValueError(reason)
    requires_grad = layer.get_parameter("weight").requires_grad
    # The same object: whatever else refers to the layer goes on to.
    layer.__class__ = _SPARSE[type(layer)]
    assert isinstance(layer, SparseLayer)
    layer.weight = nn.Parameter(weight.values.clone(), requires_grad)
    layer.mask, layer.stepper, layer._structure = weight.mask, None, None
    return layer


def make_dense(layer: SparseLayer) -> nn.Module:
    """The way back. Of the weight there is only the shape then, on torch's meta device."""
    shape, requires_grad = layer.mask.shape, layer.weight.requires_grad
    del layer.mask, layer.stepper, layer._structure
    layer.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad)
    dense: nn.Module = layer
    dense.__class__ = _DENSE[type(layer)]
    return dense


def dense_like(layer: SparseLayer, weight: Tensor) -> nn.Module:
    """A new dense layer of the same kind with this weight, which may have fewer rows."""
    kind = _DENSE[type(layer)]
    result = kind.__new__(kind)
    skipped = ("mask", "stepper", "_structure")
    result.__dict__ = {key: value for key, value in vars(layer).items() if key not in skipped}
    bias = layer._parameters["bias"]
    own = None if bias is None else nn.Parameter(bias.detach()[: weight.shape[0]])
    result._parameters = {"weight": nn.Parameter(weight), "bias": own}
    return result


def why_dense(layer: nn.Module) -> str | None:
    """Why a layer cannot become a sparse one; None when it can."""
    # A class of somebody's own, or a parametrized one, may do anything with its weight.
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or type(layer) not in _SPARSE:
        return f"{type(layer).__name__} is none of Linear, Conv1d and Conv2d"
    if layer._parameters.get("weight") is None or "bias" not in layer._parameters:
        return "its weight or bias is computed from something else"
    if layer.weight.dtype != torch.float32:
        return f"its weights are {layer.weight.dtype}, not float32"
    if layer.bias is not None and layer.bias.dtype != torch.float32:
        return f"its bias is {layer.bias.dtype}, not float32"
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups != 1:
        return "it has groups"
    if any(size != 1 for size in layer.dilation):
        return "it is dilated"
    if len(set(layer.stride)) > 1:
        return "its strides differ"
    if layer.padding_mode != "zeros":
        return f"it pads with {layer.padding_mode!r}"
    return None


def _borders(padding: str | Sequence[int], kernel: tuple[int, int]) -> tuple[int, int, int, int]:
    if padding == "same":
        above, left = ((size - 1) // 2 for size in kernel)
        return above, kernel[0] - 1 - above, left, kernel[1] - 1 - left
    down, across = (0, 0) if isinstance(padding, str) else padding
    return down, down, across, across
