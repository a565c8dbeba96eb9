"""Payload ↔ bytes, as proto/README.md specifies under "Payloads"."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from coppice.errors import InvalidPayload
from coppice.tensors import DTYPES, Payload, PayloadSpec, TensorSpec, dtype_name

MAGIC = b"COPP"
VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20
MAX_RANK = 8
ALIGNMENT_BYTES = 8
_DENSE = 0

#: What an entry takes beside its names and extents.
_FIXED_ENTRY_BYTES = 1 + 2 + 3 + 8

_PREFIX = struct.Struct("<4sB3xII")
_TYPE_CODES = {name: code for code, name in enumerate(DTYPES)}
_TYPE_NAMES = {code: name for name, code in _TYPE_CODES.items()}


@dataclass(frozen=True)
class _Entry:
    group: str
    name: str
    spec: TensorSpec
    #: Of the tensor's first byte in the payload.
    offset: int


def encode(payload: Payload) -> bytearray:
    """The bytes of a payload; equal payloads in equal order give equal bytes."""
    header = bytearray()
    count = size = 0
    for group, tensors in payload.items():
        for name, tensor in tensors.items():
            header += _entry(group, name, tensor)
            size += _padded(tensor.numel() * tensor.element_size())
            count += 1
    header += bytes(_padded(len(header)) - len(header))
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidPayload(f"a payload's header may have {MAX_HEADER_BYTES} bytes at most")
    start = _PREFIX.size + len(header)
    data = bytearray(start + size)
    data[: _PREFIX.size] = _PREFIX.pack(MAGIC, VERSION, len(header), count)
    data[_PREFIX.size : start] = header
    view = memoryview(data)
    for tensors in payload.values():
        for tensor in tensors.values():
            length = tensor.numel() * tensor.element_size()
            if length:
                flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                view[start : start + length] = flat.numpy().data
            start += _padded(length)
    return data


def decode(
    data: bytearray | memoryview, expects: PayloadSpec | None = None
) -> dict[str, dict[str, Tensor]]:
    """The payload in `data`, which its tensors share memory with.

    With `expects`, the header must say exactly that and every value must be finite. Raises
    InvalidPayload, whose message names the tensor.
    """
    entries = _read_header(memoryview(data), expects)
    payload: dict[str, dict[str, Tensor]] = {}
    for entry in entries:
        tensor = _tensor(data, entry)
        if expects is not None and not _all_finite(tensor):
            raise InvalidPayload(f"{entry.group}/{entry.name} has values that are not finite")
        payload.setdefault(entry.group, {})[entry.name] = tensor
    return payload


def encoded_size_bytes(spec: PayloadSpec) -> int:
    """How many bytes a payload of this spec has."""
    header = size = 0
    for group, tensors in spec.items():
        for name, tensor in tensors.items():
            names = len(group.encode()) + len(name.encode())
            header += _FIXED_ENTRY_BYTES + names + 4 * len(tensor.shape)
            size += _padded(tensor.size_bytes)
    return _PREFIX.size + _padded(header) + size


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _entry(group: str, name: str, tensor: Tensor) -> bytes:
    group_bytes, name_bytes = group.encode(), name.encode()
    if not 1 <= len(group_bytes) <= 255 or not 1 <= len(name_bytes) <= 1024:
        raise InvalidPayload(f"{group}/{name}: names have 1 to 255 and 1 to 1024 bytes")
    spec = TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))
    if not _is_possible(spec):
        raise InvalidPayload(
            f"{group}/{name} has shape {list(spec.shape)}; at most {MAX_RANK} extents below 2^32 "
            "can travel"
        )
    return b"".join(
        (
            struct.pack("<B", len(group_bytes)),
            group_bytes,
            struct.pack("<H", len(name_bytes)),
            name_bytes,
            struct.pack("<BBB", _TYPE_CODES[spec.dtype], _DENSE, len(spec.shape)),
            struct.pack(f"<{len(spec.shape)}I", *spec.shape),
            struct.pack("<Q", spec.size_bytes),
        )
    )


def _is_possible(spec: TensorSpec) -> bool:
    # Of a tensor without values, torch still multiplies the other extents, in 63 bits.
    span = math.prod(max(extent, 1) for extent in spec.shape) * DTYPES[spec.dtype].itemsize
    return len(spec.shape) <= MAX_RANK and max(spec.shape, default=0) < 2**32 and span < 2**63


class _Reader:
    """Takes fields off the header; never past its end."""

    def __init__(self, header: memoryview) -> None:
        self._header = header
        self._at = 0

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._header):
            raise InvalidPayload("the header ends in the middle of an entry")
        field = bytes(self._header[self._at : end])
        self._at = end
        return field

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def text(self, length: int) -> str:
        if length == 0:
            raise InvalidPayload("an entry has an empty name")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise InvalidPayload("a name is not UTF-8") from None

    def rest(self) -> bytes:
        return bytes(self._header[self._at :])


def _read_header(data: memoryview, expects: PayloadSpec | None) -> list[_Entry]:
    if len(data) < _PREFIX.size:
        raise InvalidPayload(f"{len(data)} bytes are too few for a payload")
    magic, version, length, count = _PREFIX.unpack_from(data)
    if magic != MAGIC or bytes(data[5:8]) != bytes(3):
        raise InvalidPayload("these bytes are not a payload")
    if version != VERSION:
        raise InvalidPayload(f"payload format {version} is unknown; this program reads {VERSION}")
    start = _PREFIX.size + length
    if length > MAX_HEADER_BYTES or start > len(data) or start % ALIGNMENT_BYTES:
        raise InvalidPayload("the header's length is wrong")
    reader = _Reader(data[_PREFIX.size : start])
    entries: list[_Entry] = []
    seen: dict[str, set[str]] = {}
    offset = start
    for _ in range(count):
        entry = _read_entry(reader, offset)
        if expects is not None:
            # At once: of a header that goes on and on, nothing is kept that nobody asked for.
            _compare(entry, expects)
        names = seen.setdefault(entry.group, set())
        if entry.name in names:
            raise InvalidPayload(f"{entry.group}/{entry.name} is there twice")
        if names and entry.group != entries[-1].group:
            raise InvalidPayload(f"the entries of group {entry.group} do not stand together")
        names.add(entry.name)
        entries.append(entry)
        offset += _padded(entry.spec.size_bytes)
    rest = reader.rest()
    if len(rest) >= ALIGNMENT_BYTES or any(rest):
        raise InvalidPayload("the header has bytes that belong to no entry")
    if offset != len(data):
        raise InvalidPayload(f"the payload has {len(data)} bytes where its header says {offset}")
    for entry in entries:
        end = entry.offset + entry.spec.size_bytes
        if any(data[end : entry.offset + _padded(entry.spec.size_bytes)]):
            raise InvalidPayload(f"{entry.group}/{entry.name} is padded with bytes that are not 0")
    if expects is not None:
        _refuse_missing(seen, expects)
    return entries


def _read_entry(reader: _Reader, offset: int) -> _Entry:
    group = reader.text(reader.number(1))
    name = reader.text(reader.number(2))
    type_code, encoding, rank = reader.take(3)
    if type_code not in _TYPE_NAMES or encoding != _DENSE or rank > MAX_RANK:
        raise InvalidPayload(f"{group}/{name} has an unknown type, encoding or rank")
    shape = tuple(reader.number(4) for _ in range(rank))
    spec = TensorSpec(shape, _TYPE_NAMES[type_code])
    if not _is_possible(spec):
        raise InvalidPayload(f"{group}/{name} has a shape that no tensor can have: {list(shape)}")
    size = reader.number(8)
    if size != spec.size_bytes:
        raise InvalidPayload(f"{group}/{name} has {size} bytes; its shape needs {spec.size_bytes}")
    return _Entry(group, name, spec, offset)


def _compare(entry: _Entry, expects: PayloadSpec) -> None:
    spec = expects.get(entry.group, {}).get(entry.name)
    if spec is None:
        raise InvalidPayload(f"{entry.group}/{entry.name} was not asked for")
    if entry.spec != spec:
        raise InvalidPayload(
            f"{entry.group}/{entry.name} is {entry.spec.dtype} {list(entry.spec.shape)}; "
            f"the task expects {spec.dtype} {list(spec.shape)}"
        )


def _refuse_missing(seen: Mapping[str, Set[str]], expects: PayloadSpec) -> None:
    missing = [
        f"{group}/{name}"
        for group, names in expects.items()
        for name in names
        if name not in seen.get(group, ())
    ]
    if missing:
        raise InvalidPayload(f"{missing[0]} is missing ({len(missing)} in all)")


def _tensor(data: bytearray | memoryview, entry: _Entry) -> Tensor:
    dtype = DTYPES[entry.spec.dtype]
    count = entry.spec.size_bytes // dtype.itemsize
    if count == 0:
        return torch.empty(entry.spec.shape, dtype=dtype)
    raw = torch.frombuffer(
        data, dtype=torch.uint8, count=entry.spec.size_bytes, offset=entry.offset
    )
    if dtype is torch.bool and int(raw.max()) > 1:
        raise InvalidPayload(f"{entry.group}/{entry.name} has a bool that is neither 0 nor 1")
    return raw.view(dtype).reshape(entry.spec.shape)


def _all_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # One pass and no second array: the extremes of values with a NaN are NaN.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
