"""Files that are replaced whole or not at all, and the file system's failures in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coppice.errors import DiskFull, StoreUnusable

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_file(
    path: Path,
    *parts: bytes | bytearray | memoryview,
    remedy: str,
    durable: bool = True,
    secret: bool = False,
) -> None:
    """Replace a file by one with this content; whoever reads it sees the old or the new one.

    Args:
        parts: The content, one after the other.
        remedy: What the user can do when it fails, as the end of a sentence.
        durable: Whether it survives a power cut once this returns.
        secret: Whether only this user may read it.

    Raises:
        DiskFull, StoreUnusable: The old file is as it was, and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.new")
    with reporting(path, remedy):
        try:
            # What a crash has left there may be readable by others.
            temporary.unlink(missing_ok=True)
            mode = 0o600 if secret else 0o666
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "wb") as file:
                file.writelines(parts)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reporting(path: Path, remedy: str) -> Iterator[None]:
    """Failures of the file system, as errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(f"no space is left for {path}; free some, or {remedy}") from None
        raise StoreUnusable(f"{path} cannot be written: {error.strerror}; {remedy}") from None
