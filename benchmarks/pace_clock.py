"""Accuracy by the clock of real runs: dense FL, one mask and pace, as table and as curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from coppice.table import table

_SECONDS = ("download_seconds", "compute_seconds", "upload_seconds")

#: A run as `benchmarks.pace` writes it.
Run = Mapping[str, Any]


def by_the_clock(runs: Sequence[Run], targets: Sequence[float]) -> str:
    """Rounds, last accuracies and minutes to these accuracies of each way."""
    ways = dict.fromkeys(run["way"] for run in runs)
    typical = {way: [median(round_seconds(run)[1:]) for run in _of(runs, way)] for way in ways}
    rows = []
    for way in ways:
        own = _of(runs, way)
        row = [
            way,
            spread([len(round_seconds(run)) for run in own], "{:.0f}"),
            spread(typical[way], "{:.2f}"),
            f"{mean(typical[way]) / mean(typical['pace']):.1f}" if "pace" in typical else "",
            spread([curve[-1][1] for run in own if (curve := _curve(run))], "{:.3f}"),
        ]
        for target in targets:
            minutes = [_minutes_to(run, target) for run in own]
            reached = [value for value in minutes if value is not None]
            if len(reached) == len(own):
                row.append(spread(reached, "{:.1f}"))
            else:
                row.append(f"{len(reached)} of {len(own)} seeds")
        rows.append(row)
    columns = (f"minutes to {target:g}" for target in targets)
    header = ("way", "rounds", "seconds of a round", "times pace's", "last accuracy", *columns)
    return table(header, rows)


def draw(runs: Sequence[Run], file: Path) -> None:
    """Accuracy over minutes, a line for each way: the mean, and the range of the seeds."""
    # Not at the top: only who draws needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [run for run in runs if run["part"] == "clock"]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for way in dict.fromkeys(run["way"] for run in runs):
        curves = [np.array(curve).T for run in _of(runs, way) if (curve := _curve(run))]
        if not curves:
            continue
        first, last = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
        minutes = np.linspace(first, last, 200)
        values = np.array([np.interp(minutes, *curve) for curve in curves])
        (line,) = axes.plot(minutes, values.mean(axis=0), label=way)
        axes.fill_between(
            minutes, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set_xlabel("minutes")
    axes.set_ylabel("test accuracy of the global model")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)


def round_seconds(run: Run) -> list[float]:
    """What each round took, as the server saw it."""
    return [item["closed_at"] - item["opened_at"] for item in run["rounds"] if item["closed_at"]]


def _curve(run: Run) -> list[tuple[float, float]]:
    """Minutes from the offer of the first tasks to the close of each round that was evaluated, and
    the accuracy of the global model then."""
    closed = {item["round_number"]: item["closed_at"] for item in run["rounds"]}
    found = [
        (item["round_number"], item["metrics"]["accuracy"])
        for item in run["evaluations"]
        if item["where"] == "server"
    ]
    begin = closed[1] - max(total_seconds(item) for item in _first_reports(run))
    return [((closed[number] - begin) / 60, value) for number, value in sorted(found)]


def total_seconds(item: Mapping[str, Any]) -> float:
    """Download, computing and upload, of a report or a forecast."""
    return sum(float(item[part]) for part in _SECONDS)


def _first_reports(run: Run) -> list[Mapping[str, Any]]:
    reports = (item["report"] for item in run["reports"])
    return [item for item in reports if item["round_number"] == 1]


def _minutes_to(run: Run, target: float) -> float | None:
    """Until the target is first reached; None when it is not."""
    return next((minutes for minutes, value in _curve(run) if value >= target), None)


def _of(runs: Sequence[Run], way: str) -> list[Run]:
    return [run for run in runs if run["way"] == way]


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and from where to where the seeds are."""
    if not values:
        return "-"
    shown: Callable[[float], str] = form.format
    return f"{shown(mean(values))} ({shown(min(values))}-{shown(max(values))})"
