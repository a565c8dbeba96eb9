"""Whether there is room on the disk for what a device wants to send."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coppice.errors import ServerBusy
from server.limits import Limits

_MB = 10**6
_RETRY_SECONDS = 30.0
#: How long what was counted in the folder is believed; what was let in since is added.
_BELIEVED_SECONDS = 5.0


class Space:
    """Of the folder of blobs. Any thread may ask; it reads the file system."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        """`free_bytes` gives what a file system has left."""
        limits = limits if limits is not None else Limits()
        self._folder = folder
        self._reserve_bytes = int(limits.disk_reserve_mb) * _MB
        self._most_bytes = int(limits.run_disk_mb) * _MB
        self._free_bytes = free_bytes if free_bytes is not None else _free_bytes
        self._lock = threading.Lock()
        self._counted_at = float("-inf")
        self._counted_bytes = 0

    def let_in(self, size_bytes: int, coming_bytes: int) -> None:
        """Room for an update of this size, beside what others have still to send of theirs.

        ServerBusy when the disk would be left with less than its reserve, or the blobs would take
        more than they may. The texts have no changing numbers: each is noted once.
        """
        if self._free_bytes(self._folder) - size_bytes - coming_bytes < self._reserve_bytes:
            raise ServerBusy(
                f"the server's disk has no room for this update beside its reserve of "
                f"{self._reserve_bytes // _MB} MB; free some there (disk_reserve_mb)",
                _RETRY_SECONDS,
            )
        with self._lock:
            if self._used_bytes() + size_bytes > self._most_bytes:
                raise ServerBusy(
                    f"blobs may take {self._most_bytes // _MB} MB of the server's disk, which "
                    "this update would exceed; allow them more there (run_disk_mb)",
                    _RETRY_SECONDS,
                )
            self._counted_bytes += size_bytes

    def _used_bytes(self) -> int:
        now = time.monotonic()
        if now - self._counted_at > _BELIEVED_SECONDS:
            self._counted_at = now
            self._counted_bytes = sum(
                _size(path) for folder in (self._folder, self._folder / "partial")
                for path in os.scandir(folder)
            )  # fmt: skip
        return self._counted_bytes


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size if entry.is_file() else 0
    except FileNotFoundError:
        return 0


def _free_bytes(folder: Path) -> int:
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize
