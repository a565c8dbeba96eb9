"""Named tensors, payloads made of groups of them, and their algebra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from coppice.errors import InvalidPayload

#: Tensors by name, in the order in which the model lists them.
Tensors: TypeAlias = Mapping[str, Tensor]

#: Groups of named tensors: what travels between server and device. It need not be a model.
Payload: TypeAlias = Mapping[str, Tensors]

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
    """What one tensor of a payload must be."""

    shape: tuple[int, ...]
    #: A key of DTYPES.
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the values, dense."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * DTYPES[self.dtype].itemsize


#: What a payload must be, to the last tensor: group → tensor name → spec.
PayloadSpec: TypeAlias = Mapping[str, Mapping[str, TensorSpec]]


def spec_of(payload: Payload) -> PayloadSpec:
    """What a payload is."""
    return {
        group: {
            name: TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))
            for name, tensor in tensors.items()
        }
        for group, tensors in payload.items()
    }


def add(left: Tensors, right: Tensors, scale: float = 1.0) -> dict[str, Tensor]:
    """`left + scale * right`, name by name, in the type of `left`."""
    return {
        name: torch.add(tensor, right[name].to(tensor.dtype), alpha=scale)
        for name, tensor in left.items()
    }


def subtract(left: Tensors, right: Tensors) -> dict[str, Tensor]:
    """`left - right`, name by name."""
    return {name: tensor - right[name] for name, tensor in left.items()}


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


def assign(model: nn.Module, tensors: Tensors) -> None:
    """Copy values into all parameters and buffers; InvalidPayload when they are another model's."""
    own = parameters_of(model) | buffers_of(model)
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
        tensor.copy_(tensors[name])
