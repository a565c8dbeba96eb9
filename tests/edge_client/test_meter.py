"""What a device has and what a task takes: steps, memory, limits of control groups."""

from __future__ import annotations

import itertools
import os
import platform
from pathlib import Path

import psutil
import pytest

from coppice.errors import TaskAbandoned
from edge_client.meter import Meter, capability, cgroup_limit_bytes

GIB = 2**30


def ignore(steps_done: int) -> None:
    """Nobody watches."""


def test_steps_are_counted_timed_and_told() -> None:
    seen: list[int] = []
    meter = Meter(seen.append, clock=itertools.count(10.0, 0.5).__next__)
    assert meter.seconds_per_step == 0.0
    for _ in range(3):
        meter.step_done()
    assert meter.steps_done == 3
    assert seen == [1, 2, 3]
    assert meter.seconds_per_step == pytest.approx(0.5)


def test_peak_is_memory_of_this_process() -> None:
    meter = Meter(ignore)
    meter.step_done()
    assert 2**20 < meter.peak_resident_bytes < psutil.virtual_memory().total


def test_abandoned_task_ends_at_its_next_step() -> None:
    meter = Meter(ignore)
    meter.step_done()
    meter.abandon()
    with pytest.raises(TaskAbandoned):
        meter.step_done()
    assert meter.steps_done == 2


def test_capability_is_of_this_machine() -> None:
    measured = capability()
    assert 0 < measured.memory_bytes <= psutil.virtual_memory().total
    assert measured.num_threads == len(os.sched_getaffinity(0))
    assert measured.machine == platform.machine()


def test_threads_that_were_asked_for_are_told() -> None:
    assert capability(3).num_threads == 3


def group(root: Path, path: str, name: str, text: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")


def limit(root: Path, membership: str) -> int | None:
    file = root / "membership"
    file.write_text(membership)
    return cgroup_limit_bytes(root, file)


def test_limit_of_version_2_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    group(tmp_path, "box", "memory.max", str(GIB))
    group(tmp_path, "box/inner", "memory.max", str(3 * GIB))
    assert limit(tmp_path, "0::/box/inner\n") == GIB


def test_max_is_no_limit(tmp_path: Path) -> None:
    group(tmp_path, "box", "memory.max", "max")
    assert limit(tmp_path, "0::/box\n") is None


def test_limit_of_version_1_is_found_beside_other_controllers(tmp_path: Path) -> None:
    group(tmp_path, "memory/box", "memory.limit_in_bytes", str(GIB))
    group(tmp_path, "memory", "memory.limit_in_bytes", str(2**63 - 4096))
    membership = "12:cpu,cpuacct:/other\n9:memory:/box\n1:name=systemd:/x\n0::/\n"
    assert limit(tmp_path, membership) == GIB


def test_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    group(tmp_path, "memory", "memory.limit_in_bytes", str(GIB))
    assert limit(tmp_path, "9:memory:/docker/1234\n") == GIB


def test_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit_bytes(tmp_path, tmp_path / "nothing") is None


def test_limit_bounds_the_memory_on_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.meter.cgroup_limit_bytes", lambda: 1000)
    assert capability().memory_bytes == 1000
