"""Payload ↔ bytes, as proto/README.md specifies under "Payloads"."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from coppice.domain import ValueType
from coppice.errors import InvalidPayload
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import MASK, Payload, PayloadSpec, dtype_name
from coppice.wire import compression, mask_bits
from coppice.wire.header import Encoding, Entry, Header, write_header
from coppice.wire.header_reader import read_header
from coppice.wire.values import check_values, read_values, values_bytes, write_values

#: A payload may unfold to this, and to so many times its own bytes.
UNFOLDED_BYTES = 64 * 2**20
UNFOLDED_TIMES = 16

#: What part of its data compression has to save.
_WORTHWHILE = 0.02
_COMPRESSION_AT = 5

_Bits: TypeAlias = mask_bits.Bytes | None


# ---- writing -----------------------------------------------------------------------------------


def encode(
    payload: Payload,
    *,
    known: Collection[str] = (),
    coding: Mapping[str, ValueType] | None = None,
    generator: torch.Generator | None = None,
    compress: bool = False,
) -> bytearray:
    """The bytes of a payload; equal payloads in equal order, written alike, are equal bytes.

    Args:
        known: Fingerprints of masks that the receiver has: of sparse tensors on these, only the
            values are written.
        coding: How the values of a group's float32 tensors travel; as they are, if not named.
        generator: Draws the rounding of int8.
        compress: Whether to use zstd where that makes this payload's data shorter by 2 % or more.

    Raises InvalidPayload, naming the tensor, for what cannot travel.
    """
    coding = coding or {}
    if generator is None and "int8" in coding.values():
        raise ValueError("to round to int8 takes a generator")
    planned = [
        _plan(group, name, item, known, coding.get(group, "float32"))
        for group, items in payload.items()
        for name, item in items.items()
    ]
    header = write_header(entry for entry, _, _ in planned)
    data = bytearray(len(header) + sum(entry.padded for entry, _, _ in planned))
    data[: len(header)] = header
    start = len(header)
    for entry, values, bits in planned:
        end = start + entry.values_bytes
        if values is not None and end > start:
            raw = torch.frombuffer(data, dtype=torch.uint8, count=end - start, offset=start)
            write_values(values, entry.travels, raw, generator, entry.label)
        if bits is not None:
            data[end : end + len(bits)] = bits.data
        start += entry.padded
    parsed = Header([entry for entry, _, _ in planned], len(header), compressed=False)
    if parsed.unfolded_bytes > _unfoldable(len(data)):
        raise InvalidPayload(f"the masks of this payload unfold to {parsed.unfolded_bytes} bytes")
    return _compressed(data, parsed) if compress else data


def _plan(
    group: str, name: str, item: Item, known: Collection[str], travels: ValueType
) -> tuple[Entry, Tensor | None, _Bits]:
    """The entry of an item, its values and the bytes of its mask."""
    mask = item if isinstance(item, Mask) else None
    values = item if isinstance(item, Tensor) else None
    if isinstance(item, SparseTensor):
        mask, values = item.mask, item.values
    dtype = MASK if values is None else dtype_name(values.dtype)
    encoding: Encoding = "dense"
    bits: _Bits = None
    fingerprint = None
    if mask is not None and values is not None and known and mask.fingerprint in known:
        encoding, fingerprint = "values", mask.fingerprint
    elif mask is not None and values is not None and mask.count == mask.size:
        encoding = "full"
    elif mask is not None:
        bits = mask_bits.coordinates(mask)
        encoding = "bitmap" if bits is None else "coordinates"
        bits = mask.packed.numpy() if bits is None else bits
    kind = travels if dtype == "float32" else dtype
    count = 0 if values is None else values.numel()
    length = 0 if values is None else values_bytes(dtype, kind, count)
    length += 0 if bits is None else len(bits)
    ones = None if mask is None else mask.count
    shape = tuple(item.shape)
    return Entry(group, name, shape, dtype, encoding, kind, ones, fingerprint, length), values, bits


def _compressed(data: bytearray, header: Header) -> bytearray:
    size = len(data) - header.start
    with memoryview(data) as view:
        frame = compression.compress(view[header.start :])
    shorter = Header(header.entries, header.start, compressed=True)
    if len(frame) > (1 - _WORTHWHILE) * size or shorter.unfolded_bytes > _unfoldable(
        header.start + len(frame)
    ):
        return data
    written = data[: header.start] + frame
    written[_COMPRESSION_AT] = 1
    return written


# ---- reading -----------------------------------------------------------------------------------


def decode(
    data: bytearray | memoryview,
    expects: PayloadSpec | None = None,
    known: Mapping[str, Mask] | None = None,
) -> dict[str, dict[str, Item]]:
    """The payload in `data`, which its tensors share memory with where they can.

    With `expects`, the payload must be exactly that and every value must be finite. `known` are
    the masks, by fingerprint, on which values may come alone. Raises InvalidPayload, whose message
    names the tensor.
    """
    payload: dict[str, dict[str, Item]] = {}
    for entry, raw, bits in _parts(data, expects):
        check_values(raw, entry.dtype, entry.travels, expects is not None, entry.label)
        item = _item(entry, raw, bits, known or {})
        if isinstance(item, Mask):
            _refuse_other(entry, item, _finds(entry, expects))
        payload.setdefault(entry.group, {})[entry.name] = item
    return payload


def check(data: bytearray | memoryview, expects: PayloadSpec) -> None:
    """Refuse, as InvalidPayload, what `decode` would, without the masks that values may be on.

    Allocates next to nothing: only data in zstd, and a bare mask whose fingerprint is expected.
    """
    for entry, raw, bits in _parts(data, expects):
        check_values(raw, entry.dtype, entry.travels, finite=True, label=entry.label)
        ones, fingerprint = entry.ones or 0, _finds(entry, expects)
        if fingerprint is not None:
            _refuse_other(entry, _mask(entry, bits, {}), fingerprint)
        elif entry.encoding == "bitmap":
            mask_bits.check_bitmap(bits, entry.size, ones, entry.label)
        elif entry.encoding == "coordinates":
            mask_bits.check_coordinates(bits, entry.size, ones, entry.label)


def _parts(
    data: bytearray | memoryview, expects: PayloadSpec | None
) -> Iterator[tuple[Entry, Tensor, mask_bits.Bytes]]:
    """The entries, each with the bytes of its values and of its mask."""
    view = memoryview(data)
    header = read_header(view, expects)
    if header.unfolded_bytes > _unfoldable(len(view)):
        raise InvalidPayload(
            f"{len(view)} bytes would unfold to {header.unfolded_bytes}; at most "
            f"{_unfoldable(len(view))} are allowed"
        )
    start = header.start
    if header.compressed:
        view = compression.decompress(view[start:], header.data_bytes)
        start = 0
    if len(view) != start + header.data_bytes:
        raise InvalidPayload(
            f"the payload has {len(view)} bytes where its header says {start + header.data_bytes}"
        )
    ends = []
    for entry in header.entries:
        if any(view[start + entry.length : start + entry.padded]):
            raise InvalidPayload(f"{entry.label} is padded with bytes that are not 0")
        ends.append(start := start + entry.padded)
    for entry, end in zip(header.entries, ends, strict=True):
        at = end - entry.padded
        middle = at + entry.values_bytes
        raw = torch.empty(0, dtype=torch.uint8)
        if middle > at:
            raw = torch.frombuffer(view, dtype=torch.uint8, count=middle - at, offset=at)
        yield entry, raw, np.frombuffer(view[middle : at + entry.length], np.uint8)


def _unfoldable(size: int) -> int:
    return UNFOLDED_BYTES + UNFOLDED_TIMES * size


def _finds(entry: Entry, expects: PayloadSpec | None) -> str | None:
    """The fingerprint that an item's own mask must have, where one is asked for."""
    if expects is None or entry.dtype != MASK:
        return None
    return expects[entry.group][entry.name].mask


def _item(entry: Entry, raw: Tensor, bits: mask_bits.Bytes, known: Mapping[str, Mask]) -> Item:
    if entry.dtype == MASK:
        return _mask(entry, bits, known)
    if entry.encoding == "dense":
        return read_values(raw, entry.dtype, entry.travels).reshape(entry.shape)
    mask = _mask(entry, bits, known)
    return SparseTensor(mask, read_values(raw, entry.dtype, entry.travels))


def _mask(entry: Entry, bits: mask_bits.Bytes, known: Mapping[str, Mask]) -> Mask:
    ones = entry.ones or 0
    if entry.encoding == "full":
        return Mask.full(entry.shape)
    if entry.fingerprint is not None:
        mask = known.get(entry.fingerprint)
        if mask is None:
            raise InvalidPayload(f"{entry.label} is on mask {entry.fingerprint}, which is not here")
        if mask.shape != entry.shape or mask.count != ones:
            raise InvalidPayload(f"{entry.label} does not fit mask {entry.fingerprint}")
        return mask
    if entry.encoding == "coordinates":
        packed = mask_bits.read_coordinates(bits, entry.size, ones, entry.label)
    else:
        mask_bits.check_bitmap(bits, entry.size, ones, entry.label)
        # A mask is held for longer than the payload that it came in.
        packed = bits.copy()
    return Mask(entry.shape, torch.from_numpy(packed))


def _refuse_other(entry: Entry, mask: Mask, fingerprint: str | None) -> None:
    if fingerprint is not None and mask.fingerprint != fingerprint:
        raise InvalidPayload(
            f"{entry.label} is mask {mask.fingerprint}; the task expects {fingerprint}"
        )
