"""Bytes put aside in a file without a name, which goes with the process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

from coppice.files import reporting

_REMEDY = "take a disk with more room"


class Shelf:
    """Bytes by the place where they were put. Raises DiskFull and StoreUnusable."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where the file is; None takes the system's for temporary files."""
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        with reporting(self._folder, _REMEDY):
            # Unbuffered: what is put is large, and a failure belongs to its own call.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        #: Bytes put so far, which is where the next ones go.
        self.size = 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Put bytes after all others. Returns where they are."""
        start, view = self.size, memoryview(data).cast("B")
        with reporting(self._folder, _REMEDY):
            self._file.seek(start)
            while len(view):
                written = self._file.write(view)
                self.size += written
                view = view[written:]
        return start

    def read(self, start: int, size: int) -> bytearray:
        """So many bytes from there."""
        data = bytearray(size)
        view = memoryview(data)
        with reporting(self._folder, _REMEDY):
            self._file.seek(start)
            while len(view):
                count = self._file.readinto(view)
                if not count:
                    raise ValueError(f"{size} bytes from {start} are more than were put")
                view = view[count:]
        return data
