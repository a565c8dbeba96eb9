"""Chunks: a blob taken apart and put together, and every way in which that can go wrong."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.domain import BlobRef
from coppice.errors import TransferBroken
from coppice.wire.chunks import (
    FIRST_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    MIN_CHUNK_BYTES,
    Assembler,
    blob_ref,
)


def assembled(ref: BlobRef, *chunks: bytes) -> bytearray:
    assembler = Assembler(ref)
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.finish()


@given(st.binary(max_size=200), st.integers(1, 64))
def test_what_comes_in_chunks_is_put_together_again(data: bytes, chunk_bytes: int) -> None:
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    assert assembled(blob_ref(data), *chunks) == data


def test_a_broken_transfer_knows_where_to_go_on() -> None:
    data = bytes(range(100))
    assembler = Assembler(blob_ref(data))
    assembler.add(data[:30])
    assembler.add(b"")
    assert assembler.received_bytes == 30
    assembler.add(data[assembler.received_bytes :])
    assert assembler.finish() == data


def test_a_blob_is_named_by_its_sha256() -> None:
    assert blob_ref(b"") == BlobRef(hashlib.sha256().hexdigest(), 0)
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        ref = blob_ref(data)
        assert ref.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert ref.size_bytes == 3


def test_a_short_blob_is_refused() -> None:
    with pytest.raises(TransferBroken, match="ended after 2 of 3 bytes"):
        assembled(blob_ref(b"abc"), b"ab")
    with pytest.raises(TransferBroken, match="ended after 0 of 3 bytes"):
        assembled(blob_ref(b"abc"))


def test_a_blob_that_grows_past_its_size_is_refused_at_once() -> None:
    assembler = Assembler(blob_ref(b"abc"))
    assembler.add(b"abc")
    with pytest.raises(TransferBroken, match="longer than announced"):
        assembler.add(b"d")
    # The chunk too many is not there.
    assert assembler.finish() == b"abc"
    with pytest.raises(TransferBroken, match="longer than announced"):
        Assembler(blob_ref(b"")).add(b"d")


def test_a_damaged_blob_is_refused() -> None:
    with pytest.raises(TransferBroken, match="arrived damaged"):
        assembled(blob_ref(b"abc"), b"ab", b"d")
    with pytest.raises(TransferBroken, match="arrived damaged"):
        assembled(blob_ref(b"abc"), b"bc", b"a")


def test_the_limits_are_those_of_the_page() -> None:
    assert MAX_MESSAGE_BYTES == 2 * 1024 * 1024
    assert MAX_CHUNK_BYTES == 256 * 1024
    assert FIRST_CHUNK_BYTES == 64 * 1024
    assert MIN_CHUNK_BYTES < FIRST_CHUNK_BYTES < MAX_CHUNK_BYTES < MAX_MESSAGE_BYTES


@pytest.mark.parametrize("module", ["chunk_size", "chunks", "status"])
def test_a_light_process_imports_no_torch(module: str) -> None:
    code = f"import sys, coppice.wire.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
