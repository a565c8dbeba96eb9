"""PruneFL over the real wire: the same bytes as in one process, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coppice import tree
from coppice.methods.prunefl.server import State
from coppice.tensors import Weights
from server.blobs import Blobs
from tests.integration.fleet import Fleet, Server
from tests.integration.runs import app_file, as_bytes, run_file, saved, simulated


def prunefl_file(
    *names: str,
    app: bool = False,
    rounds: int = 9,
    wire: str | None = None,
    evaluation: str | None = None,
    **settings: object,
) -> str:
    """Three tasks of initial pruning, then a reconfiguration every second round.

    `names` are those of the weights.
    """
    costs = ", ".join(f'"{name}" = 1e-5' for name in names)
    written: dict[str, object] = {
        "local_steps": 5,
        "batch_size": 8,
        "initial_client": '"pi-2"',
        "initial_passes": 6,
        "initial_interval": 2,
        "reconfigure_every": 2,
        "round_time": f"{{ constant_seconds = 0.01, seconds_per_weight = {{ {costs} }} }}",
    }
    keys = ", ".join(f"{key} = {value}" for key, value in (written | settings).items())
    return (app_file if app else run_file)(
        method=f'{{ name = "prunefl", {keys} }}',
        stop=f"{{ rounds = {rounds} }}",
        wire=wire,
        evaluation=evaluation,
    )


MLP = ("hidden.0.0.weight", "output.weight")
APP = ("0.weight", "4.weight", "6.weight")

RUNS = {
    "last_step": prunefl_file(*MLP),
    "every_round": prunefl_file(*MLP, importance='"every_round"', regrow='"stale"'),
    "int8": prunefl_file(
        *MLP,
        wire='{ down = "bfloat16", up = "int8", compress = true }',
        evaluation="{ on_clients = true }",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_wire_and_simulation_end_in_the_same_bytes(
    fleet: Fleet, digits: dict[str, Path], name: str
) -> None:
    run, rounds = finished(fleet, RUNS[name])
    assert as_bytes(last_model(fleet.server, run["run_id"])) == simulated(RUNS[name], digits)
    assert rounds[-1]["metrics"]["density"] < rounds[0]["metrics"]["density"] < 1
    rows = fleet.server.ledger(run["run_id"])
    by_round = [row["client_id"] for row in rows if row["kind"] == "train"]
    assert by_round[:3] == ["pi-2"] * 3
    assert len(by_round) == 3 + 6 * 3


def last_model(server: Server, run_id: int) -> Weights:
    """The model of the last round. The file that a run leaves is of its best one."""
    with server.store() as store:
        ref = store.run(run_id).state_blob
    assert ref is not None
    state = tree.load(State, bytes(Blobs(server.data / "blobs").read(ref.digest)))
    return {**state.parameters, **state.buffers}


def finished(fleet: Fleet, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run = fleet.server.finished(fleet.server.submit(text))
    return run, fleet.server.api.get(f"/runs/{run['run_id']}/rounds")


def test_initial_pruning_goes_on_after_server_and_device_were_killed_in_it(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server, device = app_fleet.server, app_fleet.devices["pi-2"]
    text = prunefl_file(*APP, app=True, rounds=5)
    device.gate.close()
    run_id = server.submit(text)
    device.gate.wait_until_reached()
    device.kill()
    device.gate.open()
    device.start(server)
    server.wait_for("round_committed", run_id=run_id, round_number=1)
    server.restart()
    assert_as_simulated(server, run_id, text, digits)


def test_a_device_that_was_killed_gets_values_and_the_masks_again(
    app_fleet: Fleet, digits: dict[str, Path]
) -> None:
    server, device = app_fleet.server, app_fleet.devices["pi-1"]
    text = prunefl_file(*APP, app=True, rounds=7, importance='"every_round"')
    run_id = server.submit(text)
    server.wait_for("round_committed", run_id=run_id, round_number=3)
    device.gate.close()
    device.gate.wait_until_reached()
    device.kill()
    device.gate.open()
    device.start(server)
    assert_as_simulated(server, run_id, text, digits)


def assert_as_simulated(server: Server, run_id: int, text: str, digits: dict[str, Path]) -> None:
    run = server.finished(run_id)
    rows = server.ledger(run_id)
    assert {row["outcome"] for row in rows} == {"counted"}
    assert saved(server.model(run)) == simulated(text, digits)
