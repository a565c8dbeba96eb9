"""Chunks take about as long on every link, within bounds."""

from __future__ import annotations

import pytest

from coppice.wire.chunk_size import UNSEEN_BYTES, ChunkSize
from coppice.wire.chunks import FIRST_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES


def test_aim_at_a_quarter_of_a_second() -> None:
    chunk = ChunkSize()
    assert chunk.size_bytes == FIRST_CHUNK_BYTES
    for _ in range(20):
        chunk.took(chunk.size_bytes, chunk.size_bytes / 600_000)
    assert chunk.size_bytes == pytest.approx(150_000, rel=0.01)


def test_stay_in_bounds_and_change_by_a_factor_of_two() -> None:
    chunk = ChunkSize()
    chunk.took(chunk.size_bytes, 100.0)
    assert chunk.size_bytes == FIRST_CHUNK_BYTES // 2
    for _ in range(9):
        chunk.took(chunk.size_bytes, 100.0)
    assert chunk.size_bytes == MIN_CHUNK_BYTES
    chunk.took(chunk.size_bytes, 0.0)
    assert chunk.size_bytes == 2 * MIN_CHUNK_BYTES
    for _ in range(9):
        chunk.took(chunk.size_bytes, 0.0)
    assert chunk.size_bytes == MAX_CHUNK_BYTES


def test_what_the_buffers_take_at_once_tells_nothing() -> None:
    chunk = ChunkSize()
    chunk.sent(FIRST_CHUNK_BYTES, 0.0, 0)
    chunk.sent(FIRST_CHUNK_BYTES, 0.0, UNSEEN_BYTES - 1)
    assert chunk.size_bytes == FIRST_CHUNK_BYTES
    chunk.sent(FIRST_CHUNK_BYTES, 0.0, UNSEEN_BYTES)
    assert chunk.size_bytes == 2 * FIRST_CHUNK_BYTES


def test_shrink_when_a_transfer_breaks_off() -> None:
    chunk = ChunkSize()
    for _ in range(9):
        before = chunk.size_bytes
        chunk.broke_off()
        assert chunk.size_bytes == max(before // 2, MIN_CHUNK_BYTES)


@pytest.mark.parametrize(
    ("asked", "size_bytes"), [(0, MIN_CHUNK_BYTES), (2**17, 2**17), (2**32, MAX_CHUNK_BYTES)]
)
def test_begin_as_they_are_asked_for_within_bounds(asked: int, size_bytes: int) -> None:
    assert ChunkSize(asked).size_bytes == size_bytes
