"""Devices in control groups: their limits hold, and what became of them is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.small_devices import Size, SmallDevice, small_devices

_MB = 2**20


@pytest.fixture(autouse=True)
def needs_root() -> None:
    """Only root may make control groups, and not in every container."""
    try:
        SmallDevice("tried").remove()
    except SystemExit as error:
        pytest.skip(str(error))


def hold(device: SmallDevice, megabytes: int) -> int:
    """A process in there that holds so much. Returns its exit code."""
    code = f"bytearray({megabytes} * 2**20)"
    return subprocess.run(device.command(sys.executable, "-c", code), check=False).returncode


def test_who_wants_more_memory_than_there_is_is_killed_and_told() -> None:
    with small_devices({"weak": Size(64, 1.0), "strong": Size(256, 1.0)}) as devices:
        assert hold(devices["weak"], 128) != 0
        assert hold(devices["strong"], 128) == 0
        weak, strong = devices["weak"].told(), devices["strong"].told()
        assert (weak.killed, strong.killed) == (1, 0)
        assert 32 * _MB < weak.peak_bytes <= 64 * _MB
        assert 128 * _MB < strong.peak_bytes <= 256 * _MB
        devices["weak"].limit_memory(256)
        assert hold(devices["weak"], 128) == 0


def test_who_has_a_share_of_the_processor_is_throttled() -> None:
    with small_devices({"slow": Size(256, 0.2)}) as devices:
        command = devices["slow"].command(sys.executable, "-c", "sum(range(3 * 10**6))")
        subprocess.run(command, check=True)
        told = devices["slow"].told()
        assert 0 < told.throttled <= told.periods
