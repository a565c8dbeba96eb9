"""What strangers say of their devices: what is believed, and what is refused by name."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import Capability
from coppice.errors import InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.capability import capability_from_message, capability_to_message

ROOT = Path(__file__).parents[3]

PLAIN = Capability(memory_bytes=2**40, num_threads=4, machine="aarch64")
WHOLE = Capability(
    memory_bytes=2**53 - 1,
    num_threads=1,
    machine="aarch64",
    memory_bound_by="memory.max of /system.slice/" + "x" * 200,
    cores=0.05,
    temperature_celsius=-10.5,
    throttled=("under-voltage", "throttled"),
)


@pytest.mark.parametrize("capability", [PLAIN, WHOLE], ids=["plain", "whole"])
def test_a_capability_survives(capability: Capability) -> None:
    data = capability_to_message(capability).SerializeToString()
    assert capability_from_message(pb.Capability.FromString(data)) == capability


def test_no_temperature_is_not_zero_degrees() -> None:
    assert capability_from_message(pb.Capability()).temperature_celsius is None
    cold = pb.Capability(temperature_celsius=0.0)
    assert capability_from_message(cold).temperature_celsius == 0.0


def test_a_device_always_has_a_thread() -> None:
    assert capability_from_message(pb.Capability()).num_threads == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("memory_bytes", [2**53, 2**64 - 1]),
        ("machine", ["m" * 64, "arm\n", "\x1b[2Jarm", "a\0"]),
        ("memory_bound_by", ["x" * 256, "a\nb", "\x1b[31m"]),
        ("cores", [-0.1, 65537.0, math.nan, math.inf, -math.inf]),
        ("temperature_celsius", [-1001.0, 1001.0, math.nan, math.inf, -math.inf]),
        ("throttled", [["x"] * 17, ["x" * 64], ["hot", "a\n"]]),
    ],
)
def test_what_is_outside_its_limits_is_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidMessage, match=rf"capability\.{field} is "):
            capability_from_message(pb.Capability(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_bytes", 2**53 - 1),
        ("machine", "m" * 63),
        ("memory_bound_by", "ü" * 255),
        ("cores", 65536.0),
        ("temperature_celsius", 1000.0),
        ("throttled", ("x" * 63,) * 16),
    ],
)
def test_what_is_just_within_its_limits_is_taken(field: str, value: Any) -> None:
    assert getattr(capability_from_message(pb.Capability(**{field: value})), field) == value


def test_a_device_can_say_what_it_is_without_torch() -> None:
    code = "import coppice.wire.capability, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
