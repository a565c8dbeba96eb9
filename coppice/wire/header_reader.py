"""Reads the header of a payload, without trust in what it claims."""

from __future__ import annotations

from coppice.errors import InvalidPayload
from coppice.tensors import MASK, PayloadSpec
from coppice.wire.header import (
    ALIGNMENT_BYTES,
    ENCODINGS,
    FINGERPRINT_BYTES,
    MAGIC,
    MAX_HEADER_BYTES,
    MAX_MASK_ENTRIES,
    MAX_RANK,
    ONES_BYTES,
    PREFIX,
    TYPES,
    VERSION,
    Entry,
    Header,
    is_possible,
)
from coppice.wire.mask_bits import bitmap_bytes, shortest_coordinates_bytes
from coppice.wire.values import VALUE_TYPES


def read_header(data: memoryview, expects: PayloadSpec | None) -> Header:
    """The header of a payload; with `expects`, it says exactly that. Else InvalidPayload."""
    if len(data) < PREFIX.size:
        raise InvalidPayload(f"{len(data)} bytes are too few for a payload")
    magic, version, compression, length, count = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise InvalidPayload("these bytes are not a payload")
    if version != VERSION:
        raise InvalidPayload(f"payload format {version} is unknown; this program reads {VERSION}")
    if compression > 1 or bytes(data[6:8]) != bytes(2):
        raise InvalidPayload("the payload's compression is unknown")
    start = PREFIX.size + length
    if length > MAX_HEADER_BYTES or start > len(data) or start % ALIGNMENT_BYTES:
        raise InvalidPayload("the header's length is wrong")
    reader = _Reader(data[PREFIX.size : start])
    entries: list[Entry] = []
    seen: dict[str, set[str]] = {}
    for _ in range(count):
        entry = _read_entry(reader)
        if expects is not None:
            # At once: of a header that goes on and on, nothing is kept that nobody asked for.
            _compare(entry, expects)
        names = seen.setdefault(entry.group, set())
        if entry.name in names:
            raise InvalidPayload(f"{entry.label} is there twice")
        if names and entry.group != entries[-1].group:
            raise InvalidPayload(f"the entries of group {entry.group} do not stand together")
        names.add(entry.name)
        entries.append(entry)
    rest = reader.rest()
    if len(rest) >= ALIGNMENT_BYTES or any(rest):
        raise InvalidPayload("the header has bytes that belong to no entry")
    if expects is not None:
        _refuse_missing(seen, expects)
    return Header(entries, start, bool(compression))


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


def _read_entry(reader: _Reader) -> Entry:
    group = reader.text(reader.number(1))
    name = reader.text(reader.number(2))
    label = f"{group}/{name}"
    type_code, encoding_code, travels_code, rank = reader.take(4)
    if type_code >= len(TYPES) or encoding_code >= len(ENCODINGS) or rank > MAX_RANK:
        raise InvalidPayload(f"{label} has an unknown type, encoding or rank")
    dtype, encoding = TYPES[type_code], ENCODINGS[encoding_code]
    if dtype == MASK and encoding not in ("bitmap", "coordinates"):
        raise InvalidPayload(f"{label} is a mask, which has no encoding {encoding_code}")
    travels = TYPES[travels_code] if travels_code < len(TYPES) else ""
    if travels != dtype and not (dtype == "float32" and travels in VALUE_TYPES):
        raise InvalidPayload(f"{label} has a value type that {dtype} cannot have")
    shape = tuple(reader.number(4) for _ in range(rank))
    if not is_possible(shape, dtype):
        raise InvalidPayload(f"{label} has a shape that no tensor can have: {list(shape)}")
    ones = None if encoding == "dense" else reader.number(ONES_BYTES)
    fingerprint = reader.take(FINGERPRINT_BYTES).hex() if encoding == "values" else None
    length = reader.number(8)
    entry = Entry(group, name, shape, dtype, encoding, travels, ones, fingerprint, length)
    _check_counts(entry)
    return entry


def _check_counts(entry: Entry) -> None:
    least = most = entry.values_bytes
    if entry.ones is not None:
        if entry.size > MAX_MASK_ENTRIES:
            raise InvalidPayload(f"{entry.label} is too large for a mask: {list(entry.shape)}")
        if entry.ones > entry.size or (entry.encoding == "full" and entry.ones < entry.size):
            raise InvalidPayload(f"{entry.label} cannot have {entry.ones} ones")
    if entry.encoding == "bitmap":
        least = most = least + bitmap_bytes(entry.size)
    if entry.encoding == "coordinates":
        assert entry.ones is not None
        least, most = (
            least + shortest_coordinates_bytes(entry.ones),
            most + bitmap_bytes(entry.size),
        )
    if not least <= entry.length <= most:
        needed = f"{least}" if least == most else f"{least} to {most}"
        raise InvalidPayload(f"{entry.label} has {entry.length} bytes; its shape needs {needed}")


def _compare(entry: Entry, expects: PayloadSpec) -> None:
    spec = expects.get(entry.group, {}).get(entry.name)
    if spec is None:
        raise InvalidPayload(f"{entry.label} was not asked for")
    if entry.dtype != spec.dtype or entry.shape != spec.shape:
        raise InvalidPayload(
            f"{entry.label} is {entry.dtype} {list(entry.shape)}; "
            f"the task expects {spec.dtype} {list(spec.shape)}"
        )
    if entry.dtype != MASK:
        if spec.ones is None and entry.encoding != "dense":
            raise InvalidPayload(f"{entry.label} is sparse; the task expects it dense")
        if spec.ones is not None and entry.encoding == "dense":
            raise InvalidPayload(f"{entry.label} is dense; the task expects it sparse")
        if entry.fingerprint != spec.mask:
            raise InvalidPayload(
                f"{entry.label} is on {_named(entry.fingerprint)}; "
                f"the task expects {_named(spec.mask)}"
            )
    if entry.ones is None or spec.ones is None:
        return
    if entry.ones > spec.ones or (spec.mask is not None and entry.ones < spec.ones):
        bound = "at most" if spec.mask is None else "exactly"
        raise InvalidPayload(
            f"{entry.label} has {entry.ones} ones; the task expects {bound} {spec.ones}"
        )


def _named(fingerprint: str | None) -> str:
    return "a mask of its own" if fingerprint is None else f"mask {fingerprint}"


def _refuse_missing(seen: dict[str, set[str]], expects: PayloadSpec) -> None:
    missing = [
        f"{group}/{name}"
        for group, names in expects.items()
        for name in names
        if name not in seen.get(group, ())
    ]
    if missing:
        raise InvalidPayload(f"{missing[0]} is missing ({len(missing)} in all)")
