"""What the runs of the PruneFL study come to: a table, and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.published import MODELS, dense_round_seconds, round_time
from coppice.budget import RoundTime
from coppice.table import table
from server.printing import size

#: What the link is in the published constants, and a faster one, in MB/s.
LINKS: Sequence[float | None] = (None, 10.0)

#: Weights of conv2 that can be pruned, for ten classes.
SIZES = {"conv1.weight": 800, "conv2.weight": 51200, "fc1.weight": 6422528, "fc2.weight": 20480}

#: Local steps of a task of initial pruning.
_TASK_STEPS = 50 * 10

#: A run as `benchmarks.prunefl` writes it.
Run = Mapping[str, Any]


def report(runs: Sequence[Run], targets: Sequence[float]) -> str:
    """Accuracy, bytes and modelled time of each method, means over the seeds."""
    by_method = {
        method: [run for run in runs if run["method"] == method]
        for method in dict.fromkeys(run["method"] for run in runs)
    }
    tested = [number for number, _ in _tested(runs[0])]
    marks = [number for number in (100, 300, tested[-1]) if number in tested]
    lines = [_accuracies(by_method, marks), "", _bytes(by_method)]
    for link in LINKS:
        shown = "1.44 MB/s, as published" if link is None else f"{link:g} MB/s"
        lines += ["", f"modelled hours to an accuracy, link of {shown}", ""]
        lines.append(_times(by_method, targets, link))
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Size, accuracy over rounds and accuracy over modelled time, a line a run."""
    # Not at the top: only who draws needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    colours = {method: f"C{number}" for number, method in enumerate(_methods(runs))}
    for run in runs:
        style = {"color": colours[run["method"]], "linewidth": 1.2, "alpha": 0.8}
        if any(record["ones"] for record in run["rounds"]):
            axes[0].plot(*_trajectory(run), **style)
        rounds, values = zip(*_tested(run), strict=True)
        axes[1].plot(rounds, values, **style)
        hours = _hours(run, None)
        axes[2].plot([hours[number] for number in rounds], values, **style)
    for method, colour in colours.items():
        axes[1].plot([], [], color=colour, label=method)
    axes[1].legend()
    for axis, title, label in zip(
        axes,
        ("kept weights", "test accuracy", "test accuracy"),
        ("round; initial pruning before 0", "round", "modelled hours, 1.44 MB/s"),
        strict=True,
    ):
        axis.set(title=title, xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    figure.savefig(path)


def _methods(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run["method"] for run in runs))


def _rounds(run: Run) -> list[dict[str, Any]]:
    """The rounds of all clients, initial pruning left out."""
    return [record for record in run["rounds"] if record["round"] > 0]


def _tested(run: Run) -> list[tuple[int, float]]:
    return [
        (record["round"], record["test"]["accuracy"])
        for record in run["rounds"]
        if "test" in record
    ]


def _trajectory(run: Run) -> tuple[list[int], list[int]]:
    """Kept weights after each round; tasks of initial pruning count down to round 0."""
    records = run["rounds"]
    initial = sum(record["round"] == 0 for record in records)
    numbers = [*range(1 - initial, 1), *(record["round"] for record in _rounds(run))]
    return numbers, [sum(record["ones"].values()) for record in records]


# ---- tables --------------------------------------------------------------------------------------


def _accuracies(by_method: Mapping[str, Sequence[Run]], marks: Sequence[int]) -> str:
    rows = []
    for method, runs in by_method.items():
        accuracies = [
            _spread([dict(_tested(run))[mark] for run in runs], lambda value: f"{value:.3f}")
            for mark in marks
        ]
        density = (
            "1"
            if runs[0]["rounds"][-1]["ones"] is None
            else _spread(
                [run["rounds"][-1]["metrics"]["density"] for run in runs],
                lambda value: f"{value:.3f}",
            )
        )
        rows.append((method, len(runs), *accuracies, density))
    return table(
        ("method", "seeds", *(f"accuracy, round {mark}" for mark in marks), "density at the end"),
        rows,
    )


def _bytes(by_method: Mapping[str, Sequence[Run]]) -> str:
    rows = []
    for method, runs in by_method.items():
        means = [
            statistics.mean(record[key] / run["clients"] for run in runs for record in _rounds(run))
            for key in ("bytes_down", "bytes_up")
        ]
        rows.append((method, size(means[0]), size(means[1])))
    return table(("method", "down a round and client", "up a round and client"), rows)


def _times(
    by_method: Mapping[str, Sequence[Run]], targets: Sequence[float], link: float | None
) -> str:
    rows = []
    base = {target: _mean_hours(by_method["fedavg"], target, link) for target in targets}
    for method, runs in by_method.items():
        row: list[object] = [method]
        for target in targets:
            hours = [_hours_to(run, target, link) for run in runs]
            mean, fedavg = _mean_hours(runs, target, link), base[target]
            if mean is None or fedavg is None:
                row += ["not reached", ""]
                continue
            shown = [value for value in hours if value is not None]
            row += [_spread(shown, lambda value: f"{value:.2f}"), f"{fedavg / mean:.1f}x"]
        rows.append((*row, f"{statistics.mean(_initial_hours(run) for run in runs):.2f}"))
    # The published curves charge it the sparse kernels' time at density 1, as the row above.
    ratio = dense_round_seconds("conv2", megabytes_per_second=link) / round_time(
        "conv2", list(SIZES), megabytes_per_second=link
    ).seconds(SIZES)
    dense = [value if value is None else value * ratio for value in base.values()]
    cells = [
        ("-", "") if value is None else (f"{value:.2f}", f"{1 / ratio:.2f}x") for value in dense
    ]
    rows.append(("fedavg, dense kernels", *(cell for pair in cells for cell in pair), "0.00"))
    columns = [text for target in targets for text in (f"to {target:g}", "speed-up")]
    return table(("method", *columns, "initial pruning, not counted"), rows)


def _mean_hours(runs: Sequence[Run], target: float, link: float | None) -> float | None:
    """Over the seeds; None when one of them never gets there."""
    hours = [_hours_to(run, target, link) for run in runs]
    found = [value for value in hours if value is not None]
    return statistics.mean(found) if len(found) == len(hours) else None


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """The mean, and from where to where the seeds are."""
    return f"{shown(statistics.mean(values))} ({shown(min(values))}-{shown(max(values))})"


# ---- modelled time -------------------------------------------------------------------------------


def _hours(run: Run, link: float | None) -> dict[int, float]:
    """Modelled hours from the first round of all clients to the end of each."""
    seconds, hours = 0.0, {}
    ones = _first_ones(run)
    time = round_time("conv2", list(ones), megabytes_per_second=link)
    for record in run["rounds"]:
        if record["round"] > 0:
            # What the round moved and trained are the masks that it began with.
            seconds += time.seconds(ones)
            hours[record["round"]] = seconds / 3600
        ones = record["ones"] or ones
    return hours


def _first_ones(run: Run) -> dict[str, int]:
    """What is kept before the first round: all, but where a lottery ticket is trained."""
    first = run["rounds"][0]
    return dict(first["ones"] if run["method"].startswith("lottery") else SIZES)


def _hours_to(run: Run, target: float, link: float | None) -> float | None:
    hours = _hours(run, link)
    return next((hours[number] for number, value in _tested(run) if value >= target), None)


def _initial_hours(run: Run) -> float:
    """Modelled computing of initial pruning, which the published curves leave out."""
    time = _step_time(list(SIZES))
    seconds, ones = 0.0, _first_ones(run)
    for record in run["rounds"]:
        if record["round"] == 0:
            seconds += _TASK_STEPS * time.seconds(ones)
        ones = record["ones"] or ones
    return seconds / 3600


def _step_time(names: Sequence[str]) -> RoundTime:
    """One local step alone, by the published constants."""
    constants = MODELS["conv2"]
    return RoundTime(
        constant_seconds=constants.intercept_seconds,
        seconds_per_weight=dict(zip(names, constants.seconds_per_weight, strict=True)),
    )
