"""What the runs of the five devices took, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean, median, mode
from typing import Any

from benchmarks.pace_clock import by_the_clock, round_seconds, total_seconds
from coppice.domain import WHY_TEXT
from coppice.table import table
from server.printing import size

_PARTS = ("killed", "memory", "clock", "disturbed")

#: A run as `benchmarks.pace` writes it.
Run = Mapping[str, Any]
Report = Mapping[str, Any]


def report(runs: Sequence[Run], targets: Sequence[float] = ()) -> str:
    """All tables there is something for; `targets` are accuracies to reach."""
    parts = {part: [run for run in runs if run["part"] == part] for part in _PARTS}
    paced = [run for run in parts["clock"] if run["way"] == "pace"]
    chapters: list[tuple[str, Sequence[Run], Callable[[Sequence[Run]], str]]] = [
        ("A larger model, of which nothing is pruned", parts["killed"], _killed),
        ("The larger model with pace: pi-1's memory is lowered", parts["memory"], _disturbed),
        ("By the clock, in turns: the mean of the seeds and their range", parts["clock"],
         partial(by_the_clock, targets=targets)),
        ("Predicted and measured, over the runs with pace by the clock", paced, _predicted),
        ("Round by round: pi-1's quota is halved, then its memory is lowered",
         parts["disturbed"], _disturbed),
    ]  # fmt: skip
    return "\n".join(
        f"{title}\n\n{make(of_part)}\n{_conditions(of_part)}\n"
        for title, of_part, make in chapters
        if of_part
    )


def _conditions(runs: Sequence[Run]) -> str:
    others = mean(run["others_cores"] for run in runs)
    killed = sum(told["killed"] for run in runs for told in run["told"].values())
    return f"processes killed: {killed}; others on this machine kept {others:.2f} cores busy"


def _killed(runs: Sequence[Run]) -> str:
    rows = [
        (name, told["killed"], size(told["peak_bytes"]), run["gone"].get(name, ""))
        for run in runs
        for name, told in run["told"].items()
    ]
    return table(("device", "killed", "peak of its group", "gone; its last words"), rows)


def _predicted(runs: Sequence[Run]) -> str:
    header = (
        *("device", "rounds", "steps", "prune ratio", "bound", "throttled"),
        *("measured", "predicted", "off", "off a round"),
        *("peak memory", "predicted", "off", "off a round"),
    )
    rows = []
    for name in runs[0]["told"]:
        reports = [item for run in runs for item in reports_of(run, name)]
        rows.append((name, len(reports), *_row(reports, [run["told"][name] for run in runs])))
    return table(header, rows)


def _row(reports: Sequence[Report], told: Sequence[Mapping[str, int]]) -> list[object]:
    seconds = [(total_seconds(item), total_seconds(item["forecast"])) for item in reports]
    peaks = [(item["peak_bytes"], item["forecast"]["peak_bytes"]) for item in reports]
    return [
        f"{mean(item['steps'] for item in reports):.1f}",
        f"{1 - mean(item['density'] for item in reports):.1%}",
        WHY_TEXT[mode(item["forecast"]["why"] for item in reports)],
        f"{_sum(told, 'throttled') / max(1, _sum(told, 'periods')):.0%}",
        f"{mean(item for item, _ in seconds):.2f} s",
        f"{mean(item for _, item in seconds):.2f} s",
        *_errors(seconds),
        size(mean(item for item, _ in peaks)),
        size(mean(item for _, item in peaks)),
        *_errors(peaks),
    ]


def _errors(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Of the sum over all rounds, and of a round in the median."""
    measured, predicted = (sum(values) for values in zip(*pairs, strict=True))
    single = median(abs(after / before - 1) for before, after in pairs)
    return f"{predicted / measured - 1:+.1%}", f"{single:.1%}"


def _disturbed(runs: Sequence[Run]) -> str:
    names = list(runs[0]["told"])
    header = ("round", "seconds", *(f"{name}: steps, kept, seconds, MB of" for name in names))
    rows = []
    for run in runs:
        by_round = {name: {r["round_number"]: r for r in reports_of(run, name)} for name in names}
        for number, seconds in enumerate(round_seconds(run), start=1):
            cells = [_cell(by_round[name].get(number)) for name in names]
            rows.append((number, f"{seconds:.1f}", *cells))
    return table(header, rows)


def _cell(item: Report | None) -> str:
    if item is None:
        return "-"
    memory = f"{item['peak_bytes'] / 1e6:.0f} of {item['budget_bytes'] / 1e6:.0f}"
    return f"{item['steps']}, {item['density']:.3f}, {total_seconds(item):.1f}, {memory}"


def reports_of(run: Run, name: str) -> list[Report]:
    """What a device told of its rounds, oldest first."""
    return [item["report"] for item in run["reports"] if item["client_id"] == name]


def _sum(told: Sequence[Mapping[str, int]], name: str) -> int:
    return sum(item[name] for item in told)
