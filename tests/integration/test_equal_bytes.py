"""The same run over gRPC and in one process ends in the same bytes (invariant 1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fleet import Fleet
from tests.integration.runs import app_file, run_file, saved, simulated

RUNS = {
    "mlp": run_file(
        method='{ name = "fedavg", local_epochs = 1, batch_size = 16, momentum = 0.5 }',
    ),
    "lenet": run_file(
        model='{ name = "lenet", norm = "batch" }',
        method='{ name = "fedavg", local_steps = 5, schedule = "cosine", proximal = 0.01 }',
    ),
    "adam": run_file(
        model='{ name = "mlp", norm = "batch" }',
        method='{ name = "fedavg", local_steps = 5, server_optimizer = "adam", '
        "server_learning_rate = 0.02 }",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_wire_and_simulation_end_in_the_same_bytes(
    fleet: Fleet, digits: dict[str, Path], name: str
) -> None:
    assert_same_bytes(fleet, digits, RUNS[name])


def test_dropout_on_the_wire_and_in_simulation_gives_the_same_bytes(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    assert_same_bytes(app_fleet, digits, app_file())


def assert_same_bytes(fleet: Fleet, digits: dict[str, Path], text: str) -> None:
    server = fleet.server
    run = server.finished(server.submit(text))
    assert saved(server.model(run)) == simulated(text, digits)
    assert [row["outcome"] for row in server.ledger(run["run_id"])] == ["counted"] * 9
