"""How much of the processor this process may use, how often it was held back, and how hot it is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_client.cgroups import PROC, Group, groups, read_lines, read_number

_CPUS = Path("/sys/devices/system/cpu")

#: What the sensors of processors have in their names, on x86 and on boards of all makes.
_SENSORS = ("cpu", "core", "soc", "pkg", "package", "k10temp", "zenpower")
#: Sensors that are off or broken say anything.
_COLDEST, _HOTTEST = -40.0, 150.0

#: By the bits of what a Raspberry Pi's firmware tells; 16 bits further up, the same since boot.
_FIRMWARE_FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_SINCE_BOOT_BITS = 16
_FIRMWARE_SECONDS = 2.0


@dataclass(frozen=True)
class ProcessorShare:
    """What this process may use of the processor."""

    #: Cores' worth of time: 0.4 is two fifths of one core.
    cores: float
    #: Which limit that is, for people: "cpu.max of /box"; "affinity": the cores it may be on.
    bound_by: str

    @property
    def num_threads(self) -> int:
        """Threads that can run all the time: as many as the share allows, one at least."""
        return max(1, int(self.cores))


@dataclass(frozen=True)
class Throttling:
    """How often quotas have held this process's control groups back, ever: for differences."""

    #: Quota periods in which a group had to stop.
    num_periods: int
    #: For how long, summed over cores.
    seconds: float


@dataclass(frozen=True)
class Heat:
    """What the machine tells of its temperature, and what it slows the processor for."""

    #: Of the hottest part of the processor; None where nothing tells.
    temperature_celsius: float | None
    #: Why the processor is slower than it can be, now; empty also where nothing tells.
    throttled: tuple[str, ...]
    #: The same, ever since the machine was started.
    throttled_since_boot: tuple[str, ...]


def processor_share(proc: Path = PROC) -> ProcessorShare:
    """The smallest of the quotas of this process's control groups and its affinity."""
    bounds = [(float(len(os.sched_getaffinity(0))), "affinity")]
    for group in groups("cpu", proc):
        file, quota, period = _quota(group)
        if quota is not None and period and quota > 0:
            bounds.append((quota / period, f"{file} of {group.shown_name}"))
    return ProcessorShare(*min(bounds))


def lasting_clock(num_threads: int, proc: Path = PROC) -> Callable[[], float]:
    """Seconds, to time something short by that is to be done for longer, in so many threads.

    A quota is of a tenth of a second, mostly: what takes less of it is not held back at all, and
    what takes more waits for the next one. So under a quota that binds this counts the time on the
    processor, and that by how long it lasts in the long run.
    """
    cores = processor_share(proc).cores
    if cores >= num_threads:
        return time.perf_counter
    return lambda: time.process_time() / cores


def throttling(proc: Path = PROC) -> Throttling:
    """What the process's control groups have counted, its own and those around it."""
    periods, seconds = 0, 0.0
    for group in groups("cpu", proc):
        has = group.table("cpu.stat")
        periods += has.get("nr_throttled", 0)
        # Microseconds in version 2, nanoseconds in version 1.
        seconds += has.get("throttled_usec", 0) / 1e6 + has.get("throttled_time", 0) / 1e9
    return Throttling(periods, seconds)


def heat(cpus: Path = _CPUS) -> Heat:
    """How hot the processor is, and whether that or its power supply slows it."""
    told = _told_by_firmware()
    now, since_boot = _flags(told), _flags(told >> _SINCE_BOOT_BITS)
    if "frequency capped" not in now and _is_capped(cpus):
        now = (*now, "frequency capped")
    return Heat(_temperature_celsius(), now, since_boot)


def _quota(group: Group) -> tuple[str, int | None, int | None]:
    """Name of the file that has the quota, the quota and its period, in microseconds."""
    if group.version == 1:
        file = "cpu.cfs_quota_us"
        return file, group.number(file), group.number("cpu.cfs_period_us")
    words = " ".join(read_lines(group.folder / "cpu.max")).split()
    quota, period = (int(word) if word.isdecimal() else None for word in (*words, "", "")[:2])
    return "cpu.max", quota, period


def _temperature_celsius() -> float | None:
    found = [
        sensor.current
        for name, sensors in psutil.sensors_temperatures().items()
        for sensor in sensors
        if any(word in name.lower() for word in _SENSORS)
    ]
    return max((value for value in found if _COLDEST < value < _HOTTEST), default=None)


def _is_capped(cpus: Path) -> bool:
    """Whether the kernel keeps some core below its highest frequency, as it does against heat."""
    for policy in cpus.glob("cpufreq/policy*"):
        allowed = read_number(policy / "scaling_max_freq")
        highest = read_number(policy / "cpuinfo_max_freq")
        if allowed and highest and allowed < highest:
            return True
    return False


def _told_by_firmware() -> int:
    """The flags of a Raspberry Pi's firmware; 0 where there is none to ask.

    Asked by the program that comes with the system: the kernel's file for it, get_throttled, filled
    the log with a warning since Linux 4.19 and is gone since 2025.
    """
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"],
            capture_output=True,
            text=True,
            timeout=_FIRMWARE_SECONDS,
            check=True,
        )
        return int(done.stdout.partition("=")[2], 16)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def _flags(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(_FIRMWARE_FLAGS) if bits >> bit & 1)
