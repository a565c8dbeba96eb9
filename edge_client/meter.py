"""What this device has, and what a task takes of it, measured where it runs."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import psutil

from coppice.domain import Capability
from coppice.errors import TaskAbandoned
from edge_client.limits import memory_budget
from edge_client.processor import heat, processor_share


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
    """What this device can give to a round, as it is now.

    Threads are those asked for, or as many as its share of the processor keeps busy.
    """
    memory, processor, warmth = memory_budget(), processor_share(), heat()
    return Capability(
        memory_bytes=memory.budget_bytes,
        num_threads=num_threads or processor.num_threads,
        machine=platform.machine(),
        memory_bound_by=memory.bound_by,
        cores=processor.cores,
        temperature_celsius=warmth.temperature_celsius,
        throttled=warmth.throttled,
    )
