"""A device's share of its processor, what held it back, and how hot it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge_client.processor import (
    Heat,
    ProcessorShare,
    Throttling,
    heat,
    lasting_clock,
    processor_share,
    throttling,
)
from tests.edge_client.kernel import FakeKernel, RealGroup, put

AFFINITY = 4


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(AFFINITY)))
    return FakeKernel(tmp_path)


@pytest.fixture
def unified(kernel: FakeKernel) -> Path:
    kernel.member("0::/box/inner")
    return kernel.mount("cgroup2", "rw")


@pytest.fixture
def cpu(kernel: FakeKernel) -> Path:
    kernel.member("5:cpu,cpuacct:/box/inner", "0::/")
    return kernel.mount("cgroup", "rw,cpu,cpuacct", "cpu")


# ---- share -------------------------------------------------------------------------------------


def test_affinity_bounds_a_process_without_quota(kernel: FakeKernel) -> None:
    assert processor_share(kernel.proc) == ProcessorShare(4.0, "affinity")


def test_quota_of_version_2_is_a_share_of_its_period(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box/inner", cpu_max="40000 100000")
    assert processor_share(kernel.proc) == ProcessorShare(0.4, "cpu.max of /box/inner")


def test_smallest_quota_on_the_way_up_binds(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box/inner", cpu_max="300000 100000")
    put(unified / "box", cpu_max="75000 50000")
    assert processor_share(kernel.proc) == ProcessorShare(1.5, "cpu.max of /box")


@pytest.mark.parametrize(
    "content", ["max 100000", "max", "", "40000", "40000 0", "0 100000", "a b"]
)
def test_what_is_no_quota_binds_nothing(kernel: FakeKernel, unified: Path, content: str) -> None:
    put(unified / "box", cpu_max=content)
    assert processor_share(kernel.proc).bound_by == "affinity"


def test_quota_beyond_the_affinity_binds_nothing(kernel: FakeKernel, unified: Path) -> None:
    put(unified / "box", cpu_max="800000 100000")
    assert processor_share(kernel.proc) == ProcessorShare(4.0, "affinity")


def test_under_a_quota_work_is_timed_by_how_long_it_lasts_in_the_long_run(
    kernel: FakeKernel, unified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "process_time", lambda: 3.0)
    monkeypatch.setattr(time, "perf_counter", lambda: 7.0)
    put(unified / "box/inner", cpu_max="50000 100000")
    assert lasting_clock(1, kernel.proc)() == 6.0
    put(unified / "box/inner", cpu_max="150000 100000")
    assert lasting_clock(2, kernel.proc)() == 2.0
    # What the quota leaves keeps one thread busy all the time.
    assert lasting_clock(1, kernel.proc)() == 7.0


def test_quota_of_version_1_is_in_two_files(kernel: FakeKernel, cpu: Path) -> None:
    put(cpu / "box", cpu_cfs_quota_us=250000, cpu_cfs_period_us=100000)
    put(cpu / "box/inner", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    share = processor_share(kernel.proc)
    assert share == ProcessorShare(2.5, "cpu.cfs_quota_us of /box")


def test_quota_whose_period_has_vanished_binds_nothing(kernel: FakeKernel, cpu: Path) -> None:
    put(cpu / "box", cpu_cfs_quota_us=250000)
    assert processor_share(kernel.proc).bound_by == "affinity"


@pytest.mark.parametrize(
    ("cores", "threads"), [(0.05, 1), (0.99, 1), (1.0, 1), (1.99, 1), (2.5, 2), (4.0, 4)]
)
def test_threads_are_as_many_as_the_share_keeps_busy(cores: float, threads: int) -> None:
    assert ProcessorShare(cores, "a test").num_threads == threads


# ---- throttling --------------------------------------------------------------------------------


def test_throttling_of_version_2_is_counted_all_the_way_up(
    kernel: FakeKernel, unified: Path
) -> None:
    put(unified / "box/inner", cpu_stat={"usage_usec": 9, "nr_throttled": 3, "throttled_usec": 250})
    put(unified / "box", cpu_stat={"nr_periods": 99, "nr_throttled": 4, "throttled_usec": 750_000})
    assert throttling(kernel.proc) == Throttling(7, 0.75025)


def test_throttling_of_version_1_is_in_nanoseconds(kernel: FakeKernel, cpu: Path) -> None:
    put(cpu / "box", cpu_stat={"nr_periods": 9, "nr_throttled": 3, "throttled_time": 1_500_000_000})
    assert throttling(kernel.proc) == Throttling(3, 1.5)


def test_process_without_groups_is_never_throttled(kernel: FakeKernel) -> None:
    assert throttling(kernel.proc) == Throttling(0, 0.0)


# ---- heat --------------------------------------------------------------------------------------


def sensors(monkeypatch: pytest.MonkeyPatch, **values: list[float]) -> None:
    found = {
        name: [SimpleNamespace(current=value) for value in told] for name, told in values.items()
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test may put a vcgencmd; nothing else is on the path, and no sensor is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    sensors(monkeypatch)
    return folder / "vcgencmd"


def says(program: Path, line: str) -> None:
    program.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] || exit 9\n{line}\n')
    program.chmod(0o755)


def test_machine_that_tells_nothing_is_not_hot(program: Path, tmp_path: Path) -> None:
    assert heat(tmp_path / "nothing") == Heat(None, (), ())


@pytest.mark.parametrize(
    "name",
    [
        "cpu_thermal",
        "cpu-thermal",
        "coretemp",
        "k10temp",
        "x86_pkg_temp",
        "soc_thermal",
        "CPU-therm",
    ],
)
def test_hottest_sensor_of_the_processor_is_told(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sensors(monkeypatch, **{name: [51.5, 64.2], "nvme": [80.0], "gpu_thermal": [90.0]})
    assert heat(tmp_path).temperature_celsius == 64.2


def test_broken_sensors_are_passed_over(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensors(monkeypatch, cpu_thermal=[-273.1, 40.0, 255.0, float("nan")])
    assert heat(tmp_path).temperature_celsius == 40.0


@pytest.mark.parametrize(
    ("line", "now", "since_boot"),
    [
        ("echo throttled=0x0", (), ()),
        ("echo throttled=0x50005", ("under-voltage", "throttled"), ("under-voltage", "throttled")),
        (
            "echo throttled=0xe0002",
            ("frequency capped",),
            ("frequency capped", "throttled", "soft temperature limit"),
        ),
        ("echo throttled=0x8", ("soft temperature limit",), ()),
        ("echo 'VCHI initialization failed'", (), ()),
        ("echo throttled=0x1; exit 1", (), ()),
        ("echo throttled=", (), ()),
    ],
)
def test_flags_of_the_firmware_have_names(
    program: Path, tmp_path: Path, line: str, now: tuple[str, ...], since_boot: tuple[str, ...]
) -> None:
    says(program, line)
    assert heat(tmp_path) == Heat(None, now, since_boot)


def test_firmware_that_does_not_answer_is_given_up(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.processor._FIRMWARE_SECONDS", 0.05)
    says(program, "exec /bin/sleep 60")
    assert heat(tmp_path).throttled == ()


def test_frequency_that_the_kernel_lowered_is_told(program: Path, tmp_path: Path) -> None:
    for policy, allowed in (("policy0", 1800000), ("policy4", 1200000)):
        folder = tmp_path / "cpufreq" / policy
        folder.mkdir(parents=True)
        (folder / "scaling_max_freq").write_text(f"{allowed}\n")
        (folder / "cpuinfo_max_freq").write_text("1800000\n")
    assert heat(tmp_path).throttled == ("frequency capped",)
    says(program, "echo throttled=0x6")
    assert heat(tmp_path).throttled == ("frequency capped", "throttled")
    (tmp_path / "cpufreq/policy4/scaling_max_freq").write_text("1800000\n")
    (tmp_path / "cpufreq/policy0/scaling_max_freq").unlink()
    assert heat(tmp_path).throttled == ("frequency capped", "throttled")
    program.unlink()
    assert heat(tmp_path).throttled == ()


# ---- this machine ------------------------------------------------------------------------------

SPIN = """
from edge_client.processor import processor_share, throttling
share = processor_share()
print(share.num_threads, share.cores, share.bound_by)
before = throttling()
while throttling().num_periods == before.num_periods or throttling().seconds == before.seconds:
    pass
"""


@pytest.fixture
def quota() -> Iterator[RealGroup]:
    group = RealGroup("cpu", cpu_cfs_period_us=100000, cpu_cfs_quota_us=20000)
    yield group
    group.remove()


def test_real_quota_is_found_and_its_throttling_counted(quota: RealGroup) -> None:
    threads, cores, bound_by = quota.run(SPIN)[0].split(maxsplit=2)
    assert (threads, cores) == ("1", "0.2")
    assert bound_by.startswith("cpu.cfs_quota_us of ")
    assert bound_by.endswith(quota.folder.name)


def test_threads_follow_a_real_quota(quota: RealGroup) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    put(quota.folder, cpu_cfs_quota_us=150000)
    say = "from edge_client.meter import capability; told = capability()\n"
    show = "print(told.num_threads, told.cores, capability(3).num_threads)"
    assert quota.run(say + show) == ["1 1.5 3"]
    put(quota.folder, cpu_cfs_quota_us=210000)
    affinity = len(os.sched_getaffinity(0))
    assert quota.run(say + show) == [f"2 {min(2.1, float(affinity))} 3"]
