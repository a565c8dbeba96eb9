"""Payloads from strangers: every MUST of proto/README.md, hostile claims, and bytes at random."""

from __future__ import annotations

import pytest
import torch

from coppice.errors import InvalidPayload
from coppice.tensors import TensorSpec, dense_group
from coppice.wire.payload import decode, encode
from tests.coppice.wire.payload_bytes import CODES, entry, payload, peak_bytes, refuse

F32 = CODES["float32"][0]
BOOL = CODES["bool"][0]
LARGEST = 2**32 - 1

ONE = entry("g", "n", F32, [1], 4)
FOUR_BYTES = bytes(4)


def test_the_payload_that_these_tests_break_is_whole() -> None:
    assert dense_group(decode(payload([ONE], [FOUR_BYTES])), "g")["n"].tolist() == [0.0]


# ---- the prefix --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(16))
def test_less_than_a_prefix_is_refused(length: int) -> None:
    refuse(payload([ONE], [FOUR_BYTES])[:length], "too few")


@pytest.mark.parametrize("magic", [b"copp", b"COP\0", b"\0\0\0\0", b"PK\x03\x04"])
def test_another_magic_is_refused(magic: bytes) -> None:
    refuse(payload([ONE], [FOUR_BYTES], magic=magic), "not a payload")


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_another_version_is_refused(version: int) -> None:
    refuse(payload([ONE], [FOUR_BYTES], version=version), f"format {version} is unknown")


@pytest.mark.parametrize("zero", [b"\1\0", b"\0\1", b"\xff\xff"])
def test_a_prefix_whose_zeros_are_not_zero_is_refused(zero: bytes) -> None:
    refuse(payload([ONE], [FOUR_BYTES], zero=zero), "compression is unknown")


def with_header_length(length: int, data: bytearray) -> bytearray:
    data[8:12] = length.to_bytes(4, "little")
    return data


@pytest.mark.parametrize("length", [23, 25, 40, 48, 2**24, LARGEST])
def test_a_header_length_that_cannot_be_is_refused(length: int) -> None:
    refuse(with_header_length(length, payload([ONE], [FOUR_BYTES])), "header")


def test_a_header_of_more_than_16_mib_is_refused_even_where_the_bytes_are_there() -> None:
    data = payload([]) + bytes(2**24 + 8)
    refuse(with_header_length(2**24 + 8, data), "header's length is wrong")
    refuse(with_header_length(2**24, data[:-8]), "belong to no entry")


def test_what_readers_refuse_is_not_written() -> None:
    long = "n" * 1000
    many = {f"{long}{i}": torch.zeros(0) for i in range(2**24 // 1000)}
    with pytest.raises(InvalidPayload, match="16777216 bytes at most"):
        encode({"g": many})


def test_a_header_that_is_not_padded_is_refused() -> None:
    assert len(ONE) % 8
    prefix = payload([ONE], [FOUR_BYTES])[:16]
    data = with_header_length(len(ONE), prefix + ONE + bytes(8))
    refuse(data, "header's length is wrong")


# ---- the entries -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 1000, LARGEST])
def test_more_tensors_than_entries_are_refused(count: int) -> None:
    refuse(payload([ONE], [FOUR_BYTES], count=count), "middle of an entry|empty name")


def test_fewer_tensors_than_entries_are_refused() -> None:
    two = [ONE, entry("g", "m", F32, [1], 4)]
    refuse(payload(two, [FOUR_BYTES] * 2, count=1), "belong to no entry")
    refuse(payload(two, [FOUR_BYTES] * 2, count=0), "belong to no entry")


@pytest.mark.parametrize("end", range(8, 64, 8))
def test_a_header_that_ends_within_an_entry_is_refused(end: int) -> None:
    whole = entry("g", "n" * 44, F32, [1], 4)
    assert len(whole) == 64
    refuse(payload([whole[:end]], [FOUR_BYTES]), "ends in the middle of an entry")


def test_an_empty_name_is_refused() -> None:
    refuse(payload([entry("", "n", F32, [1], 4)], [FOUR_BYTES]), "empty name")
    refuse(payload([entry("g", "", F32, [1], 4)], [FOUR_BYTES]), "empty name")


@pytest.mark.parametrize("name", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_name_that_is_not_utf8_is_refused(name: bytes) -> None:
    refuse(payload([entry(name, "n", F32, [1], 4)], [FOUR_BYTES]), "not UTF-8")
    refuse(payload([entry("g", name, F32, [1], 4)], [FOUR_BYTES]), "not UTF-8")


def test_a_tensor_that_is_there_twice_is_refused() -> None:
    refuse(payload([ONE, ONE], [FOUR_BYTES] * 2), "^g/n is there twice$")
    twice = [ONE, entry("g", "m", F32, [1], 4), entry("g", "n", F32, [2], 8)]
    refuse(payload(twice, [FOUR_BYTES, FOUR_BYTES, bytes(8)]), "^g/n is there twice$")


def test_a_group_in_two_places_is_refused() -> None:
    entries = [ONE, entry("h", "n", F32, [1], 4), entry("g", "m", F32, [1], 4)]
    refuse(payload(entries, [FOUR_BYTES] * 3), "group g do not stand together")


def test_one_name_in_two_groups_is_no_problem() -> None:
    data = payload([ONE, entry("h", "n", F32, [1], 4)], [FOUR_BYTES] * 2)
    assert list(decode(data)) == ["g", "h"]


@pytest.mark.parametrize("code", [11, 12, 128, 255])
def test_an_unknown_element_type_is_refused(code: int) -> None:
    refuse(payload([entry("g", "n", code, [1], 4)], [FOUR_BYTES]), "^g/n has an unknown type")


@pytest.mark.parametrize("encoding", [5, 6, 255])
def test_an_unknown_encoding_is_refused(encoding: int) -> None:
    refuse(payload([entry("g", "n", F32, [1], 4, encoding)], [FOUR_BYTES]), "type, encoding")


@pytest.mark.parametrize("rank", [9, 255])
def test_a_rank_of_more_than_eight_is_refused(rank: int) -> None:
    refuse(payload([entry("g", "n", F32, [1] * rank, 4)], [FOUR_BYTES]), "encoding or rank")


@pytest.mark.parametrize("size", [0, 3, 5, 8, 2**63, 2**64 - 4])
def test_a_data_length_that_is_not_the_shapes_is_refused(size: int) -> None:
    refuse(payload([entry("g", "n", F32, [1], size)], [FOUR_BYTES]), "^g/n has .* needs 4$")


def test_missing_and_trailing_bytes_are_refused() -> None:
    whole = payload([ONE], [FOUR_BYTES])
    for data in (whole[:-1], whole[:-8], whole + bytes(1), whole + bytes(8)):
        refuse(data, "bytes where its header says")


@pytest.mark.parametrize("place", [5, 6, 7])
def test_padding_of_the_data_that_is_not_zero_is_refused(place: int) -> None:
    data = payload([ONE], [FOUR_BYTES])
    data[-8 + place] = 1
    refuse(data, "^g/n is padded with bytes that are not 0$")


def test_padding_of_the_header_that_is_not_zero_is_refused() -> None:
    padding = payload([ONE])
    assert len(ONE) % 8
    padding[-1] = 1
    refuse(padding + bytes(8), "belong to no entry")
    refuse(payload([ONE, bytes(8)], [FOUR_BYTES], count=1), "belong to no entry")


@pytest.mark.parametrize("value", [2, 255])
def test_a_bool_that_is_neither_is_refused(value: int) -> None:
    data = payload([entry("g", "n", BOOL, [3], 3)], [bytes([0, 1, value])])
    refuse(data, "^g/n has a bool that is neither 0 nor 1$")


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [[LARGEST] * 7 + [0], [0] + [LARGEST] * 7, [LARGEST, LARGEST, 0], [2**31, 2**30, 0]],
)
def test_a_shape_that_torch_cannot_count_is_refused(shape: list[int]) -> None:
    refuse(payload([entry("g", "n", F32, shape, 0)]), "a shape that no tensor can have")


@pytest.mark.parametrize("shape", [[LARGEST, 0], [0, LARGEST], [2**30, 2**30, 0], [0] * 8])
def test_a_large_shape_without_values_costs_nothing(shape: list[int]) -> None:
    read = dense_group(decode(payload([entry("g", "n", F32, shape, 0)])), "g")["n"]
    assert list(read.shape) == shape
    assert read.untyped_storage().nbytes() == 0


@pytest.mark.parametrize(
    "data",
    [
        payload([entry("g", "n", F32, [LARGEST], 4 * LARGEST)], [FOUR_BYTES]),
        payload([entry("g", "n", F32, [2**28], 2**30)], [FOUR_BYTES]),
        payload([ONE], [FOUR_BYTES], count=LARGEST),
        with_header_length(2**24, payload([ONE], [FOUR_BYTES])),
        payload([b"\xffg"]),
    ],
)
def test_a_claim_without_bytes_allocates_nothing(data: bytearray) -> None:
    assert peak_bytes(lambda: decode(data)) < 20_000
    assert peak_bytes(lambda: decode(data, {"g": {"n": TensorSpec((1,), "float32")}})) < 20_000


def test_entries_that_nobody_asked_for_are_not_collected() -> None:
    flood = [entry("g", f"{number:06}", F32, [], 4) for number in range(100_000)]
    data = payload(flood, [FOUR_BYTES] * len(flood))
    assert peak_bytes(lambda: decode(data, {"g": {"n": TensorSpec((), "float32")}})) < 20_000


def test_many_groups_take_no_longer_than_many_tensors() -> None:
    # Quadratic work would take minutes and run into the time limit of every test.
    flood = [entry(f"{number:06}", "n", F32, [0], 0) for number in range(50_000)]
    assert len(decode(payload(flood))) == 50_000


def test_decoding_copies_nothing() -> None:
    data = encode({"g": {str(i): torch.ones(50_000, dtype=torch.float64) for i in range(20)}})
    read: list[object] = []
    assert peak_bytes(lambda: read.append(decode(data))) < 200_000
    start = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    for tensor in dense_group(decode(data), "g").values():
        assert start <= tensor.data_ptr() < start + len(data)
