"""What a device has, and what a task takes: steps and memory."""

from __future__ import annotations

import itertools
import platform

import psutil
import pytest

from coppice.domain import Capability
from coppice.errors import TaskAbandoned
from edge_client import meter
from edge_client.limits import MemoryBudget
from edge_client.meter import Meter, capability
from edge_client.processor import Heat, ProcessorShare, processor_share


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
    assert measured.num_threads == processor_share().num_threads
    assert measured.machine == platform.machine()


def test_threads_that_were_asked_for_are_told() -> None:
    assert capability(3).num_threads == 3


def test_capability_says_what_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    share, warmth = ProcessorShare(2.5, "a test"), Heat(61.5, ("throttled",), ("under-voltage",))
    monkeypatch.setattr(meter, "memory_budget", lambda: MemoryBudget(1000, "a limit", 10))
    monkeypatch.setattr(meter, "processor_share", lambda: share)
    monkeypatch.setattr(meter, "heat", lambda: warmth)
    assert capability() == Capability(
        memory_bytes=1000,
        num_threads=2,
        machine=platform.machine(),
        memory_bound_by="a limit",
        cores=2.5,
        temperature_celsius=61.5,
        throttled=("throttled",),
    )
