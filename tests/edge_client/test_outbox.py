"""The outbox: an update is there whole or not at all, and what is damaged is never sent."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.errors import DiskFull, InvalidMessage
from coppice.wire.chunks import blob_ref
from edge_client.outbox import MOST_ENTRIES, Outbox, Parcel
from tests.edge_client.fake_server import run_key

DATA = bytearray(range(256)) * 40


def parcel(run: int = 1, task_id: int = 7, data: bytearray = DATA) -> Parcel:
    return Parcel(
        run_key=run_key(run),
        task_id=task_id,
        round_number=3,
        num_examples=30,
        steps=5,
        metrics={"loss": 0.5},
        private="a" * 64,
        ref=blob_ref(data),
        data=data,
    )


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def the_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "outbox").iterdir()
    return path


def test_what_is_put_is_there_for_the_next_process(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox.get(run_key(1)) is None
    outbox.put(parcel())
    assert Outbox(tmp_path / "outbox").get(run_key(1)) == parcel()
    assert outbox.get(run_key(2)) is None
    outbox.drop(run_key(1))
    outbox.drop(run_key(1))
    assert outbox.get(run_key(1)) is None
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_run_has_one_entry_the_newest(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put(parcel(task_id=7))
    outbox.put(parcel(task_id=8))
    assert outbox.get(run_key(1)) == parcel(task_id=8)
    the_file(tmp_path)


def test_oldest_runs_are_given_up(outbox: Outbox, tmp_path: Path) -> None:
    for run in range(MOST_ENTRIES + 2):
        outbox.put(parcel(run))
        os.utime(tmp_path / "outbox" / f"{run_key(run)}.update", (run, run))
    outbox.put(parcel(99))
    kept = [run for run in [*range(MOST_ENTRIES + 2), 99] if outbox.get(run_key(run))]
    assert kept == [3, 4, 5, 99]


def test_it_is_on_disk_before_it_has_its_name(outbox: Outbox, disk_calls: list[str]) -> None:
    outbox.put(parcel())
    assert disk_calls == ["file", "rename", "folder"]


def test_full_disk_leaves_the_entry_that_was_there(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    outbox.put(parcel(task_id=7))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(DiskFull):
            outbox.put(parcel(task_id=8))
    assert outbox.get(run_key(1)) == parcel(task_id=7)
    the_file(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:11],
        lambda data: data[:30],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"X" + data[1:],
        lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data.replace(b'"task_id"', b'"task_if"'),
        lambda data: data.replace(b'"steps": 5', b'"steps":[]'),
        lambda data: data.replace(run_key(1).encode(), run_key(2).encode()),
        lambda data: bytes(len(data)),
    ],
)
def test_damaged_entry_is_given_up(
    outbox: Outbox, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    outbox.put(parcel())
    path = the_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert outbox.get(run_key(1)) is None
    assert not path.exists()


@pytest.mark.parametrize("key", ["", "../1-0123456789abcdef", "1"])
def test_what_is_no_run_never_becomes_a_path(outbox: Outbox, key: str) -> None:
    for operation in (
        outbox.get,
        outbox.drop,
        lambda key: outbox.put(replace(parcel(), run_key=key)),
    ):
        with pytest.raises(InvalidMessage):
            operation(key)


def test_only_this_user_may_read_it(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put(parcel())
    assert stat.S_IMODE(the_file(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o700
