"""The header of a payload: one entry for each item."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from coppice.errors import InvalidPayload
from coppice.tensors import DTYPES, MASK, PayloadSpec, TensorSpec
from coppice.wire.mask_bits import bitmap_bytes
from coppice.wire.values import values_bytes

MAGIC = b"COPP"
VERSION = 2
MAX_HEADER_BYTES = 16 * 2**20
MAX_RANK = 8
MAX_MASK_ENTRIES = 2**31 - 1
ALIGNMENT_BYTES = 8

Encoding: TypeAlias = Literal["dense", "values", "bitmap", "coordinates", "full"]
#: In the order of their codes.
ENCODINGS: tuple[Encoding, ...] = ("dense", "values", "bitmap", "coordinates", "full")

#: Magic, version, compression, header length, number of items.
PREFIX = struct.Struct("<4sBB2xII")

#: What every entry takes beside its names and extents; the ones; a fingerprint.
FIXED_ENTRY_BYTES = 1 + 2 + 4 + 8
ONES_BYTES = 8
FINGERPRINT_BYTES = 8

#: Element types in the order of their codes.
TYPES = (*DTYPES, MASK)
_CODES = {name: code for code, name in enumerate(TYPES)}


@dataclass(frozen=True)
class Entry:
    """What the header says of one item."""

    group: str
    name: str
    shape: tuple[int, ...]
    #: A key of DTYPES, or MASK.
    dtype: str
    encoding: Encoding
    #: Type in which the values travel; MASK where there are none.
    travels: str
    #: Ones of the mask; None when dense.
    ones: int | None
    #: Of the mask that the receiver has; None in all encodings but "values".
    fingerprint: str | None
    #: Bytes of the item's data, without padding.
    length: int

    @property
    def label(self) -> str:
        """How messages name the item."""
        return f"{self.group}/{self.name}"

    @property
    def size(self) -> int:
        """Entries of the tensor, kept or not."""
        return math.prod(self.shape)

    @property
    def values_bytes(self) -> int:
        """Bytes of the values, with which the data begins."""
        if self.dtype == MASK:
            return 0
        count = self.size if self.ones is None else self.ones
        return values_bytes(self.dtype, self.travels, count)

    @property
    def padded(self) -> int:
        """Bytes of the item's data with its padding."""
        return padded(self.length)


def padded(length: int) -> int:
    """The next multiple of ALIGNMENT_BYTES."""
    return -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True)
class Header:
    """The entries, and what follows them."""

    entries: list[Entry]
    #: Offset of the data in the payload.
    start: int
    compressed: bool

    @property
    def data_bytes(self) -> int:
        """Bytes of the data when it is not compressed."""
        return sum(entry.padded for entry in self.entries)

    @property
    def unfolded_bytes(self) -> int:
        """What a reader has to allocate for data in zstd and for masks in coordinates."""
        masks = sum(
            bitmap_bytes(entry.size) for entry in self.entries if entry.encoding == "coordinates"
        )
        return masks + (self.data_bytes if self.compressed else 0)


# ---- writing -----------------------------------------------------------------------------------


def write_header(entries: Iterable[Entry]) -> bytes:
    """Prefix and header for data that is not compressed; InvalidPayload for what cannot travel."""
    header = bytearray()
    count = 0
    for entry in entries:
        header += _entry_bytes(entry)
        count += 1
    header += bytes(padded(len(header)) - len(header))
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidPayload(f"a payload's header may have {MAX_HEADER_BYTES} bytes at most")
    return PREFIX.pack(MAGIC, VERSION, 0, len(header), count) + header


def _entry_bytes(entry: Entry) -> bytes:
    group, name = entry.group.encode(), entry.name.encode()
    if not 1 <= len(group) <= 255 or not 1 <= len(name) <= 1024:
        raise InvalidPayload(f"{entry.label}: names have 1 to 255 and 1 to 1024 bytes")
    if not is_possible(entry.shape, entry.dtype):
        raise InvalidPayload(
            f"{entry.label} has shape {list(entry.shape)}; at most {MAX_RANK} extents below 2^32 "
            "can travel"
        )
    if entry.ones is not None and entry.size > MAX_MASK_ENTRIES:
        raise InvalidPayload(f"{entry.label} has 2^31 entries or more and cannot have a mask")
    codes = (_CODES[entry.dtype], ENCODINGS.index(entry.encoding), _CODES[entry.travels])
    return b"".join(
        (
            struct.pack("<B", len(group)),
            group,
            struct.pack("<H", len(name)),
            name,
            struct.pack("<BBBB", *codes, len(entry.shape)),
            struct.pack(f"<{len(entry.shape)}I", *entry.shape),
            b"" if entry.ones is None else struct.pack("<Q", entry.ones),
            b"" if entry.fingerprint is None else bytes.fromhex(entry.fingerprint),
            struct.pack("<Q", entry.length),
        )
    )


def is_possible(shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor, with values or without, can have this shape."""
    # Of a tensor without values, torch still multiplies the other extents, in 63 bits.
    item_bytes = 1 if dtype == MASK else DTYPES[dtype].itemsize
    span = math.prod(max(extent, 1) for extent in shape) * item_bytes
    return len(shape) <= MAX_RANK and max(shape, default=0) < 2**32 and span < 2**63


# ---- sizes -------------------------------------------------------------------------------------


def encoded_size_bytes(spec: PayloadSpec) -> int:
    """How many bytes a payload of this spec has, neither recoded nor compressed.

    ValueError where the spec leaves that open: masks come with their values, or bare.
    """
    for group, name, item in _each(spec):
        if item.dtype == MASK or (item.ones is not None and item.mask is None):
            raise ValueError(f"the size of {group}/{name} depends on its mask")
    return largest_size_bytes(spec)


def largest_size_bytes(expects: PayloadSpec) -> int:
    """How many bytes a payload that fits may have at most, however it is written."""
    header = size = 0
    for group, name, spec in _each(expects):
        header += FIXED_ENTRY_BYTES + len(group.encode()) + len(name.encode())
        header += 4 * len(spec.shape)
        entries = math.prod(spec.shape)
        values = 0
        if spec.dtype != MASK:
            values = DTYPES[spec.dtype].itemsize * (entries if spec.ones is None else spec.ones)
        if spec.dtype == MASK or spec.ones is not None:
            header += ONES_BYTES
            inline = spec.dtype == MASK or spec.mask is None
            header += 0 if inline else FINGERPRINT_BYTES
            values += bitmap_bytes(entries) if inline else 0
        size += padded(values)
    return PREFIX.size + padded(header) + size


def _each(spec: PayloadSpec) -> Iterator[tuple[str, str, TensorSpec]]:
    for group, items in spec.items():
        for name, item in items.items():
            yield group, name, item
