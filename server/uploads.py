"""Updates on their way in: what has come of one stays when its transfer breaks off, to go on from.

```
folder/partial/<client>.<digest>     so many bytes of that blob as have come from that client
```

After a crash such a file may hold anything; the digest of the whole decides in the end.

Every call blocks but for `Upload.end`; nothing else in here may run on the event loop.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from io import FileIO
from pathlib import Path

from coppice.domain import BlobRef, ClientId
from coppice.errors import DiskFull, InvalidMessage, TransferBroken
from server.blobs import Blobs, check_ref
from server.space import Space

#: Of more broken transfers than these, the oldest start anew.
MOST_KEPT = 1000
MOST_KEPT_BYTES = 4 * 2**30
_READ_BYTES = 2**20
_NAME = re.compile(r"(.+)\.[0-9a-f]{64}")


class Uploads:
    """The updates that arrive, at most one of a client at a time: the newest transfer counts."""

    def __init__(
        self,
        blobs: Blobs,
        *,
        most: int = MOST_KEPT,
        most_bytes: int = MOST_KEPT_BYTES,
        space: Space | None = None,
    ) -> None:
        """`most` broken transfers of `most_bytes` together are kept; `space` bounds new ones."""
        self._space = space
        self._blobs = blobs
        self._most = most
        self._most_bytes = most_bytes
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._open: dict[ClientId, Upload] = {}
        # What the process before has left is counted with the first.
        self._has_more = True

    def received_bytes(self, client_id: ClientId, ref: BlobRef) -> int:
        """How many bytes of this blob came from this client; who asks is sending none."""
        self._end_open(client_id)
        with self._blobs.disk_errors():
            try:
                return min(self._path(client_id, ref).stat().st_size, ref.size_bytes)
            except FileNotFoundError:
                return 0

    def receive(self, client_id: ClientId, ref: BlobRef, offset: int = 0) -> Upload:
        """Take in a blob, from the start or from where its last transfer ended.

        Raises:
            InvalidMessage: `ref` cannot be a blob.
            TransferBroken: There are not `offset` bytes here.
            ServerBusy: The disk has no room for it.
        """
        path = self._path(client_id, ref)
        # One at a time: of two that had one file open, one could write into what is a blob by then.
        with self._opening:
            self._end_open(client_id)
            if self._has_more:
                self._trim()
            if self._space is not None:
                self._let_in(self._space, max(ref.size_bytes - offset, 0))
            upload = Upload(self, self._blobs, path, ref, offset)
            with self._lock:
                self._open[client_id] = upload
        return upload

    def _let_in(self, space: Space, size_bytes: int) -> None:
        with self._lock:
            coming = sum(
                other.ref.size_bytes - other.received_bytes for other in self._open.values()
            )
        with self._blobs.disk_errors():
            space.let_in(size_bytes, coming)

    def close(self) -> None:
        """The server ends; what has come stays."""
        for client_id in list(self._open):
            self._end_open(client_id)

    def _path(self, client_id: ClientId, ref: BlobRef) -> Path:
        check_ref(ref)
        return self._blobs.partial / f"{client_id}.{ref.digest}"

    def _end_open(self, client_id: ClientId) -> None:
        with self._lock:
            upload = self._open.pop(client_id, None)
        if upload is not None:
            upload.end(keep=True)

    def _ended(self, upload: Upload, *, is_kept: bool) -> None:
        with self._lock:
            self._has_more = self._has_more or is_kept
            for client_id, other in list(self._open.items()):
                if other is upload:
                    del self._open[client_id]

    def _trim(self) -> None:
        """Of each client the newest file stays, and of all as many as may be kept."""
        with self._lock:
            self._has_more = False
            busy = {upload.path for upload in self._open.values()}
        found: list[tuple[float, int, Path]] = []
        with self._blobs.disk_errors():
            for path in self._blobs.partial.iterdir():
                if _NAME.fullmatch(path.name) and path not in busy:
                    try:
                        about = path.stat()
                    except FileNotFoundError:
                        continue
                    found.append((about.st_mtime, about.st_size, path))
            clients: set[str] = set()
            size_bytes = 0
            for _, file_bytes, path in sorted(found, reverse=True):
                client = path.name.rpartition(".")[0]
                is_full = size_bytes + file_bytes > self._most_bytes or len(clients) >= self._most
                if client in clients or is_full:
                    path.unlink(missing_ok=True)
                else:
                    clients.add(client)
                    size_bytes += file_bytes


class Upload:
    """A blob on its way in."""

    def __init__(
        self, uploads: Uploads, blobs: Blobs, path: Path, ref: BlobRef, offset: int
    ) -> None:
        self.path = path
        self.ref = ref
        #: Those from before included.
        self.received_bytes = 0
        self._uploads = uploads
        self._blobs = blobs
        self._hash = hashlib.sha256()
        # Another call of the same device may end this one between two of its pieces.
        self._lock = threading.Lock()
        self._is_over = False
        is_new = os.O_CREAT | os.O_TRUNC if offset == 0 else 0
        with blobs.disk_errors():
            try:
                descriptor = os.open(path, os.O_RDWR | is_new, 0o600)
            except FileNotFoundError:
                if is_new:
                    raise
                raise self._elsewhere(offset) from None
            # Unbuffered, so that closing after a failure has nothing left to write and to fail at.
            self._file = FileIO(descriptor, "r+b")
            try:
                while piece := self._file.read(_READ_BYTES):
                    self._hash.update(piece)
                    self.received_bytes += len(piece)
                if self.received_bytes != offset or offset > ref.size_bytes:
                    raise self._elsewhere(offset)
            except BaseException:
                self._file.close()
                raise

    def _elsewhere(self, offset: int) -> TransferBroken:
        return TransferBroken(
            f"the server has {self.received_bytes} bytes of this update, not {offset}; ask how "
            "many it has, and go on from there"
        )

    @property
    def share(self) -> float:
        """How much of the blob is here: 0 to 1."""
        return share_of(self.received_bytes, self.ref)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the next bytes; InvalidMessage when they are more than announced."""
        view = memoryview(data).cast("B")
        with self._lock:
            self._check_open()
            if self.received_bytes + view.nbytes > self.ref.size_bytes:
                raise InvalidMessage(
                    f"more bytes arrive than the {self.ref.size_bytes} that were announced"
                )
            self._hash.update(view)
            self.received_bytes += view.nbytes
            with self._blobs.disk_errors():
                while view:
                    view = view[self._file.write(view) :]

    def commit(self) -> BlobRef:
        """Make the blob visible, on disk and under its name.

        TransferBroken when bytes are missing or are not those that the digest names.
        """
        with self._lock:
            self._check_open()
            if self.received_bytes != self.ref.size_bytes:
                raise TransferBroken(
                    f"the transfer ended after {self.received_bytes} of {self.ref.size_bytes} bytes"
                )
            if self._hash.hexdigest() != self.ref.digest:
                self._close(keep=False)
                raise TransferBroken(
                    "the bytes arrived damaged: they do not have the announced digest"
                )
            if self._blobs.durable:
                with self._blobs.disk_errors():
                    os.fsync(self._file.fileno())
            self._blobs.publish(self.path, self.ref.digest)
            self._close(keep=True)
        return self.ref

    def end(self, *, keep: bool) -> None:
        """No more bytes will come. With `keep`, those that are here wait for the others."""
        with self._lock:
            self._close(keep=keep)

    def failed(self, error: BaseException) -> None:
        """The same after a failure: where that was only the transfer's, what came is kept."""
        # A disk that is full needs the room.
        self.end(keep=not isinstance(error, InvalidMessage | DiskFull))

    def _check_open(self) -> None:
        if self._is_over:
            raise TransferBroken("the device has begun another transfer")

    def _close(self, *, keep: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._file.close()
        is_kept = keep and self.received_bytes > 0
        if not is_kept:
            self.path.unlink(missing_ok=True)
        self._uploads._ended(self, is_kept=is_kept)


def share_of(received_bytes: int, ref: BlobRef) -> float:
    """How much of a blob so many bytes are: 0 to 1."""
    return received_bytes / ref.size_bytes if ref.size_bytes else 1.0
