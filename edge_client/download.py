"""Blobs fetched from where the last attempt ended: in this process, or in one before it.

```
folder/<digest>.part     the first bytes of the blob that was being fetched last
```

A blob is written down when its transfer breaks off and, so that a power cut costs little, whenever
so many bytes more have come. Nearly all come whole at once, and those never touch the card.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from coppice.domain import BlobRef
from coppice.errors import TransferBroken
from coppice.wire.chunks import Assembler
from edge_client.connection import Connection
from edge_client.link import Link

WRITE_EVERY_BYTES = 8 * 2**20
_READ_BYTES = 2**20


class Downloads:
    """A device fetches one blob at a time, so one file is kept."""

    def __init__(self, link: Link, folder: Path) -> None:
        self._link = link
        self._folder = folder

    def fetch(self, ref: BlobRef) -> bytearray:
        """The blob, its digest checked."""
        part = _Part(ref, self._folder)

        def attempt(connection: Connection) -> bytearray:
            nonlocal part
            try:
                return _whole(part, connection)
            except TransferBroken:
                # The bytes are wrong, here or there: once more, from the start.
                part.forget()
                part = _Part(ref, self._folder)
                return _whole(part, connection)

        data = self._link.until_done(attempt)
        part.forget()
        return data


def _whole(part: _Part, connection: Connection) -> bytearray:
    try:
        connection.fetch_rest(part)
    except BaseException:
        part.write_down()
        raise
    return part.finish()


class _Part(Assembler):
    """What has come of a blob, in memory and perhaps in its file."""

    def __init__(self, ref: BlobRef, folder: Path) -> None:
        super().__init__(ref)
        self._path = folder / f"{ref.digest}.part"
        #: So many of its bytes are in the file.
        self._written_bytes = 0
        self._take_up()

    def add(self, chunk: bytes | memoryview) -> None:
        """Append a chunk."""
        super().add(chunk)
        if self.received_bytes - self._written_bytes >= WRITE_EVERY_BYTES:
            self.write_down()

    def write_down(self) -> None:
        """Bring the file up to date. Not made durable: the digest tells what a power cut left.

        A disk that is full does not stop a download.
        """
        if self.received_bytes == self._written_bytes:
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            with self._path.open("ab" if self._written_bytes else "wb") as file:
                file.write(self.part(self._written_bytes))
            self._written_bytes = self.received_bytes

    def forget(self) -> None:
        """The file is needed no more."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _take_up(self) -> None:
        with suppress(OSError):
            for path in self._path.parent.glob("*.part"):
                if path != self._path:
                    path.unlink(missing_ok=True)
            if self._path.stat().st_size > self.ref.size_bytes:
                self.forget()
                return
            with self._path.open("rb") as file:
                while piece := file.read(_READ_BYTES):
                    self._written_bytes += len(piece)
                    self.add(piece)
