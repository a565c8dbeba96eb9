"""Who takes part in a round: labels, and more devices than a round needs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet import Fleet
from benchmarks.program import until
from edge_client.status import read_status
from tests.integration.runs import APP, app_file

ROOMS = {"pi-1": "kitchen", "pi-2": "kitchen", "pi-3": "hall"}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path]) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("rooms")) as fleet:
        for name, room in ROOMS.items():
            fleet.join(name, digits[name], "--app", APP, "--label", f"room={room}")
        yield fleet


def test_run_with_labels_takes_only_devices_that_have_them(rooms: Fleet) -> None:
    server = rooms.server
    run_id = server.submit(
        app_file(cohort='{ size = 2, labels = { room = "kitchen" } }', stop="{ rounds = 2 }")
    )
    server.finished(run_id)
    took_part = [(row["round_number"], row["client_id"]) for row in server.ledger(run_id)]
    assert sorted(took_part) == [(1, "pi-1"), (1, "pi-2"), (2, "pi-1"), (2, "pi-2")]


def test_run_with_labels_that_nobody_has_waits_and_can_be_stopped(rooms: Fleet) -> None:
    server = rooms.server
    run_id = server.submit(app_file(cohort='{ size = 1, labels = { room = "attic" } }'))
    until(lambda: server.status()["phase"] == "gathering", "the run waits", server.program)
    assert server.status()["wait"]["text"] == "1 more client with room=attic (0 of 1 are here)"
    server.api.post(f"/runs/{run_id}/stop", {})
    assert server.ended(run_id)["state"] == "stopped"
    assert server.ledger(run_id) == []


def test_round_closes_with_the_first_and_takes_the_task_of_the_last_back(rooms: Fleet) -> None:
    server, slow = rooms.server, rooms.devices["pi-3"]
    run_id = server.submit(
        app_file(
            method='{ name = "fedavg", local_steps = 1 }',
            cohort="{ size = 2, over_selection = 1.5, gather_seconds = 1 }",
            stop="{ rounds = 20 }",
        )
    )
    server.wait_for("round_committed", run_id=run_id, round_number=1)
    slow.gate.close()
    slow.gate.wait_until_reached()
    status = read_status(slow.state / "status.json")
    assert status is not None
    missed = status.round_number
    server.wait_for("round_committed", run_id=run_id, round_number=missed)
    slow.gate.open()

    server.finished(run_id)
    counted: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in server.ledger(run_id):
        counted[row["round_number"]][row["outcome"]] += 1
    # Three, when the third is stored before the round is closed.
    assert {outcomes["counted"] for outcomes in counted.values()} <= {2, 3}
    assert ("pi-3", "counted") not in [
        (row["client_id"], row["outcome"])
        for row in server.ledger(run_id)
        if row["round_number"] == missed
    ]
    too_late = (f"round {missed} is over", "no longer wants this task")
    assert any(text in slow.program.printed for text in too_late)
    assert slow.program.is_running
