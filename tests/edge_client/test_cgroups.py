"""Control groups are found where the kernel says that they are, on machines of all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.cgroups import Group, groups, read_number
from tests.edge_client.kernel import FakeKernel, put


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def test_groups_of_version_2_lead_from_the_own_one_to_the_top(kernel: FakeKernel) -> None:
    top = kernel.mount("cgroup2", "rw,nsdelegate")
    kernel.member("0::/system.slice/coppice.service")
    assert groups("memory", kernel.proc) == [
        Group(top / "system.slice/coppice.service", "/system.slice/coppice.service", 2),
        Group(top / "system.slice", "/system.slice", 2),
        Group(top, "/", 2),
    ]


def test_version_1_has_a_hierarchy_for_each_controller(kernel: FakeKernel) -> None:
    memory = kernel.mount("cgroup", "rw,memory", "memory")
    cpu = kernel.mount("cgroup", "rw,cpu,cpuacct", "cpu,cpuacct")
    kernel.mount("cgroup", "rw,xattr,name=systemd", "systemd")
    kernel.member("5:cpu,cpuacct:/quick", "4:memory:/box", "1:name=systemd:/user.slice")
    assert groups("memory", kernel.proc) == [
        Group(memory / "box", "/box", 1),
        Group(memory, "/", 1),
    ]
    assert groups("cpu", kernel.proc)[0] == Group(cpu / "quick", "/quick", 1)
    assert groups("cpuset", kernel.proc) == []


def test_hybrid_machine_has_both_versions(kernel: FakeKernel) -> None:
    kernel.mount("cgroup", "rw,memory", "memory")
    unified = kernel.mount("cgroup2", "rw", "unified")
    kernel.member("4:memory:/box", "0::/session")
    found = groups("memory", kernel.proc)
    assert [(group.version, group.name) for group in found] == [
        (1, "/box"),
        (1, "/"),
        (2, "/session"),
        (2, "/"),
    ]
    assert found[2].folder == unified / "session"


def test_mounted_part_of_a_hierarchy_is_the_top_of_a_container(kernel: FakeKernel) -> None:
    folder = kernel.mount("cgroup", "rw,memory", "memory", root="/docker/1234")
    kernel.member("4:memory:/docker/1234/inner")
    assert groups("memory", kernel.proc) == [
        Group(folder / "inner", "/docker/1234/inner", 1),
        Group(folder, "/docker/1234", 1),
    ]


@pytest.mark.parametrize("path", ["/kubepods/pod7/abc", "/../sibling", "/docker/12345"])
def test_group_that_is_not_below_the_mount_is_the_mount_itself(
    kernel: FakeKernel, path: str
) -> None:
    folder = kernel.mount("cgroup2", "rw", root="/" if ".." in path else "/docker/1234")
    kernel.member(f"0::{path}")
    assert groups("memory", kernel.proc) == [Group(folder, path, 2)]


def test_mount_that_has_the_group_wins(kernel: FakeKernel) -> None:
    kernel.mount("cgroup2", "rw", "bound", root="/other")
    folder = kernel.mount("cgroup2", "rw", "whole")
    kernel.member("0::/box")
    assert groups("memory", kernel.proc)[0] == Group(folder / "box", "/box", 2)


def test_spaces_in_mount_points_are_read(kernel: FakeKernel) -> None:
    folder = kernel.mount("cgroup2", "rw", "my\\040groups")
    kernel.member("0::/")
    expected = folder.with_name("my groups")
    assert [group.folder for group in groups("memory", kernel.proc)] == [expected]


def test_machine_without_control_groups_has_none(kernel: FakeKernel, tmp_path: Path) -> None:
    assert groups("memory", tmp_path / "nothing") == []
    kernel.member("0::/box")
    assert groups("memory", kernel.proc) == [], "nothing is mounted"


def test_garbage_is_passed_over(kernel: FakeKernel) -> None:
    folder = kernel.mount("cgroup2", "rw")
    with (kernel.proc / "mountinfo").open("ab") as file:
        file.write(b"\n - \n1 2 - cgroup2\n\xff\xfe - cgroup2 x rw\n")
    kernel.member("", "nonsense", "0:", "x:y", "0::/box")
    assert groups("memory", kernel.proc) == [
        Group(folder / "box", "/box", 2),
        Group(folder, "/", 2),
    ]


def test_files_hold_numbers_or_nothing(tmp_path: Path) -> None:
    put(tmp_path, memory_max="max", memory_current="12", memory_stat={"anon": 3, "file": "x"})
    group = Group(tmp_path, "/", 2)
    assert group.number("memory.current") == 12
    assert group.number("memory.max") is None
    assert group.number("memory.high") is None
    assert group.table("memory.stat") == {"anon": 3}
    assert group.table("cpu.stat") == {}
    put(tmp_path, memory_current="")
    assert group.number("memory.current") is None
    assert read_number(tmp_path) is None, "a folder"


def test_names_are_fit_for_people() -> None:
    assert Group(Path(), "/system.slice", 2).shown_name == "/system.slice"
    long = Group(Path(), "/pods/" + "a" * 300 + ".scope", 2).shown_name
    assert long.startswith("…a")
    assert long.endswith("a.scope")
    assert len(long) <= 200
    odd = Group(Path(), "/a\x1b[1m\udcff", 2).shown_name
    assert odd == "/a?[1m?"
