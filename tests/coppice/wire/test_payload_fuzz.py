"""Payloads at random: whatever the bytes, they are a payload or refused, and cost little memory."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzzing_payloads import EXPECTS, KNOWN, SEEDS
from coppice.errors import InvalidPayload
from coppice.wire.header import largest_size_bytes
from coppice.wire.payload import check, decode, encode
from tests.coppice.wire.payload_bytes import bits_of, peak_bytes


def survives(data: bytes | bytearray) -> None:
    """A payload, which says the same when it is written again, or InvalidPayload."""
    with suppress(InvalidPayload):
        read = decode(bytearray(data), known=KNOWN)
        assert bits_of(decode(encode(read), known=KNOWN)) == bits_of(read)
    fits = True
    try:
        check(bytearray(data), EXPECTS)
    except InvalidPayload:
        fits = False
    if fits:
        assert decode(bytearray(data), EXPECTS, KNOWN)
        assert len(data) <= largest_size_bytes(EXPECTS)
    else:
        with pytest.raises(InvalidPayload):
            decode(bytearray(data), EXPECTS, KNOWN)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_payloads_that_these_tests_break_are_whole(seed: bytes) -> None:
    assert decode(bytearray(seed), known=KNOWN)
    survives(seed)


def test_some_of_them_fit_and_some_are_compressed() -> None:
    for seed in (SEEDS[2], SEEDS[6]):
        check(bytearray(seed), EXPECTS)
    assert {seed[5] for seed in SEEDS} == {0, 1}


@given(st.binary(max_size=300), st.sampled_from(SEEDS))
@example(b"", SEEDS[0])
def test_random_bytes_are_refused_or_read(data: bytes, seed: bytes) -> None:
    survives(data)
    survives(seed[:16] + data)
    start = 16 + int.from_bytes(seed[8:12], "little")
    survives(seed[:start] + data)


@pytest.mark.parametrize("seed", [SEEDS[2], SEEDS[-4]])
def test_every_flipped_bit_is_noticed_or_makes_another_payload(seed: bytes) -> None:
    for place in range(len(seed)):
        for bit in range(8):
            data = bytearray(seed)
            data[place] ^= 1 << bit
            survives(data)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_truncated_payload_is_refused(seed: bytes) -> None:
    for end in range(len(seed)):
        with pytest.raises(InvalidPayload):
            decode(bytearray(seed[:end]), known=KNOWN)


changes = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 255), st.sampled_from(["set", "cut", "put"])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=500)
@given(st.sampled_from(SEEDS), st.sampled_from(SEEDS), st.integers(0, 2000), changes)
def test_spliced_and_changed_payloads_are_refused_or_read(
    seed: bytes, other: bytes, joint: int, edits: list[tuple[int, int, str]]
) -> None:
    data = bytearray(seed[:joint] + other[joint:])
    for place, value, what in edits:
        at = place % len(data)
        if what == "set":
            data[at] = value
        elif what == "cut":
            del data[at : at + 1 + value % 9]
        else:
            data[at:at] = bytes([value] * (1 + value % 9))
        if not data:
            return
    survives(data)


@settings(max_examples=30)
@given(st.sampled_from(SEEDS), changes)
def test_a_changed_payload_costs_little_memory_where_something_is_expected(
    seed: bytes, edits: list[tuple[int, int, str]]
) -> None:
    data = bytearray(seed)
    for place, value, _ in edits:
        data[16 + place % (len(data) - 16)] = value
    assert peak_bytes(lambda: check(data, EXPECTS)) < 2**20
    assert peak_bytes(lambda: decode(data, EXPECTS, KNOWN)) < 2**20
