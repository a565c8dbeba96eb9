"""Tables and figure of the study: accuracy against replayed time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.pace_report import round_seconds
from coppice.table import table

#: A simulated run as `benchmarks.pace_study` writes it.
Run = Mapping[str, Any]

_UNION = "global"
_HELD = "held-"


def report(runs: Sequence[Run], real: Mapping[str, Any], targets: Sequence[float]) -> str:
    """All tables.

    Args:
        real: The long run over real processes.
        targets: Accuracies to reach.
    """
    ordinary = [run for run in runs if not run["name"].startswith(_HELD)]
    held = [run for run in runs if run["name"].startswith(_HELD)]
    return "\n".join(
        [
            "Replayed: trained in simulation, seconds from what real devices measured\n",
            _speed(ordinary, targets),
            "\nThe replay against the long real run\n",
            _validation(ordinary, real),
            "\nWhere the two weakest devices alone hold two of the classes, last evaluation\n",
            _classes(held),
        ]
    )


def _speed(runs: Sequence[Run], targets: Sequence[float]) -> str:
    rows = []
    dense = {target: _mean_minutes(_of(runs, "dense"), target) for target in targets}
    for name in _names(runs):
        own = _of(runs, name)
        row = [
            name,
            _spread([run["rounds"][-1]["seconds"] for run in own], lambda value: f"{value:.2f}"),
            _spread([_accuracy(run["rounds"][-1]) for run in own], lambda value: f"{value:.3f}"),
        ]
        for target in targets:
            minutes = _mean_minutes(own, target)
            base = dense[target]
            row.append("-" if minutes is None else f"{minutes:.0f}")
            row.append("-" if minutes is None or base is None else f"{base / minutes:.1f}x")
        rows.append(row)
    columns = [text for target in targets for text in (f"min to {target:g}", "speed-up")]
    return table(("way", "seconds of the last round", "last accuracy", *columns), rows)


def _validation(runs: Sequence[Run], real: Mapping[str, Any]) -> str:
    (replayed,) = [run for run in _of(runs, "pace") if run["seed"] == real["seed"]]
    lasted = round_seconds(real)
    modelled = [item["seconds"] for item in replayed["rounds"][: len(lasted)]]
    rows: list[tuple[object, ...]] = [
        ("seconds of these rounds", f"{sum(lasted):.0f}", f"{sum(modelled):.0f}",
         f"{sum(modelled) / sum(lasted) - 1:+.1%}")
    ]  # fmt: skip
    at = {item["round"]: _accuracy(item) for item in replayed["rounds"] if "accuracy" in item}
    for item in real["evaluations"]:
        number, found = item["round_number"], item["metrics"]["accuracy"]
        if number in at and item["where"] == "server":
            rows.append(
                (f"accuracy, round {number}", f"{found:.3f}", f"{at[number]:.3f}",
                 f"{at[number] - found:+.3f}")
            )  # fmt: skip
    return table(("", "real", "replayed", "difference"), rows)


def _classes(runs: Sequence[Run]) -> str:
    rows = []
    for name in _names(runs):
        own = _of(runs, name)
        last = [run["rounds"][-1]["accuracy"] for run in own]
        for label, pick in (
            ("union" if len(last[0]) > 1 else "the model", lambda item: item[_UNION]),
            ("smallest cut", _smallest),
        ):
            if label == "smallest cut" and len(last[0]) == 1:
                continue
            by_class = [pick(item) for item in last]
            per_class = [f"{mean(values):.2f}" for values in zip(*by_class, strict=True)]
            overall = _spread([mean(values) for values in by_class], lambda value: f"{value:.3f}")
            rows.append((name.removeprefix(_HELD), label, overall, *per_class))
    classes = (f"class {number}" for number in range(10))
    return table(("way", "of", "accuracy", *classes), rows)


def _smallest(by_model: Mapping[str, list[float]]) -> list[float]:
    # Cuts are named by their density.
    cuts = sorted(name for name in by_model if name != _UNION)
    return by_model[cuts[0]]


def draw(runs: Sequence[Run], file: Path) -> None:
    """Accuracy over replayed minutes, a line for each way: the mean, and the range of the seeds."""
    # Not at the top: only who draws needs it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in _names(run for run in runs if not run["name"].startswith(_HELD)):
        own = _of(runs, name)
        minutes = [_minutes(run) for run in own]
        numbers = [item["round"] for item in own[0]["rounds"] if "accuracy" in item]
        x = [mean(at[number] for at in minutes) for number in numbers]
        values = [
            [_accuracy(run["rounds"][number - 1]) for run in own] for number in numbers
        ]  # fmt: skip
        (line,) = axes.plot(x, list(map(mean, values)), label=name)
        axes.fill_between(
            x, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2
        )
    axes.set_xscale("log")
    axes.set_xlabel("minutes (replayed)")
    axes.set_ylabel("test accuracy of the global model")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)


def _minutes(run: Run) -> dict[int, float]:
    seconds = accumulate(item["seconds"] for item in run["rounds"])
    return {number: total / 60 for number, total in enumerate(seconds, start=1)}


def _mean_minutes(runs: Sequence[Run], target: float) -> float | None:
    """Until the target is reached; None when one of the seeds never reaches it."""
    found = [_minutes_to(run, target) for run in runs]
    reached = [minutes for minutes in found if minutes is not None]
    return mean(reached) if len(reached) == len(found) else None


def _minutes_to(run: Run, target: float) -> float | None:
    minutes = _minutes(run)
    for item in run["rounds"]:
        if "accuracy" in item and _accuracy(item) >= target:
            return minutes[item["round"]]
    return None


def _accuracy(item: Mapping[str, Any]) -> float:
    # Of each class there are about equally many test examples.
    by_class: list[float] = item["accuracy"][_UNION]
    return mean(by_class)


def _names(runs: Any) -> list[str]:
    return list(dict.fromkeys(run["name"] for run in runs))


def _of(runs: Sequence[Run], name: str) -> list[Run]:
    return [run for run in runs if run["name"] == name]


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """The mean, and from where to where the seeds are."""
    return f"{shown(mean(values))} ({shown(min(values))}-{shown(max(values))})"
