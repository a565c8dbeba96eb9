"""What strangers say of their rounds: what is believed, and what is refused by name."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import Forecast, RoundReport
from coppice.errors import InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.report import report_from_message, report_to_message

ROOT = Path(__file__).parents[3]

PLAIN = RoundReport(
    round_number=3,
    steps=12,
    density=0.25,
    download_seconds=0.5,
    compute_seconds=12.25,
    upload_seconds=0.75,
    peak_bytes=312_000_000,
    budget_bytes=400_000_000,
    bound_by="memory.max of /system.slice/coppice.service",
)
FORECAST = Forecast(
    download_seconds=0.25,
    compute_seconds=11.5,
    upload_seconds=1.25,
    peak_bytes=300_000_000,
    why="memory",
)
SECONDS = ("download_seconds", "compute_seconds", "upload_seconds")
NO_TIME = [-0.1, 1.1e9, math.nan, math.inf, -math.inf]
TOO_MANY = [2**53, 2**64 - 1]


@pytest.mark.parametrize("why", ["", "memory", "pace", "capped"])
@pytest.mark.parametrize("is_predicted", [False, True])
def test_a_report_survives(why: Any, is_predicted: bool) -> None:
    forecast = replace(FORECAST, why=why) if is_predicted else None
    report = replace(PLAIN, forecast=forecast)
    data = report_to_message(report).SerializeToString()
    assert report_from_message(pb.RoundReport.FromString(data)) == report


def test_no_forecast_is_not_one_of_zeros() -> None:
    assert report_from_message(pb.RoundReport(round_number=1)).forecast is None
    message = pb.RoundReport(round_number=1, forecast=pb.Forecast())
    assert report_from_message(message).forecast == Forecast(0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("round_number", [0, 2**31, 2**32 - 1]),
        ("steps", TOO_MANY),
        ("density", [-0.01, 1.01, math.nan, math.inf]),
        *((name, NO_TIME) for name in SECONDS),
        ("peak_bytes", TOO_MANY),
        ("budget_bytes", TOO_MANY),
        ("bound_by", ["x" * 256, "a\nb", "\x1b[31m"]),
    ],
)
def test_what_is_outside_its_limits_is_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidMessage, match=rf"report\.{field} is "):
            report_from_message(pb.RoundReport(**({"round_number": 1} | {field: value})))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        *((name, NO_TIME) for name in SECONDS),
        ("peak_bytes", TOO_MANY),
        ("why", ["Memory", "hot", "memory\n", "x" * 1000]),
    ],
)
def test_a_forecast_outside_its_limits_is_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        message = pb.RoundReport(round_number=1, forecast=pb.Forecast(**{field: value}))
        with pytest.raises(InvalidMessage, match=rf"report\.forecast\.{field} is ") as refused:
            report_from_message(message)
        assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round_number", 2**31 - 1),
        ("steps", 2**53 - 1),
        ("density", 0.0),
        ("density", 1.0),
        ("compute_seconds", 1e9),
        ("peak_bytes", 2**53 - 1),
        ("bound_by", "ü" * 255),
    ],
)
def test_what_is_just_within_its_limits_is_taken(field: str, value: Any) -> None:
    message = pb.RoundReport(**({"round_number": 1} | {field: value}))
    assert getattr(report_from_message(message), field) == value


def test_a_report_is_made_without_torch() -> None:
    code = "import coppice.wire.report, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
