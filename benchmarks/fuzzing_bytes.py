"""What a fuzzer does to bytes and messages: changes to valid ones that parsers like the least."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from coppice.wire.header import ENCODINGS, MAX_RANK, PREFIX

AnyMessage = TypeVar("AnyMessage", bound=Message)

#: Where lengths, counts and offsets go wrong: around powers of two and signs.
EXTREMES = tuple(
    sorted(
        {2**power + step for power in (0, 7, 8, 15, 16, 31, 32, 53, 63) for step in (-1, 0, 1)}
        | {0, 2**64 - 1, 2**64 - 8, 2**62}
    )
)
NUMBERS = (
    math.nan, math.inf, -math.inf, -1.0, -0.0, 0.5, 1.5, 1e-308, 5e-324, 1e308, 2.0**53, -1e9,
)  # fmt: skip
TEXTS = (
    "", " ", ".", "..", "../../etc/passwd", "a" * 63, "a" * 64, "a" * 5000, "0" * 64, "F" * 64,
    "0-" + "0" * 16, "9" * 15 + "-" + "f" * 16, "\0", "a\nb", "\x1b[2J", "\u202e", "\ufeff",
    "\U0001f332", "é" * 40, "%s%n%d", "'; DROP TABLE runs; --", "{}", "[" * 3000, "NaN", "-1",
    '{"steps": 1e999}', '{"a": ' * 500, "null", "nan", "-",
)  # fmt: skip

_SIGNED = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_PADDING = 4


def changed_bytes(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` after one to four changes; `other` is what it may be spliced with."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if not result:
            result += chance.randbytes(chance.randrange(1, 64))
        chance.choice(_CHANGES)(chance, result, other)
    return bytes(result)


def _flip(chance: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(chance.choice((1, 1, 2, 16))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut(chance: random.Random, data: bytearray, other: bytes) -> None:
    del data[chance.randrange(len(data)) :]


def _splice(chance: random.Random, data: bytearray, other: bytes) -> None:
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other) + 1) :]


def _leave_out(chance: random.Random, data: bytearray, other: bytes) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice((1, 2, 4, 8, 64))]


def _put_in(chance: random.Random, data: bytearray, other: bytes) -> None:
    start, length = chance.randrange(len(data)), chance.choice((1, 2, 8, 64, 1024))
    data[start:start] = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))


def _repeat(chance: random.Random, data: bytearray, other: bytes) -> None:
    start = chance.randrange(len(data))
    part = data[start : start + chance.choice((1, 8, 64))]
    data[start:start] = part * chance.choice((1, 2, 100))


def _lie(chance: random.Random, data: bytearray, other: bytes) -> None:
    """A number of one to eight bytes becomes an extreme one."""
    width = chance.choice((1, 2, 4, 8))
    start = chance.randrange(len(data))
    value = chance.choice(EXTREMES) % 256**width
    data[start : start + width] = value.to_bytes(width, chance.choice(("little", "big")))


_CHANGES: Sequence[Callable[[random.Random, bytearray, bytes], None]] = (
    _flip, _flip, _cut, _splice, _leave_out, _put_in, _repeat, _lie, _lie,
)  # fmt: skip


# ---- payloads ----------------------------------------------------------------------------------


def payload_fields(data: bytes) -> list[tuple[int, int]]:
    """Offset and width of every number in the prefix and the entries of a valid payload."""
    found = [(4, 1), (5, 1), (8, 4), (12, 4)]
    at = PREFIX.size
    (_, _, _, _, count) = PREFIX.unpack_from(data)
    for _ in range(count):
        for width in (1, 2):
            found.append((at, width))
            at += width + int.from_bytes(data[at : at + width], "little")
        encoding, rank = data[at + 1], data[at + 3]
        found += [(at + offset, 1) for offset in range(4)]
        at += 4
        found += [(at + 4 * axis, 4) for axis in range(rank)]
        at += 4 * rank
        kind = ENCODINGS[encoding]
        numbers = 1 + (kind != "dense") + (kind == "values")
        found += [(at + 8 * place, 8) for place in range(numbers)]
        at += 8 * numbers
    return found


def lied_payload(chance: random.Random, data: bytes, fields: Sequence[tuple[int, int]]) -> bytes:
    """A payload of which one to three numbers of the header are others."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, width = chance.choice(fields)
        old = int.from_bytes(result[at : at + width], "little")
        near = old + chance.choice((-8, -1, 1, 8, old))
        new = chance.choice((near, chance.choice(EXTREMES), chance.randrange(MAX_RANK + _PADDING)))
        result[at : at + width] = (new % 256**width).to_bytes(width, "little")
    return bytes(result)


# ---- messages ----------------------------------------------------------------------------------


def changed_message(chance: random.Random, message: AnyMessage) -> AnyMessage:
    """A message of the same kind of which some fields, at any depth, are odd ones."""
    result = type(message)()
    result.CopyFrom(message)
    # The stubs have another class for the same descriptors.
    fields: Sequence[FieldDescriptor] = list(result.DESCRIPTOR.fields)  # type: ignore[arg-type]
    for _ in range(chance.choice((1, 1, 2, 4)) if fields else 0):
        field = chance.choice(fields)
        if chance.random() < 0.1:
            result.ClearField(field.name)
        else:
            _set_odd(chance, result, field)
    return result


def _set_odd(chance: random.Random, message: Message, field: FieldDescriptor) -> None:
    value = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        kind = entry.fields_by_name["value"]
        for _ in range(chance.choice((1, 2, 100))):
            value[_odd_text(chance)] = _odd(chance, kind)
    elif field.is_repeated:
        value.extend(_odd(chance, field) for _ in range(chance.choice((1, 17, 1000))))
    elif entry is not None:
        value.CopyFrom(changed_message(chance, value))
        value.SetInParent()
    else:
        setattr(message, field.name, _odd(chance, field))


def _odd(chance: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in _SIGNED:
        least, most = _SIGNED[kind]
        return min(max(chance.choice(EXTREMES) * chance.choice((1, 1, -1)), least), most)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chance.choice(NUMBERS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.randbytes(chance.choice((0, 1, 15, 300, 5000)))
    return _odd_text(chance)


def _odd_text(chance: random.Random) -> str:
    if chance.random() < 0.3:
        points = (chance.randrange(1, 0xD800) for _ in range(chance.choice((1, 8, 64, 300))))
        return "".join(map(chr, points))
    return chance.choice(TEXTS)


def wire_bytes(chance: random.Random, message: Message, others: Mapping[str, Message]) -> bytes:
    """A request as it is sent: odd fields, changed bytes, another kind's, or no message at all."""
    kind = chance.random()
    if kind < 0.6:
        return changed_message(chance, message).SerializeToString()
    if kind < 0.85:
        other = chance.choice(list(others.values())).SerializeToString()
        return changed_bytes(chance, message.SerializeToString(), other)
    if kind < 0.92:
        return chance.choice(list(others.values())).SerializeToString()
    return chance.randbytes(chance.choice((0, 1, 10, 200, 5000)))
