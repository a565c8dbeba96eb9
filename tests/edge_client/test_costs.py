"""Costs of a run's rounds are measured once, kept on disk and corrected by rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coppice.domain import (
    DataSpec,
    MethodSpec,
    ModelSpec,
    RoundReport,
    TaskKind,
    Workload,
)
from coppice.method import Task
from coppice.sparse import Mask, SparseTensor
from coppice.task_cost import parts_of
from edge_client import probe
from edge_client.costs import Costs, cost_key
from tests.coppice.toys import ToyApp, examples, linear, local
from tests.edge_client.test_probe import Half, InBatches, NothingToRehearse

WORKLOAD = Workload(
    name="toy",
    model=ModelSpec(name="mlp"),
    data=DataSpec(classes=("a", "b"), input_shape=(4,)),
    method=MethodSpec(name="fedavg", settings={"local_steps": 1}),
)


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "forget_peak", lambda: None)
    monkeypatch.setattr(probe, "peak_resident_bytes", lambda: 10**8)


def probed(path: Path, key: str = "run", half: Half | None = None) -> tuple[Costs, Half]:
    costs, half = Costs(path, key, lambda: 10**9), half or Half()
    costs.probe(half, local(ToyApp(linear), examples(4)), WORKLOAD)
    return costs, half


def task(name: str = "fc", first: int = 0, **settings: Any) -> Task:
    """Of 100 kept weights of a layer, every tenth from this one on."""
    bits = torch.arange(1000).reshape(10, 100) % 10 == first
    weights = {name: SparseTensor(Mask.of(bits), torch.zeros(100))}
    return Task(TaskKind.TRAIN, 3, {"parameters": weights}, {"steps": 5, **settings})


REPORT = RoundReport(
    round_number=3,
    steps=5,
    density=0.1,
    download_seconds=2.0,
    compute_seconds=0.5,
    upload_seconds=4.0,
    peak_bytes=2 * 10**8,
    budget_bytes=10**9,
)


def learn(costs: Costs, name: str = "fc", parts: int = 1, **settings: Any) -> None:
    costs.learn(task(name, **settings), REPORT, 0.08, (10**6, 10**6), parts)


def test_a_probe_is_done_once_and_survives_the_process(tmp_path: Path) -> None:
    first, half = probed(tmp_path / "costs.json")
    assert half.rehearsed
    again, other = probed(tmp_path / "costs.json")
    assert not other.rehearsed
    assert again.known == first.known
    assert again.cost() == first.cost()


def test_another_run_is_probed_for_itself(tmp_path: Path) -> None:
    probed(tmp_path / "costs.json")
    _, half = probed(tmp_path / "costs.json", key="other")
    assert half.rehearsed


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"run": 3}', b'{"run": {"time": {}}}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    costs, half = probed(path)
    assert half.rehearsed
    assert Costs(path, "run").known == costs.known


def test_rounds_are_learned_from_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    costs, _ = probed(path)
    before = costs.known
    learn(costs)
    assert costs.known is not None
    assert costs.known.rounds == 1
    assert costs.known != before
    assert Costs(path, "run").known == costs.known


def test_a_round_of_other_layers_is_not_learned_from(tmp_path: Path) -> None:
    costs, _ = probed(tmp_path / "costs.json")
    learn(costs, "other")
    assert costs.known is not None
    assert costs.known.rounds == 0


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    for number in range(12):
        probed(path, key=str(number))
    assert Costs(path, "0").known is None
    assert Costs(path, "11").known is not None
    assert Costs(path, "4").known is not None


def test_without_rounds_to_rehearse_nothing_is_known(tmp_path: Path) -> None:
    costs, _ = probed(tmp_path / "costs.json", half=NothingToRehearse())
    assert costs.known is None
    assert costs.cost() is None
    learn(costs)
    assert costs.known is None


def test_a_round_on_the_masks_of_the_one_before_is_forecast_to_take_less(tmp_path: Path) -> None:
    costs, _ = probed(tmp_path / "costs.json")
    learn(costs)
    same = costs.forecast(task(), 0, "")
    assert same is not None
    assert costs.known is not None
    ones = {"fc": 100}
    assert same.compute_seconds == costs.known.compute_seconds(ones, 5)
    # Of other weights, as many.
    again = costs.forecast(task(first=1), 0, "")
    assert again is not None
    assert again.compute_seconds == costs.known.compute_seconds(ones, 5, is_new=True)
    assert again.compute_seconds > same.compute_seconds


def test_a_forecast_is_of_what_is_known(tmp_path: Path) -> None:
    costs, _ = probed(tmp_path / "costs.json")
    first = costs.forecast(task(), 10**6, "pace")
    assert first is not None
    assert first.download_seconds == first.upload_seconds == 0
    for _ in range(20):
        learn(costs)
    told = costs.forecast(task(), 10**6, "memory")
    assert told is not None
    assert told.download_seconds == pytest.approx(2.0)
    assert told.compute_seconds == pytest.approx(0.5, rel=0.02)
    assert told.upload_seconds == pytest.approx(400 * 4e-6)
    assert told.peak_bytes == 2 * 10**8
    assert told.why == "memory"
    assert costs.forecast(task("other"), 0, "") is None
    reporting = costs.forecast(task(report=True), 0, "")
    assert reporting is not None
    assert reporting.upload_seconds == pytest.approx(4400 * 4e-6)
    sampling = costs.forecast(task(report=True, report_every=10), 0, "")
    assert sampling is not None
    assert sampling.upload_seconds == pytest.approx(800 * 4e-6)


def test_the_peak_of_a_round_that_reports_is_not_taken_for_one_of_training(tmp_path: Path) -> None:
    costs, _ = probed(tmp_path / "costs.json")
    before = costs.forecast(task(), 0, "")
    learn(costs, report=True)
    after = costs.forecast(task(), 0, "")
    assert before is not None
    assert after is not None
    assert before.peak_bytes == after.peak_bytes


def test_a_round_in_parts_is_foretold_and_learned_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = InBatches(examples=4)
    monkeypatch.setattr(probe, "forget_peak", half.forget)
    monkeypatch.setattr(probe, "peak_resident_bytes", half.peak_bytes)
    monkeypatch.setattr(probe, "resident_bytes", half.held_bytes)
    costs, _ = probed(tmp_path / "costs.json", half=half)
    assert costs.known is not None
    per_example = costs.known.memory.batch.bytes_per_example
    assert per_example > 0

    def peak_bytes(parts: int) -> int:
        forecast = costs.forecast(task(), 0, "", parts)
        assert forecast is not None
        return forecast.peak_bytes

    assert peak_bytes(1) - peak_bytes(2) == pytest.approx(2 * per_example, abs=1)
    learn(costs, parts=2)
    assert peak_bytes(2) == REPORT.peak_bytes
    cost = costs.cost()
    assert cost is not None
    small = replace(cost, limit_bytes=peak_bytes(2))
    assert parts_of(task(), small) == 2
    assert parts_of(task("other"), small) == parts_of(task(), None) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"workload": replace(WORKLOAD, model=ModelSpec(name="lenet"))},
        {"workload": replace(WORKLOAD, method=MethodSpec(name="fedavg"))},
        {"num_threads": 2},
        {"kernels": False},
    ],
)
def test_what_a_cost_depends_on_is_in_its_key(change: Mapping[str, Any]) -> None:
    given: dict[str, Any] = {"workload": WORKLOAD, "num_threads": 1, "kernels": True}
    same = {**given, "workload": replace(WORKLOAD, name="again", seed=7)}
    assert cost_key(**given) == cost_key(**same) != cost_key(**{**given, **change})


def test_a_second_probe_needs_the_memory_of_the_first_and_knows_the_link(tmp_path: Path) -> None:
    room = [10**9]
    costs = Costs(tmp_path / "costs.json", "run", lambda: room[0])
    assert not costs.forget()
    half, device = Half(), local(ToyApp(linear), examples(4))
    costs.probe(half, device, WORKLOAD)
    learn(costs)
    known = costs.known
    room[0] -= 1
    assert not costs.forget()
    assert costs.known == known
    room[0] += 1
    assert costs.forget()
    costs.probe(half, device, WORKLOAD)
    assert known is not None
    assert costs.known is not None
    assert costs.known.rounds == 0
    assert costs.known.down_seconds_per_byte == known.down_seconds_per_byte > 0
    assert costs.known.up_seconds_per_byte == known.up_seconds_per_byte > 0
