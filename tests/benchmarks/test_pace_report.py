"""The tables of what five devices took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pace_clock import draw, round_seconds
from benchmarks.pace_report import report


def a_report(number: int, measured: float, predicted: float) -> dict[str, Any]:
    times = {"download_seconds": 1.0, "compute_seconds": measured - 2, "upload_seconds": 1.0}
    expected = {"download_seconds": 1.0, "compute_seconds": predicted - 2, "upload_seconds": 1.0}
    memory = {"peak_bytes": 300_000_000, "budget_bytes": 400_000_000}
    forecast = {**expected, "peak_bytes": 330_000_000, "why": "memory"}
    own = {"round_number": number, "steps": 2, "density": 0.25}
    return {"client_id": "pi-0", "report": {**own, **times, **memory, "forecast": forecast}}


def a_minute_apart(seconds: tuple[float, ...]) -> list[dict[str, Any]]:
    return [
        {
            "round_number": number + 1,
            "opened_at": 10.0 + 60 * number,
            "closed_at": 10.0 + 60 * number + lasted,
        }
        for number, lasted in enumerate(seconds)
    ]


def a_run(part: str, way: str, *seconds: float) -> dict[str, Any]:
    return {
        "part": part,
        "way": way,
        "others_cores": 0.25,
        "seed": 1,
        "rounds": a_minute_apart(seconds),
        "evaluations": [
            {"round_number": number, "where": where, "metrics": {"accuracy": value / number}}
            for number in range(len(seconds), 0, -1)
            for where, value in (("server", 0.6), ("clients", 0.9))
        ],
        "reports": [a_report(1, 10.0, 11.0), a_report(2, 20.0, 10.0)],
        "told": {
            "pi-0": {"killed": 1, "peak_bytes": 350_000_000, "throttled": 1, "periods": 4},
        },
    }


def row(text: str, first: str) -> list[str]:
    return next(line for line in text.splitlines() if line.lstrip().startswith(first)).split()


def test_rounds_are_compared_in_turns_without_the_first_of_each() -> None:
    runs = [
        a_run("clock", "dense", 59.0, 20.0),
        a_run("clock", "pace", 59.0, 2.0),
        a_run("clock", "dense", 59.0, 30.0),
        a_run("clock", "pace", 59.0, 3.0),
    ]
    text = report(runs)
    assert row(text, "dense")[:6] == ["dense", "2", "(2-2)", "25.00", "(20.00-30.00)", "10.0"]
    assert row(text, "pace")[3:6] == ["2.50", "(2.00-3.00)", "1.0"]
    assert "processes killed: 4; others on this machine kept 0.25 cores busy" in text


def test_accuracy_is_that_of_the_server_by_minutes_from_the_first_round() -> None:
    # In the first round the tasks were offered ten seconds before they were answered.
    early, late = a_run("clock", "pace", 40.0, 40.0), a_run("clock", "pace", 50.0, 58.0)
    late["evaluations"][-2]["metrics"]["accuracy"] = 0.25
    cells = row(report([early, late], [0.2, 0.3, 0.55]), "pace")
    # The last accuracies, half of the first ones; then minutes to these targets.
    assert cells[6:8] == ["0.300", "(0.300-0.300)"]
    assert cells[8:10] == ["0.2", "(0.2-0.2)"]
    assert cells[10:12] == ["0.7", "(0.2-1.3)"]
    assert cells[12:] == ["1", "of", "2", "seeds"]


def test_curves_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "curves.svg"
    draw([a_run("clock", way, 30.0, 30.0) for way in ("dense", "pace")], file)
    assert "</svg>" in file.read_text()


def test_predictions_are_held_against_sums_and_single_rounds() -> None:
    text = report([a_run("clock", "pace", 10.0, 20.0)])
    cells = row(text, "pi-0")
    assert "75.0%" in cells
    assert "25%" in cells
    # 21 seconds of 30; 10 % and 50 % off; 330 MB of 300 each time.
    assert [cell for cell in cells if cell.endswith("%")][2:] == [
        "-30.0%", "30.0%", "+10.0%", "10.0%",
    ]  # fmt: skip


def test_a_disturbed_run_is_shown_round_by_round() -> None:
    text = report([a_run("disturbed", "pace", 10.0, 20.0, 5.0)])
    assert row(text, "1 ")[:2] == ["1", "10.0"]
    assert "2, 0.250, 20.0, 300 of 400" in text
    assert row(text, "3 ")[-1] == "-"


def test_who_was_killed_or_gave_up_is_told() -> None:
    run = a_run("killed", "dense", 1.0) | {"gone": {"pi-0": "too large"}}
    assert row(report([run]), "pi-0") == ["pi-0", "1", "350.0", "MB", "too", "large"]


def test_a_round_that_is_not_over_has_no_time() -> None:
    run = a_run("clock", "pace", 10.0)
    run["rounds"].append({"opened_at": 1.0, "closed_at": None})
    assert round_seconds(run) == [10.0]
