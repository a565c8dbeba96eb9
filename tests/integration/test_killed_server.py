"""The server killed at bad moments: the run goes on where it was, and nothing counts twice."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fleet import Fleet, Server
from benchmarks.program import until
from coppice.domain import ClientId, TaskKind
from server.config import WHERE_FILE
from server.records import RoundState
from tests.integration.runs import app_file, saved, simulated

TRIES = 5

# After a failed attempt devices wait, and longer each time.
pytestmark = pytest.mark.timeout(300)


def assert_finished(server: Server, run_id: int, digits: dict[str, Path], text: str) -> None:
    """To its end, with each update counted once, as if nothing had happened."""
    run = server.finished(run_id)
    rows = server.ledger(run_id)
    assert {row["outcome"] for row in rows} == {"counted"}
    rounds = range(1, run["round_number"] + 1)
    assert Counter((row["round_number"], row["client_id"]) for row in rows) == Counter(
        (round_number, name) for round_number in rounds for name in digits
    )
    assert saved(server.model(run)) == simulated(text, digits)


def test_server_killed_in_mid_round_keeps_the_update_that_it_has(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server, devices = app_fleet.server, app_fleet.devices
    devices["pi-2"].gate.close()
    devices["pi-3"].gate.close()
    text = app_file()
    run_id = server.submit(text)
    devices["pi-2"].gate.wait_until_reached()
    devices["pi-3"].gate.wait_until_reached()
    server.wait_for("update_stored", run_id=run_id, round_number=1, client_id="pi-1")
    server.kill()
    with server.store() as store:
        (before,) = store.updates(run_id, 1)

    server.start()
    devices["pi-2"].gate.open()
    devices["pi-3"].gate.open()
    assert_finished(server, run_id, digits, text)
    with server.store() as store:
        after = {update.client_id: update for update in store.updates(run_id, 1)}
    assert after[ClientId("pi-1")].received_at == before.received_at
    assert after[ClientId("pi-1")].task_id == before.task_id
    of_this_run = devices["pi-1"].program.printed.rsplit("\nrun ", 1)[-1]
    assert of_this_run.count("\nround 1 ") == 1


def test_server_killed_in_mid_aggregation_folds_the_same_updates_again(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server = app_fleet.server
    text = app_file(stop=f"{{ rounds = {TRIES} }}")
    run_id = server.submit(text)
    assert any(
        killed_before_the_commit(server, run_id, number) for number in range(1, TRIES + 1)
    ), f"{TRIES} times the round was committed before the server was dead"
    assert_finished(server, run_id, digits, text)


def killed_before_the_commit(server: Server, run_id: int, round_number: int) -> bool:
    server.wait_for("aggregation_started", run_id=run_id, round_number=round_number)
    server.kill()
    with server.store() as store:
        record = store.round(run_id, round_number)
        tasks = store.tasks(run_id, round_number, TaskKind.TRAIN)
    server.start()
    assert record is not None
    assert all(task.closed for task in tasks)
    return record.state is RoundState.OPEN


def test_server_killed_right_after_a_commit_goes_on_with_the_next_round(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server = app_fleet.server
    text = app_file()
    run_id = server.submit(text)
    server.wait_for("round_committed", run_id=run_id, round_number=2)
    server.kill()
    with server.store() as store:
        assert store.run(run_id).round_number >= 2
    server.start()
    assert_finished(server, run_id, digits, text)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_server_asked_to_stop_in_mid_round_goes_on_when_it_is_started_again(
    app_fleet: Fleet, digits: dict[str, Path], number: int, code: int
) -> None:
    server, device = app_fleet.server, app_fleet.devices["pi-2"]
    device.gate.close()
    text = app_file(stop="{ rounds = 2 }")
    run_id = server.submit(text)
    device.gate.wait_until_reached()
    server.program.send(number)
    assert server.program.wait() == code
    assert not (server.data / WHERE_FILE).exists()
    assert "Traceback" not in server.program.printed
    server.start()
    device.gate.open()
    assert_finished(server, run_id, digits, text)


def test_server_killed_while_gathering_waits_for_the_same_devices_again(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server, late = app_fleet.server, app_fleet.devices["pi-3"]
    assert late.program.terminate() == 0
    text = app_file()
    run_id = server.submit(text)

    def two_are_there() -> bool:
        return bool(server.status()["wait"]["text"] == "1 more client (2 of 3 are here)")

    until(two_are_there, "two devices are ready", server.program)
    server.restart()
    late.start(server)
    assert_finished(server, run_id, digits, text)


def test_device_that_died_while_the_server_was_down_is_not_waited_for(app_fleet: Fleet) -> None:
    server, device = app_fleet.server, app_fleet.devices["pi-3"]
    device.gate.close()
    run_id = server.submit(
        app_file(
            # On a busy machine the others come back only after a while.
            cohort="{ size = 3, lost_after_seconds = 25, gather_seconds = 1 }",
            stop="{ rounds = 1 }",
        )
    )
    device.gate.wait_until_reached()
    server.kill()
    device.kill()
    server.start()
    server.finished(run_id)
    outcomes = {row["client_id"]: row["outcome"] for row in server.ledger(run_id)}
    assert outcomes == {"pi-1": "counted", "pi-2": "counted", "pi-3": "missing"}
    device.gate.open()
    device.start(server)
