"""Payload bytes built by hand, field by field, as proto/README.md says."""

from __future__ import annotations

import struct
from collections.abc import Sequence

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


def padded(data: bytes) -> bytes:
    """Zero bytes up to a multiple of 8."""
    return data + bytes(-len(data) % 8)


def entry(
    group: str | bytes,
    name: str | bytes,
    code: int,
    shape: Sequence[int],
    size_bytes: int,
    encoding: int = 0,
) -> bytes:
    """One entry of the header."""
    group = group.encode() if isinstance(group, str) else group
    name = name.encode() if isinstance(name, str) else name
    return (
        struct.pack("<B", len(group))
        + group
        + struct.pack("<H", len(name))
        + name
        + struct.pack("<BBB", code, encoding, len(shape))
        + b"".join(struct.pack("<I", extent) for extent in shape)
        + struct.pack("<Q", size_bytes)
    )


def payload(
    entries: Sequence[bytes],
    data: Sequence[bytes] = (),
    *,
    magic: bytes = b"COPP",
    version: int = 1,
    zero: bytes = bytes(3),
    count: int | None = None,
) -> bytearray:
    """A whole payload; `data` are the tensors' bytes, padded here."""
    header = padded(b"".join(entries))
    number = len(entries) if count is None else count
    return bytearray(
        magic
        + struct.pack("<B", version)
        + zero
        + struct.pack("<II", len(header), number)
        + header
        + b"".join(map(padded, data))
    )
