"""Payload bytes as files that are named by their SHA-256, written whole or not at all.

```
folder/<digest>       a blob: complete, hashed, never changed
folder/partial/…      what is being written; worth nothing after a crash
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
_STALLED_SECONDS = 3600.0


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
        self._partial = folder / "partial"
        # Between "the blob is there" and its new time stamp, a sweep must not remove it.
        self._names = threading.Lock()
        with self._disk_errors():
            self._partial.mkdir(parents=True, exist_ok=True)

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
                file._publish(ref.digest)
        return ref

    def receive(self, ref: BlobRef) -> Incoming:
        """A blob that arrives piece by piece; InvalidMessage when `ref` cannot be one."""
        _check_digest(ref.digest)
        if ref.size_bytes < 0:
            raise InvalidMessage(f"a blob cannot have {ref.size_bytes} bytes")
        return Incoming(self, ref)

    def path(self, digest: str) -> Path:
        """Where a blob's bytes are; UnknownBlob when there is no such blob."""
        path = self._path(digest)
        if not path.is_file():
            raise _unknown(digest)
        return path

    def has(self, digest: str) -> bool:
        """Whether a blob is there, whole."""
        return self._path(digest).is_file()

    def open(self, digest: str) -> BufferedReader:
        """A blob for reading from any offset; it stays readable when a sweep removes its name."""
        with self._disk_errors():
            try:
                return self._path(digest).open("rb")
            except FileNotFoundError:
                raise _unknown(digest) from None

    def read(self, digest: str) -> memoryview:
        """All bytes of a blob, as a private and writable mapping of its file: nothing is copied.

        A disk that fails as they are used ends the process, where reading would raise; either way
        the run goes on from the store.
        """
        with self.open(digest) as file, self._disk_errors():
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
        ages = {self.folder: older_than_seconds, self._partial: _STALLED_SECONDS}
        freed = 0
        with self._disk_errors():
            for path in [*self.folder.iterdir(), *self._partial.iterdir()]:
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
        with self._disk_errors():
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
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if self._partial.is_dir():
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
        with self._blobs._disk_errors():
            descriptor, name = tempfile.mkstemp(dir=self._blobs._partial)
        self._path = Path(name)
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
        self._path.unlink(missing_ok=True)

    def _append(self, view: memoryview) -> None:
        with self._blobs._disk_errors():
            while view:
                view = view[self._file.write(view) :]

    def _sync(self) -> None:
        if self._blobs.durable:
            with self._blobs._disk_errors():
                os.fsync(self._file.fileno())

    def _publish(self, digest: str) -> None:
        """Give the file, which was synced, its name."""
        with self._blobs._disk_errors():
            with self._blobs._names:
                self._path.replace(self._blobs.folder / digest)
            self._blobs._sync_folder()


class Incoming(_Partial):
    """A blob on its way in; leaving the `with` block without `commit` leaves nothing behind."""

    def __init__(self, blobs: Blobs, ref: BlobRef) -> None:
        super().__init__(blobs)
        self.ref = ref
        self.received_bytes = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the next bytes; InvalidMessage when they are more than announced."""
        view = memoryview(data).cast("B")
        if self.received_bytes + view.nbytes > self.ref.size_bytes:
            raise InvalidMessage(
                f"more bytes arrive than the {self.ref.size_bytes} that were announced"
            )
        self.received_bytes += view.nbytes
        self._append(view)
        self._hash.update(view)

    def commit(self) -> BlobRef:
        """Make the blob visible, on disk and under its name.

        TransferBroken when bytes are missing or are not those that the digest names.
        """
        if self.received_bytes != self.ref.size_bytes:
            raise TransferBroken(
                f"the transfer ended after {self.received_bytes} of {self.ref.size_bytes} bytes"
            )
        if self._hash.hexdigest() != self.ref.digest:
            raise TransferBroken("the bytes arrived damaged: they do not have the announced digest")
        self._sync()
        self._publish(self.ref.digest)
        return self.ref


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidMessage(
            f"{digest[:80]!r} is not a SHA-256 digest of 64 lower-case hexadecimal digits"
        )


def _unknown(digest: str) -> UnknownBlob:
    return UnknownBlob(f"blob {digest[:12]}… is not stored; it was removed or never was")
