"""Files: the old one or the new one, never a part."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from coppice.errors import DiskFull, StoreUnusable
from coppice.files import write_file

REMEDY = "choose another path"


def test_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old", remedy=REMEDY)
    with path.open("rb") as reader:
        write_file(path, b"new", remedy=REMEDY)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_on_a_full_disk_the_old_file_stays_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old", remedy=REMEDY)

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFull, match=r"no space is left for .*; free some, or choose another"):
        write_file(path, b"new", remedy=REMEDY)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(StoreUnusable, match="missing/file cannot be written: No such file or dir"):
        write_file(path, b"new", remedy=REMEDY)


@pytest.mark.parametrize(("durable", "syncs"), [(True, 2), (False, 0)])
def test_file_and_its_name_are_on_the_disk_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, syncs: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_file(tmp_path / "file", b"new", remedy=REMEDY, durable=durable)
    assert len(synced) == syncs
