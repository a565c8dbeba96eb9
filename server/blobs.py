"""Payload bytes as files that are named by their SHA-256, written whole or not at all.

```
folder/<digest>       a blob: complete, hashed, never changed
folder/partial/…      what is being written, and updates that have come in part (`server.uploads`)
```

Every call blocks; nothing in here may run on the event loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from coppice.domain import BlobRef
from coppice.errors import DiskFull, InvalidMessage, StoreUnusable, TransferBroken, UnknownBlob
from coppice.files import NO_SPACE, sync_folder

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: A transfer that has been silent for so long is taken for dead.
_STALLED_SECONDS = 86400.0


class Blobs:
    """The blobs in one folder. One process writes there; any of its threads may call."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Open the folder and make it where it is missing.

        Args:
            folder: Where the blobs are.
            durable: Whether a blob is on the disk, and not only in the system's cache, when a
                call that wrote it returns.
        """
        self.folder = folder
        self.durable = durable
        #: What is not whole yet.
        self.partial = folder / "partial"
        # Between "the blob is there" and its new time stamp, a sweep must not remove it.
        self._names = threading.Lock()
        with self.disk_errors():
            self.partial.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes | bytearray | memoryview) -> BlobRef:
        """Store bytes that are in memory; what is there already stays as it is.

        It is written anew and thrown away then: to know first would cost every other call its time.
        """
        view = memoryview(data).cast("B")
        # Bytes take about as long to hash as to bring to the disk: both at once.
        with _Partial(self) as file, ThreadPoolExecutor(1) as second_thread:
            hashing = second_thread.submit(hashlib.sha256, view)
            file._append(view)
            file._sync()
            ref = BlobRef(hashing.result().hexdigest(), view.nbytes)
            if not self._touch(ref):
                self.publish(file.path, ref.digest)
        return ref

    def publish(self, path: Path, digest: str) -> None:
        """Give a file of `partial`, which was hashed and synced, its name as a blob."""
        with self.disk_errors():
            with self._names:
                path.replace(self.folder / digest)
            self._sync_folder()

    def path(self, digest: str) -> Path:
        """Where a blob's bytes are; UnknownBlob when there is no such blob."""
        path = self._path(digest)
        if not path.is_file():
            raise _unknown(digest)
        return path

    def count(self) -> int:
        """How many are there."""
        with self.disk_errors():
            return sum(bool(_DIGEST.fullmatch(path.name)) for path in self.folder.iterdir())

    def has(self, digest: str) -> bool:
        """Whether a blob is there, whole."""
        return self._path(digest).is_file()

    def open(self, digest: str) -> BufferedReader:
        """A blob for reading from any offset; it stays readable when a sweep removes its name."""
        with self.disk_errors():
            try:
                return self._path(digest).open("rb")
            except FileNotFoundError:
                raise _unknown(digest) from None

    def read(self, digest: str) -> memoryview:
        """All bytes of a blob, as a private and writable mapping of its file: nothing is copied.

        A disk that fails as they are used ends the process, where reading would raise; either way
        the run goes on from the store.
        """
        with self.open(digest) as file, self.disk_errors():
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(bytearray())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def sweep(self, live: set[str], *, older_than_seconds: float) -> int:
        """Remove old blobs that nothing refers to, and what broken transfers left behind.

        Args:
            live: Digests that stay.
            older_than_seconds: What was written or put again within this time stays too: a row
                that refers to it may be on its way.

        Returns:
            Bytes freed.
        """
        now = time.time()
        ages = {self.folder: older_than_seconds, self.partial: _STALLED_SECONDS}
        freed = 0
        with self.disk_errors():
            for path in [*self.folder.iterdir(), *self.partial.iterdir()]:
                if path.parent == self.folder and (
                    not _DIGEST.fullmatch(path.name) or path.name in live
                ):
                    continue
                # A transfer that ends now moves its file away.
                with self._names, contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    if found.st_mtime < now - ages[path.parent]:
                        path.unlink()
                        freed += found.st_size
        return freed

    def _path(self, digest: str) -> Path:
        _check_digest(digest)
        return self.folder / digest

    def _touch(self, ref: BlobRef) -> bool:
        """Whether the blob is there; if so, it counts as new and is as durable as a written one."""
        path = self._path(ref.digest)
        with self.disk_errors():
            try:
                with self._names:
                    if path.stat().st_size != ref.size_bytes:
                        return False
                    os.utime(path)
            except FileNotFoundError:
                return False
            self._sync_folder()
        return True

    def _sync_folder(self) -> None:
        if self.durable:
            sync_folder(self.folder)

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Failures of the file system in this folder, as errors that say what to do."""
        try:
            yield
        except FileNotFoundError:
            if self.partial.is_dir():
                # A sweep took a transfer that had been silent for longer than it allows.
                raise TransferBroken("the transfer was given up; send the bytes again") from None
            raise StoreUnusable(
                f"the folder {self.folder} has vanished; put it back or start the server again"
            ) from None
        except OSError as error:
            if error.errno in NO_SPACE:
                raise DiskFull(
                    f"no space is left on the disk of {self.folder}; free some and start again"
                ) from None
            raise StoreUnusable(
                f"cannot use {self.folder}: {error.strerror}; check the folder's disk and its owner"
            ) from None


class _Partial:
    """A file that is being written; leaving the `with` block unpublished leaves nothing behind."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def __enter__(self) -> Self:
        with self._blobs.disk_errors():
            descriptor, name = tempfile.mkstemp(dir=self._blobs.partial)
        self.path = Path(name)
        # Unbuffered, so that closing after a failure has nothing left to write and to fail at.
        self._file = open(descriptor, "wb", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, view: memoryview) -> None:
        with self._blobs.disk_errors():
            while view:
                view = view[self._file.write(view) :]

    def _sync(self) -> None:
        if self._blobs.durable:
            with self._blobs.disk_errors():
                os.fsync(self._file.fileno())


def check_ref(ref: BlobRef) -> None:
    """InvalidMessage when this cannot name a blob."""
    _check_digest(ref.digest)
    if ref.size_bytes < 0:
        raise InvalidMessage(f"a blob cannot have {ref.size_bytes} bytes")


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidMessage(
            f"{digest[:80]!r} is not a SHA-256 digest of 64 lower-case hexadecimal digits"
        )


def _unknown(digest: str) -> UnknownBlob:
    return UnknownBlob(f"blob {digest[:12]}… is not stored; it was removed or never was")
