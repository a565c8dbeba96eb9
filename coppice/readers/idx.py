"""Reads IDX pairs (images and labels, as MNIST is published), plain or compressed."""

from __future__ import annotations

import gzip
import lzma
import math
import re
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coppice.data import Raw
from coppice.readers.limits import bound, unreadable

_IMAGES = re.compile(r"(?P<stem>.*)images(?P<mark>[-.])idx3-ubyte(\.gz|\.xz)?")
_SUFFIXES = ("", ".gz", ".xz")
_CHUNK_BYTES = 1 << 20
#: Third byte of the magic number: unsigned bytes, the only type that images are published in.
_UBYTE = 8


def is_images(path: Path) -> bool:
    """Whether the name is that of an images file."""
    return _IMAGES.fullmatch(path.name) is not None


def images_in(folder: Path) -> list[Path]:
    """The images files right in the folder."""
    return sorted(path for path in folder.iterdir() if is_images(path) and path.is_file())


def read_idx(images: Path) -> Raw:
    """Read an images file and the labels file beside it."""
    return Raw(_read(images, 3), _read(_labels_of(images), 1))


def _labels_of(images: Path) -> Path:
    match = _IMAGES.fullmatch(images.name)
    assert match is not None
    name = f"{match['stem']}labels{match['mark']}idx1-ubyte"
    for suffix in sorted(_SUFFIXES, key=lambda suffix: suffix != (match[3] or "")):
        if (path := images.with_name(name + suffix)).is_file():
            return path
    raise unreadable(images, f"no {name} (or .gz, .xz) is beside it")


def _read(path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    try:
        with _open(path) as file:
            magic = file.read(4)
            if magic != bytes([0, 0, _UBYTE, ndim]):
                raise unreadable(path, f"not an IDX file of bytes in {ndim} dimensions")
            shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
            size = math.prod(shape)
            bound(path, size)
            data = _read_at_most(file, size + 1)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, struct.error) as error:
        raise unreadable(path, f"cannot be read ({error})") from None
    if len(data) != size:
        found = len(data) if len(data) < size else "more"
        raise unreadable(path, f"declares {size} bytes of data and holds {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _open(path: Path) -> BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.GzipFile(path)
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def _read_at_most(file: BufferedIOBase, size: int) -> bytearray:
    # In pieces: a declared size takes no memory before the bytes are really there.
    data = bytearray()
    while len(data) < size and (piece := file.read(min(_CHUNK_BYTES, size - len(data)))):
        data += piece
    return data
