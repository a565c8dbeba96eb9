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
from edge_client.meter import Laps, Meter, capability
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


@pytest.fixture(params=["told", "hidden"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the kernel tells the peak."""

    def refuse() -> None:
        raise PermissionError("read-only file system")

    if request.param == "hidden":
        monkeypatch.setattr(meter, "forget_peak", refuse)
    return str(request.param)


def test_peak_is_memory_of_this_process(kernel: str) -> None:
    meter = Meter(ignore)
    meter.step_done()
    assert 2**20 < meter.peak_resident_bytes < psutil.virtual_memory().total


def test_peak_stays_when_the_memory_is_gone(kernel: str) -> None:
    meter = Meter(ignore)
    before = meter.peak_resident_bytes
    held = b"x" * 2**26
    meter.step_done()
    del held
    assert meter.peak_resident_bytes > before + 2**25


def test_peak_between_two_steps_is_seen_where_the_kernel_tells() -> None:
    meter = Meter(ignore)
    before = meter.peak_resident_bytes
    meter.step_done()
    held = b"x" * 2**26
    del held
    meter.step_done()
    assert meter.peak_resident_bytes > before + 2**25


def test_peak_of_an_earlier_task_is_forgotten(kernel: str) -> None:
    first = Meter(ignore)
    held = b"x" * 2**26
    first.step_done()
    del held
    high = first.peak_resident_bytes
    assert Meter(ignore).peak_resident_bytes < high - 2**25


def test_laps_follow_each_other() -> None:
    laps = Laps(clock=iter([10.0, 10.5, 12.5]).__next__)
    assert [laps.lap(), laps.lap()] == [0.5, 2.0]


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
