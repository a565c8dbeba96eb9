"""How much of the server anybody may use: its limits, and what each is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from coppice.errors import RunFileError


def _limit(default: float, least: float, most: float, help_text: str) -> Any:
    """A number within bounds; a whole one where its default is."""
    return field(default=default, metadata={"bounds": (least, most), "help": help_text})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """One field for each flag of `fedserver start`; some hundreds of devices meet none of them."""

    #: Connections to each of the two gRPC ports, before their handshakes too.
    connections: int = _limit(2000, 1, 100_000, "connections to the port of devices at one time")
    #: Connections to the page and its API; half of them for one address.
    dashboard_connections: int = _limit(256, 2, 100_000, "connections to the page at one time")
    #: Calls of all devices that go on, and those of one device.
    calls: int = _limit(4000, 1, 200_000, "calls of all devices at one time")
    client_calls: int = _limit(8, 2, 1000, "calls of one device at one time")
    #: How long an upload, or a reader of a download, may make no progress.
    stall_seconds: float = _limit(
        120.0, 1.0, 86400.0, "after which a transfer that stalls is ended"
    )
    #: Calls of one address to the port where devices are let in; of all, 40 times as many.
    enrolment_calls: int = _limit(60, 1, 10**6, "calls of an address where devices enrol, a minute")
    #: What is left free of the disk.
    disk_reserve_mb: int = _limit(
        256, 0, 10**9, "disk that is left free; below it no update is taken"
    )
    #: What `blobs/` may have.
    run_disk_mb: int = _limit(200_000, 1, 10**9, "disk that the blobs of runs may take")


#: What an argument of one of these flags is called.
METAVARS: Mapping[str, str] = {
    "stall_seconds": "SECONDS",
    "disk_reserve_mb": "MB",
    "run_disk_mb": "MB",
}


def limits_from(told: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all limits, as told or by default; RunFileError for one that cannot be."""
    return {item.name: _value(item, told.get(item.name, item.default)) for item in fields(Limits)}


def _value(item: Any, value: object) -> float:
    least, most = item.metadata["bounds"]
    is_whole = isinstance(item.default, int)
    try:
        number: float = int(str(value)) if is_whole else float(str(value))
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        kind = "a whole number" if is_whole else "a number"
        raise RunFileError(f"{item.name}: is {value!r}; allowed is {kind} from {least} to {most}")
    return number
