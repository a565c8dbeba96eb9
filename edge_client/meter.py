"""What this device has, and what a task takes of it, measured where it runs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from coppice.domain import Capability
from coppice.errors import TaskAbandoned

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


class Meter:
    """Counts and times the steps of one task, and lets others end it between two steps."""

    def __init__(
        self,
        on_step: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_step = on_step
        self._clock = clock
        self._started = self._last_step = clock()
        self._wanted = True
        #: Local steps done so far.
        self.steps_done = 0
        #: The most memory that this process was seen to hold at the end of a step or heartbeat.
        self.peak_resident_bytes = 0

    @property
    def seconds_per_step(self) -> float:
        """Mean wall time of a step; 0 before the first."""
        return (self._last_step - self._started) / max(self.steps_done, 1)

    def step_done(self) -> None:
        """Count one local step; raises TaskAbandoned when the task is no longer wanted."""
        self._last_step = self._clock()
        self.steps_done += 1
        self.sample_bytes()
        self._on_step(self.steps_done)
        if not self._wanted:
            raise TaskAbandoned("the server no longer wants this task")

    def abandon(self) -> None:
        """The task is no longer wanted; any thread may say so."""
        self._wanted = False

    def sample_bytes(self) -> int:
        """Memory that this process holds now, noted for the peak."""
        resident = resident_bytes()
        self.peak_resident_bytes = max(self.peak_resident_bytes, resident)
        return resident


def resident_bytes() -> int:
    """Memory that this process holds now."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def capability(num_threads: int | None = None) -> Capability:
    """What this device can give to a round.

    Memory is what is free and what this process holds already, within the limit of its control
    group. Threads are those asked for, or one for each core that this process may run on.
    """
    free_bytes = psutil.virtual_memory().available + resident_bytes()
    limit_bytes = cgroup_limit_bytes()
    return Capability(
        memory_bytes=free_bytes if limit_bytes is None else min(free_bytes, limit_bytes),
        num_threads=num_threads or len(os.sched_getaffinity(0)),
        machine=platform.machine(),
    )


def cgroup_limit_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """The smallest memory limit of this process's control groups, of version 1 or 2, or None."""
    limits = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            limits += _limits(root, group, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(root / "memory", group, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(top: Path, group: str, name: str) -> list[int]:
    """The limits of a group and of those it is in; the top stands for the group in a container."""
    relative = Path(group.lstrip("/"))
    found = []
    for folder in (relative, *relative.parents):
        try:
            text = (top / folder / name).read_text().strip()
        except OSError:
            continue
        # Version 2 writes "max" for no limit; version 1 a number beyond any machine's memory.
        if text.isdigit():
            found.append(int(text))
    return found
