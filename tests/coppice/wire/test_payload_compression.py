"""Payloads in zstd: when it is used, and frames that are not what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import zstandard

from coppice.errors import InvalidPayload
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Payload, TensorSpec, dense_group
from coppice.wire.payload import check, decode, encode
from tests.coppice.wire.payload_bytes import (
    BITMAP,
    CODES,
    bits_of,
    entry,
    payload,
    peak_bytes,
    refuse,
)

F32 = CODES["float32"][0]
NOT_A_FRAME = r"^the data is not one zstd frame of the length that the header gives$"
PLAIN = bytes(range(256)) * 16
SPEC = {"g": {"n": TensorSpec((1024,), "float32")}}


def compressed(frame: bytes, count: int = 1024) -> bytearray:
    return payload([entry("g", "n", F32, [count], 4 * count)], compression=1) + frame


def frame_of(data: bytes, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


# ---- when it is used ---------------------------------------------------------------------------


def test_data_that_shrinks_is_written_as_one_frame() -> None:
    groups = {"g": {"n": torch.arange(1024).remainder(3).float()}}
    data = encode(groups, compress=True)
    plain = encode(groups)
    start = 16 + int.from_bytes(plain[8:12], "little")
    assert data[5] == 1
    assert data[:5] + b"\0" + data[6:start] == plain[:start]
    assert zstandard.ZstdDecompressor().decompress(data[start:]) == plain[start:]
    assert bits_of(decode(data)) == bits_of(groups)
    assert data == encode(groups, compress=True)


def test_data_that_does_not_shrink_is_written_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (10_000,), dtype=torch.uint8, generator=generator)
    for groups in ({"g": {"n": noise}}, {"g": {"n": torch.ones(1)}}, {}):
        assert encode(groups, compress=True) == encode(groups)


@pytest.mark.parametrize(("zeros", "used"), [(150, False), (250, True)])
def test_two_percent_decide(zeros: int, used: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (10_000,), dtype=torch.uint8, generator=generator)
    noise[:zeros] = 0
    assert encode({"g": {"n": noise}}, compress=True)[5] == used


def test_nothing_is_compressed_unasked() -> None:
    assert encode({"g": {"n": torch.zeros(10_000)}})[5] == 0


def test_sparse_tensors_and_recoded_values_are_compressed_too() -> None:
    mask = Mask.of(torch.arange(9000).remainder(7) == 0)
    groups: Payload = {"g": {"n": SparseTensor(mask, torch.ones(mask.count)), "m": mask}}
    generator = torch.Generator().manual_seed(0)
    data = encode(groups, coding={"g": "int8"}, generator=generator, compress=True)
    assert data[5] == 1
    assert bits_of(decode(data)) == bits_of(groups)


def test_decoded_tensors_may_be_written_into() -> None:
    data = encode({"g": {"n": torch.zeros(1000)}}, compress=True)
    dense_group(decode(data), "g")["n"].fill_(1.0)
    assert dense_group(decode(data), "g")["n"].sum() == 0


def test_zstd_is_loaded_only_where_it_is_used() -> None:
    program = (
        "import sys, torch; from coppice.wire.payload import decode, encode;"
        "decode(encode({'g': {'n': torch.zeros(9999)}}));"
        "sys.exit('zstandard' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---- frames that are refused -------------------------------------------------------------------


def test_the_frame_that_these_tests_break_is_whole() -> None:
    data = compressed(frame_of(PLAIN))
    assert dense_group(decode(data), "g")["n"].shape == (1024,)


FRAME = frame_of(PLAIN)
EMPTY = frame_of(b"")
SKIPPABLE = bytes.fromhex("502a4d18 00000000")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        FRAME[:4],
        FRAME[:-1],
        FRAME[: len(FRAME) // 2],
        FRAME + b"\0",
        FRAME + FRAME,
        FRAME + EMPTY,
        FRAME + SKIPPABLE,
        SKIPPABLE + FRAME,
        EMPTY + FRAME,
        PLAIN[:100],
        PLAIN,
        frame_of(PLAIN[:-1]),
        frame_of(PLAIN + b"\0"),
        frame_of(PLAIN, write_content_size=0),
        frame_of(PLAIN, write_checksum=1),
    ],
    ids=[
        "none",
        "magic",
        "without its last byte",
        "half",
        "and a byte",
        "twice",
        "and an empty one",
        "and a skippable one",
        "after a skippable one",
        "after an empty one",
        "no frame",
        "plain",
        "one byte short",
        "one byte long",
        "without size",
        "with checksum",
    ],
)
def test_anything_but_one_frame_of_the_right_length_is_refused(frame: bytes) -> None:
    refuse(compressed(frame), NOT_A_FRAME)
    with pytest.raises(InvalidPayload, match=NOT_A_FRAME):
        check(compressed(frame), SPEC)


def test_a_frame_that_is_not_shorter_than_what_is_in_it_is_refused() -> None:
    noise = bytes(torch.randint(256, (4096,), dtype=torch.uint8).tolist())
    assert len(frame_of(noise)) > 4096
    refuse(compressed(frame_of(noise)), NOT_A_FRAME)


def test_a_frame_with_a_large_window_is_refused() -> None:
    size = 2**24 + 8
    frames = {log: frame_of(bytes(size), window_log=log, write_content_size=1) for log in (22, 24)}
    assert zstandard.get_frame_parameters(frames[24]).window_size > 2**23
    assert decode(compressed(frames[22], size // 4))
    refuse(compressed(frames[24], size // 4), NOT_A_FRAME)


@pytest.mark.parametrize("claimed", [1024, 2**20])
def test_a_frame_that_unfolds_to_more_than_it_says_is_refused(claimed: int) -> None:
    bomb = bytearray(frame_of(bytes(50_000_000)))
    parameters = zstandard.get_frame_parameters(bytes(bomb))
    assert parameters.content_size == 50_000_000
    # The content size stands in four bytes at the end of the frame's header.
    end = zstandard.frame_header_size(bytes(bomb))
    bomb[end - 4 : end] = (4 * claimed).to_bytes(4, "little")
    data = compressed(bytes(bomb), claimed)
    refuse(data, NOT_A_FRAME)
    assert peak_bytes(lambda: decode(data)) < 4 * claimed + 500_000


def test_a_header_that_claims_too_much_allocates_nothing() -> None:
    bomb = compressed(frame_of(bytes(400_000_000)), 100_000_000)
    refuse(bomb, r"bytes would unfold to 400000000; at most 6\d+ are allowed$")
    assert peak_bytes(lambda: decode(bomb)) < 50_000
    assert peak_bytes(lambda: check(bomb, SPEC)) < 50_000


def test_a_payload_that_would_unfold_to_too_much_is_written_plain() -> None:
    zeros = {"g": {"n": torch.zeros(17_000_000)}}
    assert encode(zeros, compress=True)[5] == 0
    assert encode({"g": {"n": torch.zeros(16_000_000)}}, compress=True)[5] == 1


def test_what_is_in_the_frame_is_checked_like_plain_data() -> None:
    mask = entry("g", "n", F32, [800], 100 + 4, BITMAP, ones=1)
    data = payload([mask], compression=1) + frame_of(bytes(104))
    refuse(data, r"^g/n has a mask with 0 ones; its header says 1$")
    odd = payload([entry("g", "n", CODES["uint8"][0], [1001], 1001)], compression=1)
    refuse(odd + frame_of(bytes(1007) + b"\1"), r"^g/n is padded with bytes that are not 0$")


@pytest.mark.parametrize("compression", [2, 255])
def test_an_unknown_compression_is_refused(compression: int) -> None:
    data = compressed(FRAME)
    data[5] = compression
    refuse(data, r"^the payload's compression is unknown$")
