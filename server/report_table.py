"""What rounds took on devices, a line for each device, for people in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from coppice.domain import WHY_TEXT
from coppice.table import table
from server.printing import size

_PARTS = ("download_seconds", "compute_seconds", "upload_seconds")

#: A `RoundReport` as the API tells it.
Report = Mapping[str, Any]


def report_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Medians of all reports of each device, by name; predictions where there are any.

    Args:
        records: Of one run, as the API tells them, oldest first.
    """
    by_client: dict[str, list[Report]] = {}
    for record in records:
        by_client.setdefault(record["client_id"], []).append(record["report"])
    header = (
        *("client", "rounds", "steps", "prune ratio", "bound"),
        *("down", "compute", "up", "seconds", "predicted"),
        *("peak memory", "predicted", "allowed"),
    )
    return table(header, [(name, *_cells(by_client[name])) for name in sorted(by_client)])


def _cells(reports: Sequence[Report]) -> list[object]:
    forecasts = [item["forecast"] for item in reports if item["forecast"] is not None]
    pruned = 100 * (1 - median(item["density"] for item in reports))
    return [
        len(reports),
        round(median(item["steps"] for item in reports)),
        f"{pruned:.1f} %",
        # Of the last round: it may change in the course of a run.
        WHY_TEXT[forecasts[-1]["why"]] if forecasts else "",
        *(f"{median(item[part] for item in reports):.2f}" for part in _PARTS),
        f"{median(map(_seconds, reports)):.2f}",
        f"{median(map(_seconds, forecasts)):.2f}" if forecasts else "",
        size(median(item["peak_bytes"] for item in reports)),
        size(median(item["peak_bytes"] for item in forecasts)) if forecasts else "",
        size(median(item["budget_bytes"] for item in reports)),
    ]


def _seconds(item: Report) -> float:
    return sum(float(item[part]) for part in _PARTS)
