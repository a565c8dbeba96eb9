"""Refused updates in a terminal."""

from __future__ import annotations

from typing import Any

from server.refusal_table import refusal_table


def record(number: int) -> dict[str, Any]:
    return {
        "round_number": number,
        "client_id": f"pi-{number}",
        "finding": {"rule": "size", "reason": f"reason {number}", "evidence": {}},
    }


def test_each_has_a_line_with_who_when_and_why() -> None:
    lines = refusal_table([record(3), record(4)]).splitlines()
    assert lines[0].split() == ["round", "refused", "update", "of", "because"]
    assert [line.split(maxsplit=2) for line in lines[2:]] == [
        ["3", "pi-3", "reason 3"],
        ["4", "pi-4", "reason 4"],
    ]


def test_of_many_the_newest_are_shown() -> None:
    text = refusal_table([record(number) for number in range(1, 26)])
    assert text.endswith("and 5 before these")
    assert "reason 6" in text
    assert "pi-5 " not in text
