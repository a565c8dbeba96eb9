"""Masks from strangers: every MUST of proto/README.md about bitmaps, coordinates and claims."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from coppice.errors import InvalidPayload
from coppice.sparse import Mask
from coppice.tensors import DTYPES, MASK, TensorSpec
from coppice.wire.payload import check, decode, encode
from tests.coppice.wire.payload_bytes import (
    BITMAP,
    CODES,
    COORDINATES,
    DENSE,
    FULL,
    MASK_CODE,
    VALUES,
    entry,
    payload,
    peak_bytes,
    refuse,
)

F32 = CODES["float32"][0]
NOT_VALID = r"^g/n has coordinates that are not valid$"


def mask(encoding: int, size: int, ones: int, data: bytes) -> bytearray:
    return payload([entry("g", "n", MASK_CODE, [size], len(data), encoding, ones=ones)], [data])


def refuse_both(data: bytearray, size: int, match: str) -> None:
    """`decode` and `check` agree."""
    refuse(data, match)
    with pytest.raises(InvalidPayload, match=match):
        check(data, {"g": {"n": TensorSpec((size,), MASK)}})


# ---- bitmaps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bitmap", [b"\x00\x00", b"\x06\x00", b"\xff\x03", b"\x01\x02"])
def test_a_bitmap_with_another_number_of_ones_is_refused(bitmap: bytes) -> None:
    refuse_both(mask(BITMAP, 10, 3, bitmap), 10, r"^g/n has a mask with \d+ ones; .* says 3$")


@pytest.mark.parametrize("last", [0x04, 0x80, 0xFC])
def test_a_bitmap_with_ones_beyond_the_end_is_refused(last: int) -> None:
    refuse_both(mask(BITMAP, 10, 3, bytes([6, last])), 10, "ones beyond its last entry$")


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_bitmap_of_another_length_is_refused(length: int) -> None:
    refuse_both(mask(BITMAP, 10, 0, bytes(length)), 10, r"^g/n has . bytes; its shape needs 2$")


# ---- coordinates -------------------------------------------------------------------------------

#: Gaps 3, 36 and 38 with k = 4.
WHOLE = bytes([4, 1, 5, 6, 0, 0b1001001])


def test_the_coordinates_that_these_tests_break_are_whole() -> None:
    read = decode(mask(COORDINATES, 80, 3, WHOLE))["g"]["n"]
    assert isinstance(read, Mask)
    assert read.positions.tolist() == [3, 40, 79]


@pytest.mark.parametrize(
    "stream",
    [
        bytes([31, *WHOLE[1:]]),
        bytes([255, *WHOLE[1:]]),
        bytes([5, *WHOLE[1:]]),
        bytes([6, *WHOLE[1:]]),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(stream: bytes) -> None:
    refuse_both(mask(COORDINATES, 80, 3, stream), 80, NOT_VALID)


def test_a_parameter_above_30_is_refused_even_where_its_planes_are_there() -> None:
    for k, fits in ((30, True), (31, False), (32, False)):
        stream = bytes([k]) + bytes(k) + b"\1"
        data = mask(COORDINATES, 8000, 1, stream)
        if fits:
            assert decode(data)
        else:
            refuse_both(data, 8000, NOT_VALID)


@pytest.mark.parametrize("unary", [0b0001001, 0b1001011, 0b1111111, 0b1000000])
def test_another_number_of_ones_in_the_unary_part_is_refused(unary: int) -> None:
    refuse_both(mask(COORDINATES, 80, 3, WHOLE[:-1] + bytes([unary])), 80, NOT_VALID)


def test_a_unary_part_that_ends_in_a_byte_of_zero_is_refused() -> None:
    refuse_both(mask(COORDINATES, 80, 3, WHOLE + b"\0"), 80, NOT_VALID)
    assert decode(mask(COORDINATES, 80, 1, b"\0\1"))
    refuse_both(mask(COORDINATES, 80, 1, b"\0\1\0"), 80, NOT_VALID)


@pytest.mark.parametrize("plane", range(4))
@pytest.mark.parametrize("bit", [3, 7])
def test_a_plane_with_bits_beyond_the_last_gap_is_refused(plane: int, bit: int) -> None:
    stream = bytearray(WHOLE)
    stream[1 + plane] |= 1 << bit
    refuse_both(mask(COORDINATES, 80, 3, bytes(stream)), 80, NOT_VALID)


def test_a_position_beyond_the_last_entry_is_refused() -> None:
    refuse_both(mask(COORDINATES, 79, 3, WHOLE), 79, NOT_VALID)
    huge = bytes([30, *(255,) * 30, 0b10000001]) + bytes(20) + b"\x3f"
    refuse_both(mask(COORDINATES, 8000, 8, huge), 8000, NOT_VALID)


def test_a_position_beyond_the_last_entry_is_refused_behind_many_that_are_not() -> None:
    for zeros, fits in ((10_000, True), (24_000, False)):
        stream = b"\1" + bytes(12_501) + b"\xff" * 12_500 + bytes(zeros) + b"\x80"
        data = mask(COORDINATES, 400_000, 100_001, stream)
        if fits:
            assert decode(data)
        else:
            refuse_both(data, 400_000, NOT_VALID)


@pytest.mark.parametrize("stream", [b"\1", b"\xff", b"\0\0", b"\0\1"])
def test_coordinates_of_no_ones_are_one_zero(stream: bytes) -> None:
    assert decode(mask(COORDINATES, 80, 0, b"\0"))
    refuse_both(mask(COORDINATES, 80, 0, stream), 80, NOT_VALID)


@pytest.mark.parametrize("length", [0, 1, 11, 12])
def test_coordinates_too_short_or_longer_than_the_bitmap_are_refused(length: int) -> None:
    stream = bytes(length)
    refuse_both(mask(COORDINATES, 80, 3, stream), 80, r"^g/n has .* shape needs 2 to 10$")


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [BITMAP, COORDINATES, VALUES, FULL])
@pytest.mark.parametrize("ones", [11, 2**31, 2**63, 2**64 - 1])
def test_more_ones_than_entries_are_refused(encoding: int, ones: int) -> None:
    name = bytes(8) if encoding == VALUES else b""
    header = entry("g", "n", F32, [10], 8, encoding, ones=ones, fingerprint=name)
    refuse(payload([header], [bytes(8)]), rf"^g/n cannot have {ones} ones$")


@pytest.mark.parametrize("ones", [0, 9])
def test_full_with_fewer_ones_is_refused(ones: int) -> None:
    header = entry("g", "n", F32, [10], 4 * ones, FULL, ones=ones)
    refuse(payload([header], [bytes(4 * ones)]), rf"^g/n cannot have {ones} ones$")


@pytest.mark.parametrize("encoding", [DENSE, VALUES, FULL, 5])
def test_a_bare_mask_has_a_bitmap_or_coordinates(encoding: int) -> None:
    ones = None if encoding == DENSE else 10
    header = entry("g", "n", MASK_CODE, [10], 0, encoding, ones=ones, fingerprint=bytes(8))
    refuse(payload([header]), r"^g/n (is a mask, which has no|has an unknown type,) encoding")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("encoding", "extra"), [(BITMAP, 2), (VALUES, 0), (FULL, 0)])
def test_a_length_that_is_not_the_formulas_is_refused(
    dtype: str, encoding: int, extra: int
) -> None:
    code, size = CODES[dtype]
    ones = 10 if encoding == FULL else 3
    name = bytes(8) if encoding == VALUES else b""
    needed = ones * size + extra
    for length in (needed - 1, needed + 1, 0, 2**64 - 1):
        header = entry("g", "n", code, [10], length, encoding, ones=ones, fingerprint=name)
        refuse(payload([header], [bytes(needed)]), rf"^g/n has {length} .* needs {needed}$")


def test_a_sparse_bool_that_is_neither_is_refused() -> None:
    header = entry("g", "n", CODES["bool"][0], [10], 5, BITMAP, ones=3)
    data = payload([header], [b"\0\1\2\x06\x02"])
    refuse(data, r"^g/n has a bool that is neither 0 nor 1$")
    with pytest.raises(InvalidPayload, match="neither 0 nor 1"):
        check(data, {"g": {"n": TensorSpec((10,), "bool", 3)}})


@pytest.mark.parametrize("shape", [[2**31], [2**16, 2**15], [2**32 - 1, 2**30]])
@pytest.mark.parametrize("code", [F32, MASK_CODE])
def test_a_mask_of_too_many_entries_is_refused(shape: list[int], code: int) -> None:
    data = payload([entry("g", "n", code, shape, 1, COORDINATES, ones=0)], [b"\0"])
    refuse(data, r"^g/n is too large for a mask|^g/n has a shape that no tensor can have")


@pytest.mark.parametrize("count", [1, 1000])
def test_many_entries_from_few_bytes_are_refused_before_anything_is_allocated(count: int) -> None:
    size = 2**31 - 1 if count == 1 else 2**20
    entries = [
        entry("g", f"{number}", MASK_CODE, [size], 1, COORDINATES, ones=0)
        for number in range(count)
    ]
    data = payload(entries, [b"\0"] * count)
    refuse(data, r"^\d+ bytes would unfold to \d+; at most \d+ are allowed$")
    assert peak_bytes(lambda: decode(data)) < 50_000 + 1000 * count


def test_a_mask_that_is_expected_smaller_allocates_nothing() -> None:
    data = payload([entry("g", "n", MASK_CODE, [2**28], 1, COORDINATES, ones=0)], [b"\0"])
    for spec in (TensorSpec((99,), MASK), TensorSpec((99,), "float32", 9)):
        for read in (decode, check):
            with pytest.raises(InvalidPayload, match="expects"):
                read(data, {"g": {"n": spec}})
        assert peak_bytes(partial(decode, data, {"g": {"n": spec}})) < 20_000
    assert decode(data)


def test_a_writer_refuses_what_a_reader_would() -> None:
    packed = torch.zeros(2**25, dtype=torch.uint8)
    many = {"g": {str(number): Mask((2**28,), packed) for number in range(3)}}
    with pytest.raises(InvalidPayload, match="unfold to 100663296 bytes"):
        encode(many)
    with pytest.raises(InvalidPayload, match="2\\^31 entries or more"):
        encode({"g": {"n": Mask((2**31,), torch.zeros(2**28, dtype=torch.uint8))}})
