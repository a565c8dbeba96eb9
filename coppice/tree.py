"""Save and load trees of frozen dataclasses, mappings, sequences, scalars and tensors.

One pair of functions turns such a tree into plain values (what JSON can say) and back, by the type
that it is read as; `save` and `load` put tensors beside them, in a safetensors file. Nothing is
pickled, and reading never makes a class that the type does not name.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import annotated_types
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from coppice.errors import InvalidPayload

T = TypeVar("T")

_TENSOR = "tensor"
_METADATA_LENGTH_BYTES = 8

# Wrong values are shown in messages, but may be long or deep.
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 100


def to_plain(value: object, tensors: list[Tensor] | None = None) -> Any:
    """The tree as plain values; a tensor goes to `tensors` and leaves its index in its place."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        if tensors is None:
            raise TypeError("this tree may not hold tensors")
        tensors.append(value)
        return {_TENSOR: len(tensors) - 1}
    if dataclasses.is_dataclass(value):
        return {
            item.name: to_plain(getattr(value, item.name), tensors)
            for item in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("the keys of a tree are strings")
        return {str(key): to_plain(item, tensors) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [to_plain(item, tensors) for item in value]
    raise TypeError(f"a tree may not hold a {type(value).__name__}")


def from_plain(kind: type[T], plain: object, tensors: Sequence[Tensor] = ()) -> T:
    """Read plain values as `kind`; InvalidPayload names the place that does not fit."""
    result: T = _read(kind, plain, tensors, kind.__name__)
    return result


def save(value: object) -> bytes:
    """The bytes of a safetensors file; equal trees in equal order give equal bytes."""
    tensors: list[Tensor] = []
    plain = to_plain(value, tensors)
    taken: set[int] = set()
    named = {str(index): _own(tensor, taken) for index, tensor in enumerate(tensors)}
    return save_tensors(named, metadata={"tree": json.dumps(plain, separators=(",", ":"))})


def load(kind: type[T], data: bytes) -> T:
    """Read what `save` wrote; InvalidPayload when the bytes are not that."""
    try:
        named = load_tensors(data)
        length = int.from_bytes(data[:_METADATA_LENGTH_BYTES], "little")
        header = json.loads(data[_METADATA_LENGTH_BYTES : _METADATA_LENGTH_BYTES + length])
        plain = json.loads(header["__metadata__"]["tree"])
        tensors = [named[str(index)] for index in range(len(named))]
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # RuntimeError: impossible shapes, and JSON that is nested without end.
        reason = str(error).partition("\n")[0]
        raise InvalidPayload(f"not a saved {kind.__name__}: {reason}") from None
    return from_plain(kind, plain, tensors)


def _own(tensor: Tensor, taken: set[int]) -> Tensor:
    """The tensor in memory of its own: safetensors refuses tensors that share theirs."""
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    if whole and tensor.is_contiguous() and storage.data_ptr() not in taken:
        taken.add(storage.data_ptr())
        return tensor.detach()
    return tensor.detach().clone(memory_format=torch.contiguous_format)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _read(kind: Any, plain: Any, tensors: Sequence[Tensor], where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _read(arguments[0], plain, tensors, where)
        for constraint in arguments[1:]:
            _check(constraint, value, where)
        return value
    if isinstance(kind, NewType):
        return _read(kind.__supertype__, plain, tensors, where)
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        for choice in choices[:-1]:
            try:
                return _read(choice, plain, tensors, where)
            except InvalidPayload:
                continue
        return _read(choices[-1], plain, tensors, where)
    if origin is Literal:
        if plain not in arguments:
            raise InvalidPayload(f"{where} is {_shown.repr(plain)}; allowed are {arguments}")
        return plain
    if kind is Any:
        return plain
    if isinstance(kind, type) and issubclass(kind, Tensor):
        return _read_tensor(plain, tensors, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, plain, tensors, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(plain, dict):
            raise InvalidPayload(f"{where} is not a mapping")
        return {
            key: _read(arguments[1], item, tensors, f"{where}.{key}") for key, item in plain.items()
        }
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _read_sequence(origin, arguments, plain, tensors, where)
    return _read_scalar(kind, plain, where)


def _read_tensor(plain: Any, tensors: Sequence[Tensor], where: str) -> Tensor:
    index = plain.get(_TENSOR) if isinstance(plain, dict) else None
    if type(index) is not int or not 0 <= index < len(tensors):
        raise InvalidPayload(f"{where} is not a tensor")
    return tensors[index]


def _read_dataclass(kind: Any, plain: Any, tensors: Sequence[Tensor], where: str) -> Any:
    if not isinstance(plain, dict):
        raise InvalidPayload(f"{where} is not a mapping")
    hints = _hints(kind)
    fields = {item.name for item in dataclasses.fields(kind)}
    if unknown := plain.keys() - fields:
        raise InvalidPayload(f"{where} has no {', '.join(sorted(unknown))}")
    values = {
        name: _read(hints[name], item, tensors, f"{where}.{name}") for name, item in plain.items()
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise InvalidPayload(f"{where}: {error}") from None


def _read_sequence(
    origin: type[Any], arguments: tuple[Any, ...], plain: Any, tensors: Sequence[Tensor], where: str
) -> Any:
    if not isinstance(plain, list | tuple):
        raise InvalidPayload(f"{where} is not a list")
    if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
        if len(plain) != len(arguments):
            raise InvalidPayload(f"{where} has {len(plain)} items; {len(arguments)} are needed")
        kinds = list(arguments)
    else:
        kinds = [arguments[0]] * len(plain)
    items = [
        _read(kind, item, tensors, f"{where}[{index}]")
        for index, (kind, item) in enumerate(zip(kinds, plain, strict=True))
    ]
    return tuple(items) if issubclass(origin, tuple) else items


def _read_scalar(kind: Any, plain: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in kind)
            raise InvalidPayload(
                f"{where} is {_shown.repr(plain)}; allowed are {allowed}"
            ) from None
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError:
            raise InvalidPayload(f"{where} is a number too large for a float") from None
    if kind in (int, float, str, bool) and type(plain) is kind:
        return plain
    name = getattr(kind, "__name__", str(kind))
    raise InvalidPayload(f"{where} is {_shown.repr(plain)}, not of type {name}")


def _check(constraint: object, value: Any, where: str) -> None:
    match constraint:
        case annotated_types.Ge(ge=limit):
            holds, text = value >= limit, f"at least {limit}"
        case annotated_types.Gt(gt=limit):
            holds, text = value > limit, f"more than {limit}"
        case annotated_types.Le(le=limit):
            holds, text = value <= limit, f"at most {limit}"
        case annotated_types.Lt(lt=limit):
            holds, text = value < limit, f"less than {limit}"
        case annotated_types.Len(min_length=low, max_length=high):
            holds, text = low <= len(value) <= (high or len(value)), f"{low} to {high} items"
        case _:
            raise TypeError(f"a tree cannot check {constraint!r}")
    if not holds:
        raise InvalidPayload(f"{where} is {_shown.repr(value)}; allowed is {text}")
