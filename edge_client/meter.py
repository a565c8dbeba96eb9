"""What this device has, and what a task takes of it, measured where it runs."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import psutil

from coppice.domain import Capability
from coppice.errors import TaskAbandoned
from coppice.memory import forget_peak, peak_resident_bytes
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
        self._started = self._first_step = self._last_step = clock()
        self._wanted = True
        #: Local steps done so far.
        self.steps_done = 0
        self._kernel_tells = _forget_peak()
        self._most_seen_bytes = 0

    @property
    def seconds_per_step(self) -> float:
        """Mean wall time of a step; 0 before the first.

        What comes before the first step is not in it, unless there is only that one.
        """
        return self.steady_seconds_per_step or self._last_step - self._started

    @property
    def steady_seconds_per_step(self) -> float:
        """The same without the first step, before which there is other work; 0 where it is all."""
        if self.steps_done < 2:
            return 0.0
        return (self._last_step - self._first_step) / (self.steps_done - 1)

    @property
    def peak_resident_bytes(self) -> int:
        """The most memory that this process has held since this meter was made.

        Where the kernel does not tell, the most that it was seen to hold at the end of a step or
        heartbeat, or now.
        """
        if self._kernel_tells:
            return peak_resident_bytes()
        self.sample_bytes()
        return self._most_seen_bytes

    def step_done(self) -> None:
        """Count one local step; raises TaskAbandoned when the task is no longer wanted."""
        self._last_step = self._clock()
        self.steps_done += 1
        if self.steps_done == 1:
            self._first_step = self._last_step
        if not self._kernel_tells:
            self.sample_bytes()
        self._on_step(self.steps_done)
        self.check()

    def check(self) -> None:
        """Raise TaskAbandoned when the task is no longer wanted."""
        if not self._wanted:
            raise TaskAbandoned("the server no longer wants this task")

    def abandon(self) -> None:
        """The task is no longer wanted; any thread may say so."""
        self._wanted = False

    def sample_bytes(self) -> int:
        """Memory that this process holds now, noted for the peak."""
        resident = resident_bytes()
        self._most_seen_bytes = max(self._most_seen_bytes, resident)
        return resident


class Laps:
    """Times the parts of a task, one after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        last, self._last = self._last, self._clock()
        return self._last - last


def _forget_peak() -> bool:
    """Let the kernel's peak begin anew; False where it has none, or does not let us."""
    try:
        forget_peak()
        peak_resident_bytes()
    except OSError:
        return False
    return True


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
