"""Payload bytes built by hand, field by field, as proto/README.md says; how tests read them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
import torch

from coppice.errors import InvalidPayload
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import Payload
from coppice.wire.payload import decode

#: The element types' codes and sizes, copied from the page.
CODES = {
    "float32": (0, 4),
    "float64": (1, 8),
    "float16": (2, 2),
    "bfloat16": (3, 2),
    "int64": (4, 8),
    "int32": (5, 4),
    "int16": (6, 2),
    "int8": (7, 1),
    "uint8": (8, 1),
    "bool": (9, 1),
}

MASK_CODE = 10
DENSE, VALUES, BITMAP, COORDINATES, FULL = range(5)


def padded(data: bytes) -> bytes:
    """Zero bytes up to a multiple of 8."""
    return data + bytes(-len(data) % 8)


def entry(
    group: str | bytes,
    name: str | bytes,
    code: int,
    shape: Sequence[int],
    size_bytes: int,
    encoding: int = DENSE,
    *,
    travels: int | None = None,
    ones: int | None = None,
    fingerprint: bytes = b"",
) -> bytes:
    """One entry of the header; the value type is the element type unless it is named."""
    group = group.encode() if isinstance(group, str) else group
    name = name.encode() if isinstance(name, str) else name
    return (
        struct.pack("<B", len(group))
        + group
        + struct.pack("<H", len(name))
        + name
        + struct.pack("<BBBB", code, encoding, code if travels is None else travels, len(shape))
        + b"".join(struct.pack("<I", extent) for extent in shape)
        + (b"" if ones is None else struct.pack("<Q", ones))
        + fingerprint
        + struct.pack("<Q", size_bytes)
    )


def payload(
    entries: Sequence[bytes],
    data: Sequence[bytes] = (),
    *,
    magic: bytes = b"COPP",
    version: int = 2,
    compression: int = 0,
    zero: bytes = bytes(2),
    count: int | None = None,
) -> bytearray:
    """A whole payload; `data` are the tensors' bytes, padded here."""
    header = padded(b"".join(entries))
    number = len(entries) if count is None else count
    return bytearray(
        magic
        + struct.pack("<BB", version, compression)
        + zero
        + struct.pack("<II", len(header), number)
        + header
        + b"".join(map(padded, data))
    )


def mask_at(*positions: int, size: int) -> Mask:
    """The mask with ones at these positions."""
    kept = torch.zeros(size, dtype=torch.bool)
    kept[list(positions)] = True
    return Mask.of(kept)


def random_mask(density: float, *shape: int, seed: int = 0) -> Mask:
    """A mask each of whose entries is kept with the same probability."""
    generator = torch.Generator().manual_seed(seed)
    return Mask.of(torch.rand(shape, generator=generator) < density)


def bits(item: Item) -> object:
    """An item as something that is equal only when every bit is."""
    if isinstance(item, Mask):
        return item.shape, item.packed.numpy().tobytes()
    if isinstance(item, SparseTensor):
        return bits(item.mask), bits(item.values)
    flat = item.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if item.numel() else b""
    return item.dtype, tuple(item.shape), raw


def bits_of(groups: Payload) -> list[tuple[str, list[tuple[str, object]]]]:
    """A payload likewise, in its order; groups without items do not travel."""
    return [
        (group, [(name, bits(item)) for name, item in items.items()])
        for group, items in groups.items()
        if items
    ]


def refuse(data: bytes | bytearray, match: str) -> None:
    """The bytes are refused with a message like this."""
    with pytest.raises(InvalidPayload, match=match):
        decode(bytearray(data))


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that Python and numpy allocated while it worked."""
    tracemalloc.start()
    try:
        with suppress(InvalidPayload):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
