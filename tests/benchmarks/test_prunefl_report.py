"""The report of the PruneFL study says what the runs hold, and its times are the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.prunefl_report import SIZES, draw, report
from benchmarks.published import dense_round_seconds, round_time

ROUNDS = 300
HALF = {name: size // 2 for name, size in SIZES.items()}
TIME = round_time("conv2", list(SIZES))


def study_run(method: str, seed: int) -> dict[str, Any]:
    """A run whose accuracy rises by 0.1 every 100 rounds; PruneFL's first halves the model."""
    pruned = method == "prunefl"
    rounds: list[dict[str, Any]] = []
    if pruned:
        rounds.append(record(0, HALF, megabytes=1))
    for number in range(1, ROUNDS + 1):
        rounds.append(record(number, HALF if pruned else None, megabytes=13 if pruned else 26))
        if number % 100 == 0:
            rounds[-1]["test"] = {"accuracy": 0.5 + number / 1000 + seed / 100}
    return {"method": method, "seed": seed, "clients": 10, "rounds": rounds}


def record(number: int, ones: dict[str, int] | None, megabytes: int) -> dict[str, Any]:
    return {
        "round": number,
        "ones": ones,
        "bytes_down": megabytes * 10**7,
        "bytes_up": megabytes * 10**7,
        "metrics": {} if ones is None else {"density": 0.5},
    }


RUNS = [study_run(method, seed) for method in ("fedavg", "prunefl") for seed in (1, 2)]


def rows(text: str, method: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(method)]


def test_accuracies_and_bytes_are_means_over_the_seeds() -> None:
    accuracy, down = rows(report(RUNS, [0.7]), "prunefl")[:2]
    assert "0.615 (0.610-0.620)" in accuracy
    assert "0.815 (0.810-0.820)" in accuracy
    assert "0.500 (0.500-0.500)" in accuracy
    # Of initial pruning neither bytes nor rounds count.
    assert down.split() == ["prunefl", "13.0", "MB", "13.0", "MB"]


def test_modelled_time_is_that_of_the_masks_in_force() -> None:
    dense = 200 * TIME.seconds(SIZES) / 3600
    sparse = 200 * TIME.seconds(HALF) / 3600
    text = report(RUNS, [0.7])
    assert f"{dense:.2f} ({dense:.2f}-{dense:.2f})" in rows(text, "fedavg")[2]
    (published, faster) = rows(text, "prunefl")[2:]
    assert f"{sparse:.2f} ({sparse:.2f}-{sparse:.2f})" in published
    assert f"{dense / sparse:.1f}x" in published
    assert f"{sparse:.2f} (" not in faster


def test_conventional_fl_is_shown_with_dense_kernels_too() -> None:
    lines = rows(report(RUNS, [0.7]), "fedavg, dense kernels")
    dense = 200 * dense_round_seconds("conv2") / 3600
    assert f"{dense:.2f}" in lines[0]
    assert len(lines) == 2


def test_an_accuracy_that_not_all_seeds_reach_is_said_so() -> None:
    text = report(RUNS, [0.815])
    assert all("not reached" in line for line in rows(text, "fedavg ")[2:])


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_curves_are_drawn(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"curves.{kind}"
    draw(RUNS, path)
    assert path.stat().st_size > 10_000
