"""A payload's data as one zstd frame, read without trust in what the frame says."""

from __future__ import annotations

from typing import BinaryIO, cast

from coppice.errors import InvalidPayload

MAX_WINDOW_BYTES = 8 * 2**20
_INVALID = "the data is not one zstd frame of the length that the header gives"
_READ_BYTES = 2**17


def compress(data: memoryview) -> bytes:
    """One frame with its content size."""
    # Not at the top: a device that never compresses need not load it.
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(data)


def decompress(frame: memoryview, size: int) -> memoryview:
    """The `size` bytes of a frame that is all there is; InvalidPayload for any other."""
    import zstandard

    if not 0 < len(frame) < size or bytes(frame[:4]) != zstandard.FRAME_HEADER:
        raise InvalidPayload(_INVALID)
    source = _Source(frame)
    try:
        stated = zstandard.get_frame_parameters(frame)
        if stated.content_size != size or stated.has_checksum or stated.dict_id:
            raise InvalidPayload(_INVALID)
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        reader = decompressor.stream_reader(cast(BinaryIO, source), read_size=_READ_BYTES)
        # With room for one byte more, the reader goes on to where the frame ends.
        data = memoryview(bytearray(size + 1))
        filled = reader.readinto(data)
    except zstandard.ZstdError:
        raise InvalidPayload(_INVALID) from None
    if filled != size or not source.ended:
        raise InvalidPayload(_INVALID)
    return data[:size]


class _Source:
    """Hands out a frame, its last byte alone, and tells whether that is where it was found to end.

    The reader itself says nothing of bytes after the frame, nor of a frame that breaks off.
    """

    def __init__(self, frame: memoryview) -> None:
        self._frame = frame
        self._at = 0
        self._beyond = False

    @property
    def ended(self) -> bool:
        return self._at == len(self._frame) and not self._beyond

    def read(self, size: int) -> bytes:
        self._beyond = self._at == len(self._frame)
        end = min(self._at + size, len(self._frame) - 1)
        if end <= self._at:
            end = len(self._frame)
        part = bytes(self._frame[self._at : end])
        self._at = end
        return part
