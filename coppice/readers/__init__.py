"""Reads a device's data from a file or folder, by what is there; one module for each format."""

from __future__ import annotations

from pathlib import Path

from coppice.data import Raw
from coppice.domain import DataSpec
from coppice.readers.idx import images_in, is_images, read_idx
from coppice.readers.images import read_images
from coppice.readers.limits import unreadable
from coppice.readers.npz import read_npz
from coppice.readers.tables import read_csv, read_parquet


def read(path: Path, spec: DataSpec) -> Raw:
    """What is at the path, not yet checked against the run.

    Raises UnreadableData when there is nothing in a known format, and DataError when what is there
    lacks something that the run names (a column, a size of images).
    """
    try:
        return _read(path, spec)
    except FileNotFoundError:
        raise unreadable(path, "does not exist") from None
    except OSError as error:
        raise unreadable(path, f"cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise unreadable(path, "does not fit into this device's memory") from None


def _read(path: Path, spec: DataSpec) -> Raw:
    if path.is_dir():
        return _read_folder(path, spec)
    # A missing file or one that may not be read is named as such, whatever it is called.
    path.open("rb").close()
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".csv":
        return read_csv(path, spec)
    if suffix == ".parquet":
        return read_parquet(path, spec)
    if is_images(path):
        return read_idx(path)
    raise unreadable(path, "not a known kind of file")


def _read_folder(path: Path, spec: DataSpec) -> Raw:
    found = images_in(path)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise unreadable(path, f"holds several sets; give the path of one images file ({names})")
    return read_idx(found[0]) if found else read_images(path, spec.input_shape)
