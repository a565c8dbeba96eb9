"""Choosing the reader, and paths at which there is nothing to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coppice import readers
from coppice.domain import DataSpec
from coppice.errors import UnreadableData

SPEC = DataSpec(classes=("a", "b"), input_shape=(3,))


@pytest.mark.parametrize(
    "name", ["d.npz", "d.csv", "d.parquet", "train-images-idx3-ubyte.gz", "d.bin", "folder/d"]
)
def test_a_missing_path_is_named_with_what_is_accepted(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableData) as caught:
        readers.read(tmp_path / name, SPEC)
    assert f"{tmp_path / name}: does not exist; accepted are: .npz" in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(UnreadableData, match="not a known kind of file; accepted are"):
        readers.read(path, SPEC)


def test_suffixes_may_be_upper_case(tmp_path: Path) -> None:
    path = tmp_path / "DATA.NPZ"
    with path.open("wb") as file:
        np.savez(file, x=np.zeros((1, 3)), y=np.zeros(1, int))
    assert readers.read(path, SPEC).inputs.shape == (1, 3)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read (Permission denied)"),
        (MemoryError(), "does not fit into this device's memory"),
    ],
)
def test_failures_of_the_device_become_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, message: str
) -> None:
    def fail(path: Path) -> None:
        raise failure

    monkeypatch.setattr(readers, "read_npz", fail)
    path = tmp_path / "d.npz"
    path.touch()
    with pytest.raises(UnreadableData) as caught:
        readers.read(path, SPEC)
    assert f"{path}: {message}" in str(caught.value)
