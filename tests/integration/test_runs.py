"""Runs from start to end, and the commands that people watch them with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet import Fleet
from benchmarks.program import call, until
from coppice.model_file import load_model, read_info
from tests.integration.runs import run_file, saved

ENDLESS = "{ rounds = 1000000 }"


RunCommand = Callable[..., str]


@pytest.fixture
def run_command(fleet: Fleet) -> RunCommand:
    """`fedserver run …`, which must succeed; what it printed."""

    def run(*arguments: object) -> str:
        outcome = call("server", "run", *arguments, "--data", fleet.server.data)
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out

    return run


def test_two_queued_runs_are_done_one_after_the_other_by_the_same_devices(fleet: Fleet) -> None:
    server = fleet.server
    first = server.submit(run_file(name='"first"'))
    second = server.submit(run_file(name='"second"', seed="8"))
    ended = server.finished(first)
    started = server.finished(second)
    assert started["started_at"] >= ended["ended_at"]
    for run_id in (first, second):
        assert {row["client_id"] for row in server.ledger(run_id)} == fleet.devices.keys()


def test_warm_start_begins_with_the_tensors_of_the_file(fleet: Fleet, tmp_path: Path) -> None:
    server = fleet.server
    before = server.model(server.finished(server.submit(run_file())))
    untrained = '{ name = "fedavg", local_steps = 0 }'
    other = server.finished(server.submit(run_file(seed="99", method=untrained)))
    (tmp_path / "start.safetensors").write_bytes(before.read_bytes())
    text = run_file(seed="99", method=untrained, warm_start='"start.safetensors"')
    after = server.finished(server.submit(text, tmp_path))
    assert saved(server.model(after)) == saved(before)
    assert saved(server.model(other)) != saved(before)


def test_target_accuracy_ends_a_run_early(
    fleet: Fleet, digits: dict[str, Path], tmp_path: Path
) -> None:
    server = fleet.server
    (tmp_path / "test.npz").write_bytes(digits["pi-1"].read_bytes())
    text = run_file(
        method='{ name = "fedavg", local_epochs = 1 }',
        evaluation='{ data = "test.npz" }',
        stop="{ rounds = 1000000, target = 0.6 }",
    )
    run = server.finished(server.submit(text, tmp_path))
    assert run["reason"] == f"the target was reached in round {run['best_round']}"
    assert run["best_value"] >= 0.6
    info = read_info(server.model(run))
    assert info.round_number == run["best_round"]
    assert info.metrics["accuracy"] == run["best_value"]


def test_stopped_run_keeps_its_model_and_lets_the_next_one_begin(
    fleet: Fleet, run_command: RunCommand
) -> None:
    server = fleet.server
    running = server.submit(run_file(stop=ENDLESS))
    waiting = server.submit(run_file(stop=ENDLESS))
    last = server.submit(run_file())
    server.wait_for("round_committed", run_id=running, round_number=3)
    assert run_command("stop", waiting) == f"run {waiting} is being stopped\n"
    assert json.loads(run_command("stop", running, "--json")) == {
        "run_id": running,
        "stopping": True,
    }
    for run_id in (running, waiting):
        run = server.ended(run_id)
        assert (run["state"], run["reason"]) == ("stopped", "stopped by an operator")
        assert server.model(run).exists() == (run_id == running)
    server.finished(last)


def test_commands_that_show_runs_print_json_for_scripts(
    fleet: Fleet, tmp_path: Path, run_command: RunCommand
) -> None:
    (tmp_path / "run.toml").write_text(run_file())
    run_id = json.loads(run_command("submit", tmp_path / "run.toml", "--json"))["run_id"]
    followed = json_lines(run_command("log", run_id, "--follow", "--json"))
    assert followed[-1]["kind"] == "run_ended"
    numbers = [event["event_id"] for event in followed]
    assert numbers == sorted(set(numbers))
    assert followed == json_lines(run_command("log", run_id, "--json"))
    runs = json.loads(run_command("list", "--json"))
    assert (runs[-1]["run_id"], runs[-1]["state"]) == (run_id, "finished")
    shown = json.loads(run_command("show", run_id, "--ledger", "--json"))
    assert shown["run"] == runs[-1]
    assert [item["state"] for item in shown["rounds"]] == ["committed"] * 3
    assert [row["outcome"] for row in shown["ledger"]] == ["counted"] * 9
    for arguments in (("list",), ("show", run_id, "--ledger"), ("log", run_id)):
        assert "digits" in run_command(*arguments)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_devices_evaluate_as_often_as_the_run_says(fleet: Fleet) -> None:
    server = fleet.server
    run = server.finished(server.submit(run_file(evaluation="{ on_clients = true, every = 2 }")))
    found = server.api.get(f"/runs/{run['run_id']}/evaluations")
    assert {item["round_number"]: item["where"] for item in found} == {2: "clients", 3: "clients"}
    assert all(0 <= item["metrics"]["accuracy"] <= 1 for item in found)


def test_model_on_the_device_works_after_the_server_is_gone(fleet: Fleet, tmp_path: Path) -> None:
    server, device = fleet.server, fleet.devices["pi-3"]
    run = server.finished(server.submit(run_file()))
    until(lambda: f"round {run['round_number']}" in device.program.printed, "all is done")
    state = ("--state", device.state)
    status = json.loads(call("edge_client", "status", "--json", *state).out)
    assert (status["running"], status["name"]) == (True, "pi-3")

    server.kill()
    left = call("edge_client", "leave", *state)
    assert (left.code, left.err) == (0, "")
    assert device.program.wait() == 0
    assert call("edge_client", "status", *state).code == 7
    copy = tmp_path / "copy.safetensors"
    about = json.loads(call("edge_client", "model", "--json", "--output", copy, *state).out)
    assert (about["run"], about["path"]) == ("digits", str(copy))
    _, info = load_model(copy)
    assert info.workload.name == "digits"
    assert saved(copy) == saved(server.model(run))
