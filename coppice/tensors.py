"""Named tensors, payloads made of groups of them, and their algebra."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from coppice.errors import InvalidPayload
from coppice.sparse import Item, Mask, SparseTensor

#: Tensors by name, in the order in which the model lists them.
Tensors: TypeAlias = Mapping[str, Tensor]

#: Tensors by name, some of them perhaps sparse.
Weights: TypeAlias = Mapping[str, Tensor | SparseTensor]

#: Groups of named things: what travels between server and device. It need not be a model.
Payload: TypeAlias = Mapping[str, Mapping[str, Item]]

#: Element types that may travel, by the name under which they do.
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}

#: The type of a bare mask in a spec.
MASK = "mask"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name under which an element type travels."""
    try:
        return _NAMES[dtype]
    except KeyError:
        raise InvalidPayload(
            f"tensors of type {dtype} cannot travel; allowed are {', '.join(DTYPES)}"
        ) from None


@dataclass(frozen=True)
class TensorSpec:
    """What one item of a payload must be.

    Dense, unless `ones` is given: then a sparse tensor on the mask of that fingerprint or, without
    a fingerprint, on any mask that has no more ones. A bare mask has the type "mask".
    """

    shape: tuple[int, ...]
    #: A key of DTYPES, or MASK.
    dtype: str
    #: Ones of the mask; None for a dense tensor.
    ones: int | None = None
    #: Fingerprint of the mask that the values must be on; None where the mask comes with them.
    mask: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's elements, dense."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


#: What a payload must be, to the last tensor: group → tensor name → spec.
PayloadSpec: TypeAlias = Mapping[str, Mapping[str, TensorSpec]]


def spec_of(payload: Payload) -> PayloadSpec:
    """What a payload is: its sparse tensors on the masks that they are on."""
    return {
        group: {name: _spec(item) for name, item in items.items()}
        for group, items in payload.items()
    }


def _spec(item: Item) -> TensorSpec:
    if isinstance(item, Mask):
        return TensorSpec(item.shape, MASK, item.count)
    spec = TensorSpec(tuple(item.shape), dtype_name(item.dtype))
    if isinstance(item, SparseTensor):
        return replace(spec, ones=item.mask.count, mask=item.mask.fingerprint)
    return spec


def dense_group(payload: Payload, group: str) -> dict[str, Tensor]:
    """A group of dense tensors, empty when it is not there; InvalidPayload when others are."""
    tensors: dict[str, Tensor] = {}
    for name, item in payload.get(group, {}).items():
        if not isinstance(item, Tensor):
            raise InvalidPayload(f"{group}/{name} is not a dense tensor")
        tensors[name] = item
    return tensors


def weight_group(payload: Payload, group: str) -> dict[str, Tensor | SparseTensor]:
    """A group of dense and sparse tensors, empty when it is not there; InvalidPayload likewise."""
    weights: dict[str, Tensor | SparseTensor] = {}
    for name, item in payload.get(group, {}).items():
        if isinstance(item, Mask):
            raise InvalidPayload(f"{group}/{name} is a mask, not a tensor")
        weights[name] = item
    return weights


@overload
def add(left: Tensors, right: Tensors, scale: float = 1.0) -> dict[str, Tensor]: ...


@overload
def add(left: Weights, right: Weights, scale: float = 1.0) -> dict[str, Tensor | SparseTensor]: ...


def add(left: Weights, right: Weights, scale: float = 1.0) -> Any:
    """`left + scale * right`, name by name, in the type of `left`; ValueError on unlike masks."""
    return {name: _add(item, right[name], scale) for name, item in left.items()}


def _add(left: Tensor | SparseTensor, right: Tensor | SparseTensor, scale: float) -> Any:
    if isinstance(left, SparseTensor):
        if not isinstance(right, SparseTensor) or left.mask != right.mask:
            raise ValueError("tensors on different masks cannot be added")
        return SparseTensor(left.mask, _add(left.values, right.values, scale))
    assert isinstance(right, Tensor)
    return torch.add(left, right.to(left.dtype), alpha=scale)


def subtract(left: Weights, right: Weights) -> dict[str, Tensor | SparseTensor]:
    """`left - right`, name by name; where `right` is sparse, on its mask only.

    ValueError where `left` is on another mask.
    """
    return {name: _subtract(tensor, right[name]) for name, tensor in left.items()}


def _subtract(left: Tensor | SparseTensor, right: Tensor | SparseTensor) -> Tensor | SparseTensor:
    if isinstance(right, SparseTensor):
        kept = left if isinstance(left, SparseTensor) else SparseTensor.take(left, right.mask)
        if kept.mask != right.mask:
            raise ValueError("tensors on different masks cannot be subtracted")
        return SparseTensor(right.mask, kept.values - right.values)
    assert isinstance(left, Tensor)
    return left - right


def dense_tensors(weights: Weights) -> dict[str, Tensor]:
    """All tensors dense, zeros where a mask has none."""
    return {
        name: item.dense() if isinstance(item, SparseTensor) else item
        for name, item in weights.items()
    }


def masks_of(weights: Weights) -> dict[str, Mask]:
    """The masks of the sparse tensors."""
    return {name: item.mask for name, item in weights.items() if isinstance(item, SparseTensor)}


# ---- a module's tensors ------------------------------------------------------------------------


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters by name, shared ones once, as views without a gradient."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """The rest of the model's state by name: persistent buffers, parameters that hold no floats."""
    saved = model.state_dict(keep_vars=True).keys()
    integers = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not parameter.is_floating_point()
    }
    return integers | {
        name: buffer.detach() for name, buffer in model.named_buffers() if name in saved
    }


def assign(model: nn.Module, tensors: Weights, besides: Collection[str] = ()) -> None:
    """Copy values into all parameters and buffers but those `besides`, zeros outside a mask.

    InvalidPayload when they are another model's.
    """
    own = parameters_of(model) | buffers_of(model)
    own = {name: tensor for name, tensor in own.items() if name not in besides}
    if unlike := own.keys() ^ tensors.keys():
        raise InvalidPayload(
            f"these tensors are not this model's: {len(unlike)} names differ, "
            f"{min(unlike)!r} is one"
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape or tensor.dtype != tensors[name].dtype:
            raise InvalidPayload(
                f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}; "
                f"this model needs {tensor.dtype} {list(tensor.shape)}"
            )
    for name, tensor in own.items():
        item = tensors[name]
        if isinstance(item, SparseTensor):
            item.into(tensor)
        else:
            tensor.copy_(item)
