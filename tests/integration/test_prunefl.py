"""PruneFL over the real wire: the same bytes as in one process, whatever happens on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fleet import Fleet, Server
from benchmarks.program import call, until
from coppice import tree
from coppice.methods.prunefl.server import State
from coppice.model_file import load_weights, read_info
from coppice.tensors import Weights, dense_tensors
from server.blobs import Blobs
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
        "mask_scope": '"global"',
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


def test_each_devices_cut_is_evaluated_and_left_as_a_file(
    fleet: Fleet, digits: dict[str, Path]
) -> None:
    server = fleet.server
    text = run_file(
        method='{ name = "prunefl", local_steps = 5, batch_size = 8, initial_passes = 0, '
        "reconfigure_every = 2 }",
        evaluation=f'{{ data = "{digits["pi-1"]}" }}',
    )
    run = server.finished(server.submit(text))
    evaluations = server.api.get(f"/runs/{run['run_id']}/evaluations")
    assert [item["where"] for item in evaluations] == ["server"] * 3
    best = next(item for item in evaluations if item["round_number"] == run["best_round"])
    assert best["metrics"]["accuracy"] == run["best_value"]
    assert best["others"]
    models = server.api.get(f"/runs/{run['run_id']}/models")
    assert set(models) == {"global", *best["others"]}
    path = server.model(run)
    whole = load_weights(path)
    for name, measured in best["others"].items():
        file = path.with_name(f"{path.stem}.{name}{path.suffix}")
        info, weights = read_info(file), load_weights(file)
        assert info.metrics == measured
        assert name == f"cut-{info.density:.3g}"
        for key, item in dense_tensors(weights).items():
            full = dense_tensors(whole)[key]
            assert torch.equal(item, full * (item != 0) if key in MLP else full)

    def has_kept_its_cut() -> bool:
        state = fleet.devices["pi-3"].state
        told = call("edge_client", "model", "--json", "--state", state)
        about = json.loads(told.out) if told.code == 0 else {"round_number": 0, "density": 0.0}
        is_best = about["round_number"] == run["best_round"]
        return is_best and f"cut-{about['density']:.3g}" in best["others"]

    until(has_kept_its_cut, "the device keeps its own cut")
