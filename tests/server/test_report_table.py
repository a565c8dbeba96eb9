"""What rounds took on devices, as a table."""

from __future__ import annotations

import copy
from typing import Any

from server.report_table import report_table
from tests.server.command_samples import REPORT


def record(client: str, **report: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(REPORT)
    return made | {"client_id": client, "report": made["report"] | report}


def cells(text: str) -> list[list[str]]:
    """The words of each line below the head."""
    return [line.split() for line in text.splitlines()[2:]]


def test_devices_are_told_by_name_with_their_medians() -> None:
    rows = cells(
        report_table(
            [
                record("b", steps=1),
                record("a", compute_seconds=99.0, density=0.9),
                record("a", compute_seconds=10.0, density=0.6, peak_bytes=100),
                record("a", compute_seconds=11.0, density=0.4, peak_bytes=300_000),
            ]
        )
    )
    assert [row[:2] for row in rows] == [["a", "3"], ["b", "1"]]
    assert rows[0][2:5] == ["40", "40.0", "%"]
    assert "11.00" in rows[0]
    assert rows[0][10:13] == ["13.00", "300.0", "kB"]
    assert rows[1][2] == "1"


def test_predictions_are_those_that_there_are() -> None:
    forecast = record("a")["report"]["forecast"] | {"compute_seconds": 20.0, "why": "pace"}
    (row,) = cells(
        report_table([record("a", forecast=None), record("a"), record("a", forecast=forecast)])
    )
    assert row[5] == "pace-bound"
    # Medians of 13.0 and 21.5.
    assert row[10] == "17.25"
    (without,) = cells(report_table([record("a", forecast=None)]))
    assert without[4:] == [
        "%", "0.50", "12.00", "0.75", "13.25", "312.0", "MB", "400.0", "MB",
    ]  # fmt: skip
