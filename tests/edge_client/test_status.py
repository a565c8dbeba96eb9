"""The status file: always whole, and written no more often than needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import Forecast, RoundReport
from coppice.errors import DiskFull
from edge_client import status
from edge_client.status import Status, StatusFile, read_status

START = Status(pid=7, server="host:1", name="kitchen")
START_WRITTEN = replace(START, since=100.0, bytes_written=4096)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(path: Path) -> tuple[StatusFile, Clock]:
    clock = Clock()
    return StatusFile(path, START, clock, wall_clock=clock, disk=lambda: 4096), clock


def test_status_is_there_from_the_start(tmp_path: Path) -> None:
    make(tmp_path / "status.json")
    assert read_status(tmp_path / "status.json") == START_WRITTEN


def test_change_of_phase_is_written_at_once(tmp_path: Path) -> None:
    file, clock = make(tmp_path / "status.json")
    clock.now = 100.5
    file.update(phase="training", round_number=3)
    written = read_status(tmp_path / "status.json")
    assert written is not None
    assert (written.phase, written.round_number, written.since) == ("training", 3, 100.5)


def test_other_changes_are_written_every_two_seconds(tmp_path: Path) -> None:
    file, clock = make(tmp_path / "status.json")
    steps = []
    for tick in range(1, 10):
        clock.now = 100.0 + tick / 2
        file.update(step=tick)
        written = read_status(tmp_path / "status.json")
        assert written is not None
        steps.append(written.step)
    assert steps == [0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_full_disk_keeps_the_older_one_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = make(tmp_path / "status.json")

    def full(*_: object, **__: object) -> None:
        raise DiskFull("no space is left")

    with monkeypatch.context() as filled:
        filled.setattr(status, "write_file", full)
        file.update(phase="training")
        assert read_status(tmp_path / "status.json") == START_WRITTEN
    file.update(phase="pushing")
    written = read_status(tmp_path / "status.json")
    assert written is not None
    assert written.phase == "pushing"


def test_what_was_not_written_is_not_lost(tmp_path: Path) -> None:
    file, _ = make(tmp_path / "status.json")
    file.update(step=5)
    file.update(phase="pushing")
    written = read_status(tmp_path / "status.json")
    assert written is not None
    assert written.step == 5


def test_last_round_is_read_as_it_was_written(tmp_path: Path) -> None:
    file, _ = make(tmp_path / "status.json")
    for forecast in (None, Forecast(0.25, 11.5, 1.25, 300, "memory")):
        report = RoundReport(3, 12, 0.25, 0.5, 12.25, 0.75, 312, 400, "a limit", forecast)
        file.update(last_round=report, phase=f"after {report.why}")
        written = read_status(tmp_path / "status.json")
        assert written is not None
        assert written.last_round == report


def test_missing_or_damaged_status_is_none(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    path.write_text('{"pid": 1')
    assert read_status(path) is None
    path.write_text("[]")
    assert read_status(path) is None
    make(path)
    path.write_text(path.read_text().replace('"last_round": null', '"last_round": {"steps": 1}'))
    assert read_status(path) is None
