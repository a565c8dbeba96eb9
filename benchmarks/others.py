"""What the rest of the machine computes while something is measured."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


class Others:
    """All processes but some, from now on."""

    def __init__(self, own: Sequence[psutil.Process]) -> None:
        self._own = own
        self._began = time.monotonic()
        self._before = self._other_seconds()

    def cores(self) -> float:
        """Cores that others kept busy, on average."""
        seconds = time.monotonic() - self._began
        return (self._other_seconds() - self._before) / seconds

    def _other_seconds(self) -> float:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return float(sum(times) - idle - sum(map(_cpu_seconds, self._own)))


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        # Its own, of its children that have ended, and of those that have not.
        times = [process.cpu_times(), *(x.cpu_times()[:2] for x in process.children())]
        return sum(map(sum, times))
    except psutil.Error:
        # It has been killed: what it used is not told any more.
        return 0.0
