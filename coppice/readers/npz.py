"""Reads `.npz` files with arrays x, y and, optionally, classes (names of integer labels)."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from coppice.data import Raw
from coppice.readers.limits import bound, unreadable

Array = npt.NDArray[Any]

#: What zipfile and numpy raise for damaged files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def read_npz(path: Path) -> Raw:
    """Read the file; its arrays may not be pickled objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            members = {name.removesuffix(".npy") for name in names if name.endswith(".npy")}
            if missing := [name for name in ("x", "y") if name not in members]:
                found = ", ".join(sorted(members)) or "none"
                raise unreadable(path, f"it has no array {missing[0]} (arrays in it: {found})")
            inputs, labels = _array(archive, "x", path), _array(archive, "y", path)
            classes = _array(archive, "classes", path) if "classes" in members else None
    except _DAMAGE as error:
        raise unreadable(path, f"not a whole .npz file ({error})") from None
    if inputs.ndim == 0 or labels.ndim == 0:
        raise unreadable(path, "its arrays x and y must have one entry for each example")
    if classes is None:
        return Raw(inputs, labels)
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise unreadable(path, "its array classes must be a list of strings")
    return Raw(inputs, labels, [str(name) for name in classes])


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> Array:
    # The header is checked against the size of the member before numpy allocates what it declares.
    info = archive.getinfo(f"{name}.npy")
    bound(path, info.file_size)
    with archive.open(info) as member:
        shape, dtype = _header(member)
        if dtype.hasobject:
            raise unreadable(path, f"its array {name} holds Python objects, not numbers")
        size = math.prod(shape) * dtype.itemsize
        if dtype.itemsize == 0 or size != info.file_size - member.tell():
            raise unreadable(path, f"its array {name} is not as long as its header says")
        member.seek(0)
        array: Array = npy.read_array(member, allow_pickle=False)
        return array


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(member)
    else:
        raise ValueError(f"version {version} of the array format")
    return shape, dtype
