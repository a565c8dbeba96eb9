"""Hostile payloads: valid ones that were changed, bombs, and bytes at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
import zstandard

from benchmarks.fuzzing_bytes import changed_bytes, lied_payload, payload_fields
from coppice.errors import InvalidPayload
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import MASK, Payload, PayloadSpec, TensorSpec
from coppice.wire.header import PREFIX
from coppice.wire.payload import UNFOLDED_BYTES, check, decode, encode
from coppice.wire.values import VALUE_TYPES

NEAR = Mask.of(torch.arange(60).remainder(4) == 1)
FAR = Mask.of(torch.arange(400).remainder(90) == 50)
KNOWN = {NEAR.fingerprint: NEAR}
PAYLOAD: Payload = {
    "delta": {
        "w": torch.ones(2, 3),
        "b": torch.tensor([True, False]),
        "far": SparseTensor(FAR, torch.arange(4.0)),
        "near": SparseTensor(NEAR, torch.arange(15.0)),
        "full": SparseTensor(Mask.full((3,)), torch.zeros(3)),
    },
    "n": {"mask": FAR, "count": torch.tensor(3), "none": torch.zeros(2, 0)},
}
EXPECTS: PayloadSpec = {
    "delta": {
        "w": TensorSpec((2, 3), "float32"),
        "b": TensorSpec((2,), "bool"),
        "far": TensorSpec((400,), "float32", 4),
        "near": TensorSpec((60,), "float32", 15, NEAR.fingerprint),
        "full": TensorSpec((3,), "float32", 3),
    },
    "n": {
        "mask": TensorSpec((400,), MASK, 10),
        "count": TensorSpec((), "int64"),
        "none": TensorSpec((2, 0), "float32"),
    },
}


#: Every kind of valid ones.
SEEDS = [
    bytes(
        encode(
            PAYLOAD,
            known=known,
            coding={"delta": kind},
            generator=torch.Generator().manual_seed(0),
            compress=compress,
        )
    )
    for kind in VALUE_TYPES
    for known in ((), KNOWN)
    for compress in (False, True)
]


def payload_maker() -> Callable[[random.Random], bytes]:
    """Makes hostile payloads."""
    fields = [payload_fields(seed) for seed in SEEDS]
    bombs = list(_bombs())

    def make(chance: random.Random) -> bytes:
        place, kind = chance.randrange(len(SEEDS)), chance.random()
        if kind < 0.45:
            data = lied_payload(chance, SEEDS[place], fields[place])
            return changed_bytes(chance, data, SEEDS[0]) if chance.random() < 0.2 else data
        if kind < 0.85:
            return changed_bytes(chance, SEEDS[place], chance.choice(SEEDS))
        if kind < 0.9:
            # Few: each that is let through costs what the format allows it to.
            if chance.random() < 0.95:
                return SEEDS[place][: chance.choice(fields[place])[0]]
            bomb = chance.choice(bombs)
            return bomb if chance.random() < 0.5 else changed_bytes(chance, bomb, bomb)
        data = chance.randbytes(chance.choice((0, 1, 15, 16, 17, 100, 3000)))
        start = 16 + int.from_bytes(SEEDS[place][8:12], "little")
        return chance.choice((data, SEEDS[place][:16] + data, SEEDS[place][:start] + data))

    return make


def _bombs() -> Iterator[bytes]:
    """Small payloads that say they are large: in zstd, and as masks in coordinates."""
    for size in (2**20, UNFOLDED_BYTES, 4 * UNFOLDED_BYTES, 2**33):
        honest = bytearray(encode({"delta": {"w": torch.zeros(8)}}))
        start = PREFIX.size + PREFIX.unpack_from(honest)[3]
        header, count = honest[:start], size // 4
        header[5] = 1
        (extent, _), (length, _) = payload_fields(bytes(honest))[-2:]
        header[extent : extent + 4] = min(count, 2**32 - 1).to_bytes(4, "little")
        header[length : length + 8] = size.to_bytes(8, "little")
        real = bytes(min(size, 4 * UNFOLDED_BYTES))
        yield bytes(header) + zstandard.ZstdCompressor(level=3).compress(real)
    mask = Mask.of(torch.zeros(2**10, dtype=torch.bool))
    honest = bytearray(encode({"n": {"mask": mask}}))
    extent = payload_fields(bytes(honest))[-3][0]
    for entries in (2**20, 2**30, 2**31 - 1):
        data = bytearray(honest)
        data[extent : extent + 4] = entries.to_bytes(4, "little")
        yield bytes(data)


def try_payload(data: bytes) -> None:
    """Read it in every way: InvalidPayload, or AssertionError when the ways disagree."""
    refusal: InvalidPayload | None = None
    try:
        read = decode(bytearray(data), known=KNOWN)
        if set(read) - {group for group in read if read[group]}:
            raise AssertionError("a group without items")
        # What was read can be written, and is read as the same.
        again = decode(encode(read, known=()), known=KNOWN)
        if [list(items) for items in again.values()] != [list(items) for items in read.values()]:
            raise AssertionError("written again, the payload is another")
    except InvalidPayload as error:
        refusal = error
    fits = _passes(lambda: check(bytearray(data), EXPECTS))
    if fits != _passes(lambda: decode(bytearray(data), EXPECTS, KNOWN)):
        raise AssertionError("check and decode are not of one mind")
    if refusal is not None:
        raise refusal


def _passes(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except InvalidPayload:
        return False
    return True
