"""The two ways in which a mask's ones travel: a bitmap, and Rice-coded gaps between ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from coppice.errors import InvalidPayload
from coppice.sparse import Mask

Bytes = npt.NDArray[np.uint8]

MAX_PARAMETER = 30

#: Bytes of packed bits that are unpacked at once: what that makes stays within the caches.
_SLICE_BYTES = 2**15


def bitmap_bytes(size: int) -> int:
    """Bytes of a bitmap for `size` entries."""
    return -(-size // 8)


def shortest_coordinates_bytes(ones: int) -> int:
    """Bytes that the coordinates of so many ones take at least."""
    return 1 + -(-ones // 8)


# ---- writing -----------------------------------------------------------------------------------


def coordinates(mask: Mask) -> Bytes | None:
    """The ones of a mask as coordinates; None when its bitmap is not longer."""
    packed, ones = mask.packed.numpy(), mask.count
    if ones == 0:
        return np.zeros(1, np.uint8) if len(packed) > 1 else None
    # A gap takes k + 1 bits or more. So from half the entries on only k = 0 can be the shortest.
    gaps = _gaps(packed, ones) if 2 * ones < mask.size else None
    planes, quotients = ([], _last(packed) + 1 - ones) if gaps is None else _planes(gaps)
    size = 1 + sum(map(len, planes)) + bitmap_bytes(ones + quotients)
    if size >= len(packed):
        return None
    if gaps is None or not planes:
        # With k = 0 the unary part is the bitmap, up to its last one.
        unary = packed[: bitmap_bytes(ones + quotients)]
    else:
        unary = _unary(gaps, len(planes), quotients)
    return np.concatenate([np.array([len(planes)], np.uint8), *planes, unary])


def _gaps(packed: Bytes, ones: int) -> npt.NDArray[np.int32]:
    gaps = np.empty(ones, np.int32)
    at, before = 0, -1
    for start in range(0, len(packed), _SLICE_BYTES):
        found = _ones_in(packed, start)
        if found.size:
            gaps[at] = found[0] - before - 1
            np.subtract(found[1:], found[:-1], out=gaps[at + 1 : at + found.size])
            gaps[at + 1 : at + found.size] -= 1
            at += found.size
            before = int(found[-1])
    return gaps


def _planes(gaps: npt.NDArray[np.int32]) -> tuple[list[Bytes], int]:
    """The planes for the best k, and the sum of the quotients that remain."""
    planes: list[Bytes] = []
    quotients = int(gaps.sum(dtype=np.int64))
    low = gaps.astype(np.uint8)
    while True:
        k = len(planes)
        if k and k % 8 == 0:
            low = (gaps >> k).astype(np.uint8)
        plane = np.packbits(low & np.uint8(1 << k % 8), bitorder="little")
        halved = (quotients - _count(plane)) // 2
        # One more bit for each gap has to save more than that. What it saves falls with every k.
        if quotients - halved <= len(gaps):
            return planes, quotients
        planes.append(plane)
        quotients = halved


def _unary(gaps: npt.NDArray[np.int32], k: int, quotients: int) -> Bytes:
    bits = np.zeros(len(gaps) + quotients, np.bool_)
    end = -1
    for start in range(0, len(gaps), 8 * _SLICE_BYTES):
        ends = np.cumsum((gaps[start : start + 8 * _SLICE_BYTES] >> k) + 1, dtype=np.int64)
        ends += end
        bits[ends] = True
        end = int(ends[-1])
    return np.packbits(bits, bitorder="little")


def _last(packed: Bytes) -> int:
    """Position of the last one."""
    end = len(packed)
    while not packed[max(0, end - _SLICE_BYTES) : end].any():
        end -= _SLICE_BYTES
    start = max(0, end - _SLICE_BYTES)
    byte = start + int(np.flatnonzero(packed[start:end])[-1])
    return 8 * byte + int(packed[byte]).bit_length() - 1


# ---- reading -----------------------------------------------------------------------------------


def check_bitmap(packed: Bytes, size: int, ones: int, label: str) -> None:
    """Refuse, as InvalidPayload, a bitmap that has not exactly so many ones."""
    if size % 8 and packed[-1] >> size % 8:
        raise InvalidPayload(f"{label} has a mask with ones beyond its last entry")
    found = sum(
        _count(packed[start : start + _SLICE_BYTES])
        for start in range(0, len(packed), _SLICE_BYTES)
    )
    if found != ones:
        raise InvalidPayload(f"{label} has a mask with {found} ones; its header says {ones}")


def check_coordinates(stream: Bytes, size: int, ones: int, label: str) -> None:
    """Refuse, as InvalidPayload, coordinates that are not those of so many ones."""
    for _ in _positions(stream, size, ones, label):
        pass


def read_coordinates(stream: Bytes, size: int, ones: int, label: str) -> Bytes:
    """The bitmap that coordinates stand for; InvalidPayload when they are not valid."""
    packed = np.zeros(bitmap_bytes(size), np.uint8)
    window = 8 * _SLICE_BYTES
    for positions in _positions(stream, size, ones, label):
        first, last = int(positions[0]) // window, int(positions[-1]) // window
        edges = np.searchsorted(positions, np.arange(first, last + 2) * window)
        for number, (start, end) in enumerate(itertools.pairwise(edges), first):
            if start == end:
                continue
            bits = np.zeros(min(window, size - number * window), np.bool_)
            bits[positions[start:end] - number * window] = True
            at = number * _SLICE_BYTES
            packed[at : at + _SLICE_BYTES] |= np.packbits(bits, bitorder="little")
    return packed


def _positions(stream: Bytes, size: int, ones: int, label: str) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of the ones, ascending, some at a time; all are below `size`."""
    invalid = InvalidPayload(f"{label} has coordinates that are not valid")
    k = int(stream[0])
    if ones == 0:
        if k or len(stream) > 1:
            raise invalid
        return
    plane_bytes = bitmap_bytes(ones)
    if k > MAX_PARAMETER or len(stream) < 1 + (k + 1) * plane_bytes:
        raise invalid
    planes = stream[1 : 1 + k * plane_bytes].reshape(k, plane_bytes)
    unary = stream[1 + k * plane_bytes :]
    if ones % 8 and (planes[:, -1] >> ones % 8).any():
        raise invalid
    slices = range(0, len(unary), _SLICE_BYTES)
    if unary[-1] == 0 or ones != sum(_count(unary[at : at + _SLICE_BYTES]) for at in slices):
        raise invalid
    known = low = 0
    for start in slices:
        found = _ones_in(unary, start)
        if not found.size:
            continue
        order = np.arange(known, known + found.size)
        found -= order
        found <<= k
        found += order
        if k:
            lows = np.cumsum(_low_bits(planes, known, found.size))
            lows += low
            found += lows
            low = int(lows[-1])
        if found[-1] >= size:
            raise invalid
        yield found
        known += found.size


def _low_bits(planes: Bytes, start: int, count: int) -> npt.NDArray[np.int64]:
    first, end = start // 8, bitmap_bytes(start + count)
    low = np.zeros(8 * (end - first), np.int64)
    for k in range(0, len(planes), 8):
        byte = np.zeros(len(low), np.uint8)
        for j, plane in enumerate(planes[k : k + 8]):
            byte |= np.unpackbits(plane[first:end], bitorder="little") << np.uint8(j)
        low |= byte.astype(np.int64) << k
    return low[start % 8 :][:count]


def _ones_in(packed: Bytes, start: int) -> npt.NDArray[np.int64]:
    """Positions of the ones in the slice of bytes from `start` on."""
    bits = np.unpackbits(packed[start : start + _SLICE_BYTES], bitorder="little")
    found = np.flatnonzero(bits.view(np.bool_)).astype(np.int64, copy=False)
    found += 8 * start
    return found


def _count(packed: Bytes) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))
