"""Payload bytes ↔ bounded chunks with a digest. Imports no torch: light processes use it too."""

from __future__ import annotations

import hashlib

from coppice.domain import BlobRef
from coppice.errors import TransferBroken

#: Limits of proto/README.md.
MAX_MESSAGE_BYTES = 2 * 2**20
MAX_CHUNK_BYTES = 256 * 2**10
MIN_CHUNK_BYTES = 4 * 2**10
#: What a transfer begins with on a link that nothing is known of.
FIRST_CHUNK_BYTES = 64 * 2**10

#: gRPC options of both sides. What a stream may have on its way is fixed: left to itself, gRPC
#: measures a fast link and lets each of fifty devices put megabytes into the server's memory. And
#: it is little: pings, by which each side notices that the other is gone, queue behind it, and on
#: a link of 2 KiB/s must be answered in time too.
STREAM_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * 2**10),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 120_000),
    ("grpc.http2.ping_timeout_ms", 120_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def blob_ref(data: bytes | bytearray | memoryview) -> BlobRef:
    """The name of some bytes."""
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


class Assembler:
    """Puts a blob together from its chunks, in memory reserved once."""

    def __init__(self, ref: BlobRef) -> None:
        #: What is put together.
        self.ref = ref
        self._data = bytearray(ref.size_bytes)
        self._digest = hashlib.sha256()
        #: Bytes that are there: from where a broken transfer may go on.
        self.received_bytes = 0

    def add(self, chunk: bytes | memoryview) -> None:
        """Append a chunk; TransferBroken when the blob would grow past its size."""
        end = self.received_bytes + len(chunk)
        if end > self.ref.size_bytes:
            raise TransferBroken(f"blob {self.ref.digest[:12]} is longer than announced")
        self._data[self.received_bytes : end] = chunk
        self._digest.update(chunk)
        self.received_bytes = end

    def part(self, start: int) -> memoryview:
        """What is there from this byte on."""
        return memoryview(self._data)[start : self.received_bytes]

    def finish(self) -> bytearray:
        """The whole blob; TransferBroken when it is short or damaged."""
        if self.received_bytes != self.ref.size_bytes:
            raise TransferBroken(
                f"blob {self.ref.digest[:12]} ended after {self.received_bytes} of "
                f"{self.ref.size_bytes} bytes"
            )
        if self._digest.hexdigest() != self.ref.digest:
            raise TransferBroken(f"blob {self.ref.digest[:12]} arrived damaged")
        return self._data
