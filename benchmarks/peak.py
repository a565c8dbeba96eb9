"""Peaks of resident memory, as the kernel keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from coppice.memory import give_back

#: What the kernel takes for "forget the peak".
_FORGET_PEAK = "5"


def peak_bytes(operation: Callable[[], object]) -> int:
    """Bytes by which this process grows at most, the result included."""
    # What was freed before goes back to the system: used again, it would not be seen.
    give_back()
    process = psutil.Process()
    before = process.memory_info().rss
    forget_peak(process.pid)
    operation()
    return max(0, peak_rss_bytes(process.pid) - before)


def forget_peak(pid: int) -> None:
    """Let the peak of a process be what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_PEAK)


def peak_rss_bytes(pid: int) -> int:
    """The most resident memory of a process since then, or ever."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell peak memory")
