"""What a round took on a device ↔ message; like a capability, it needs no torch."""

from __future__ import annotations

from typing import get_args

from coppice.domain import Forecast, RoundReport, Why
from coppice.errors import InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.bounds import MAX_BOUND_BY_LENGTH, is_text, valid_count

MAX_ROUND_NUMBER = 2**31 - 1
#: Thirty years.
MAX_SECONDS = 1e9

_WHYS: dict[str, Why] = {why: why for why in get_args(Why)}


def report_to_message(report: RoundReport) -> pb.RoundReport:
    """What a device measured of a round, to send."""
    message = pb.RoundReport(
        round_number=report.round_number,
        steps=report.steps,
        density=report.density,
        download_seconds=report.download_seconds,
        compute_seconds=report.compute_seconds,
        upload_seconds=report.upload_seconds,
        peak_bytes=report.peak_bytes,
        budget_bytes=report.budget_bytes,
        bound_by=report.bound_by,
    )
    if (forecast := report.forecast) is not None:
        message.forecast.CopyFrom(pb.Forecast(**vars(forecast)))
    return message


def report_from_message(message: pb.RoundReport) -> RoundReport:
    """What a device says that it measured; InvalidMessage names what cannot be so."""
    if not 1 <= message.round_number <= MAX_ROUND_NUMBER:
        raise InvalidMessage(
            f"report.round_number is {message.round_number}; allowed is 1 to {MAX_ROUND_NUMBER}"
        )
    # Written so that NaN is refused too.
    if not 0 <= message.density <= 1:
        raise InvalidMessage(f"report.density is {message.density}; allowed is 0 to 1")
    if not is_text(message.bound_by, MAX_BOUND_BY_LENGTH):
        raise InvalidMessage(
            f"report.bound_by is not {MAX_BOUND_BY_LENGTH} printable characters or fewer"
        )
    forecast = message.forecast if message.HasField("forecast") else None
    return RoundReport(
        round_number=message.round_number,
        steps=valid_count("report.steps", message.steps),
        density=message.density,
        download_seconds=_seconds("report.download_seconds", message.download_seconds),
        compute_seconds=_seconds("report.compute_seconds", message.compute_seconds),
        upload_seconds=_seconds("report.upload_seconds", message.upload_seconds),
        peak_bytes=valid_count("report.peak_bytes", message.peak_bytes),
        budget_bytes=valid_count("report.budget_bytes", message.budget_bytes),
        bound_by=message.bound_by,
        forecast=None if forecast is None else _forecast(forecast),
    )


def _forecast(message: pb.Forecast) -> Forecast:
    name = "report.forecast"
    if message.why not in _WHYS:
        allowed = ", ".join(map(repr, _WHYS))
        raise InvalidMessage(f"{name}.why is {message.why[:63]!r}; allowed are {allowed}")
    return Forecast(
        download_seconds=_seconds(f"{name}.download_seconds", message.download_seconds),
        compute_seconds=_seconds(f"{name}.compute_seconds", message.compute_seconds),
        upload_seconds=_seconds(f"{name}.upload_seconds", message.upload_seconds),
        peak_bytes=valid_count(f"{name}.peak_bytes", message.peak_bytes),
        why=_WHYS[message.why],
    )


def _seconds(name: str, value: float) -> float:
    if not 0 <= value <= MAX_SECONDS:
        raise InvalidMessage(f"{name} is {value}; allowed is 0 to {MAX_SECONDS:.0f}")
    return value
