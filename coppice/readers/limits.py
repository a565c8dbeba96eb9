"""What bounds the reading of a file, and the wording of its refusals."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from coppice.errors import DataError, UnreadableData

#: Most bytes that the examples of one device may have in memory.
MAX_BYTES = 8 << 30

_MAX_REASON = 300

ACCEPTED = (
    ".npz with arrays x and y; an IDX pair (…-images-idx3-ubyte and …-labels-idx1-ubyte, also .gz "
    "or .xz) or a folder with one; a folder with one folder of images for each class; "
    ".csv; .parquet"
)


def unreadable(path: Path, why: str) -> UnreadableData:
    """The error for a path that cannot be read."""
    # Libraries put line breaks, and what they found in the file, into their messages.
    line = " ".join(why.split())[:_MAX_REASON]
    return UnreadableData(f"{path}: {line}; accepted are: {ACCEPTED}")


def bound(path: Path, size_bytes: int) -> None:
    """Refuse data that would take more than MAX_BYTES of memory."""
    if size_bytes > MAX_BYTES:
        raise UnreadableData(
            f"{path} holds {size_bytes} bytes of data; allowed are {MAX_BYTES}: split it"
        )


def load_extra(module: str, extra: str, path: Path) -> Any:
    """A module of an optional dependency."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"{path}: reading this needs {module.partition('.')[0]}; "
            f"run pip install 'coppice[{extra}]'"
        ) from None
