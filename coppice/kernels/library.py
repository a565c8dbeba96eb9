"""The C library: which variant this processor takes, and its functions by ctypes."""

from __future__ import annotations

import ctypes
import platform
import zlib
from collections.abc import Iterator
from contextlib import suppress
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_ssize_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "sparse_kernels.c"
#: A library that is not there, needs another OpenMP runtime, or was compiled from an older source.
_UNFIT = (OSError, AttributeError)


class LayerArrays(Structure):
    """`layer` of sparse_kernels.c."""

    _fields_ = [
        ("row_ptr", c_void_p),
        ("row_offset", c_void_p),
        ("stored_at", c_void_p),
        ("column_ptr", c_void_p),
        ("column_offset", c_void_p),
        ("rows", c_int32),
        ("columns", c_int32),
        ("row_blocks", c_int32),
        ("row_step", c_int32),
        ("column_blocks", c_int32),
        ("column_step", c_int32),
        ("out_height", c_int32),
        ("out_width", c_int32),
        ("padded_width", c_int32),
        ("in_height", c_int32),
        ("in_width", c_int32),
        ("spread_width", c_int32),
    ]


class Plan(Structure):
    """`plan` of sparse_kernels.c."""

    _fields_ = [
        (name, c_int32)
        for name in (
            "rows",
            "channels",
            "kernel_height",
            "kernel_width",
            "stride",
            "phases",
            "taps_down",
            "taps_across",
            "padded_height",
            "padded_width",
            "spread_height",
            "spread_width",
            "block_columns",
            "block_rows",
            "by_rows",
        )
    ]


class UpdateArrays(Structure):
    """`update` of sparse_kernels.c."""

    _fields_ = [
        ("gradient", c_void_p),
        ("velocity", c_void_p),
        ("anchor", c_void_p),
        ("rate", c_float),
        ("momentum", c_float),
        ("decay", c_float),
        ("pull", c_float),
    ]


@dataclass(frozen=True)
class Library:
    """The functions; all take contiguous float32 memory that the caller has sized."""

    variant: str
    functions: ctypes.CDLL

    def __getattr__(self, name: str) -> Any:
        return getattr(self.functions, f"coppice_{name}")


def library() -> Library | None:
    """The library in the variant that is the fastest here; None where `trouble` says why."""
    found = _load()
    return found if isinstance(found, Library) else None


def trouble() -> str | None:
    """Why there is no library; None when there is one."""
    found = _load()
    return found if isinstance(found, str) else None


@cache
def _load() -> Library | str:
    try:
        found = load("baseline")
    except _UNFIT as error:
        return str(error)
    if found.level() == 2:
        # Each variant is compiled by itself: one may be there without the other.
        with suppress(*_UNFIT):
            return load("avx2")
    return found


def load(variant: str) -> Library:
    """A variant of the library; OSError when it was not built. Which can run is not checked."""
    path = _FOLDER / f"_{variant}.so"
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} was not built: there was no C compiler when Coppice was installed on "
            f"this {platform.machine()} machine"
        )
    # The library's own calls of OpenMP find torch's runtime, which must be the only one: two would
    # fight for the cores. It is no dependency of the library, as its file has many names.
    for runtime in _openmp_runtimes():
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    found = Library(variant, ctypes.CDLL(str(path)))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes = arguments
        function.restype = c_int if name in ("source", "lanes", "level") else None
    if found.source() != checksum():
        raise OSError(f"{path.name} was compiled from another version of Coppice")
    return found


def checksum() -> int:
    """Of the source, as setup.py computes it."""
    return zlib.crc32(_SOURCE.read_bytes()) >> 1


_LAYER, _PLAN, _UPDATE = POINTER(LayerArrays), POINTER(Plan), POINTER(UpdateArrays)
_FLOATS = _INDICES = c_void_p
_ARGUMENTS: dict[str, list[Any]] = {
    "source": [],
    "lanes": [],
    "level": [],
    "index": [_PLAN, c_void_p, *[_INDICES] * 7],
    "reorder": [_PLAN, c_void_p, _INDICES, _FLOATS, _FLOATS, c_int],
    "forward": [_LAYER, _FLOATS, c_int, _FLOATS, _FLOATS, _FLOATS, c_int, c_int],
    "backward": [_LAYER, _FLOATS, _UPDATE, _FLOATS, _FLOATS, _FLOATS, c_int, c_int],
    "weight_gradient": [_LAYER, _FLOATS, _UPDATE, _FLOATS, _FLOATS, c_int, c_int],
    "take_step": [_FLOATS, _UPDATE, c_int],
    "pad": [_FLOATS, _FLOATS, *[c_int] * 11],
    "unpad": [_FLOATS, _FLOATS, *[c_int] * 11],
    "transpose": [_FLOATS, _FLOATS, *[c_int] * 4],
    "row_sums": [_FLOATS, _FLOATS, c_int, c_ssize_t, c_int],
    "max_pool": [_FLOATS, _FLOATS, c_void_p, *[c_int] * 9],
    "max_pool_backward": [_FLOATS, c_void_p, _FLOATS, *[c_int] * 9],
}


def _openmp_runtimes() -> Iterator[str]:
    seen = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "gomp" in Path(path).name and path not in seen:
            seen.add(path)
            yield path


def address(tensor: Tensor | None) -> int | None:
    """Of the first element; None for NULL."""
    return None if tensor is None else tensor.data_ptr()
