"""What a device finds out about a run's rounds before the first one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import pytest
import torch

from coppice.device_cost import DeviceCost, LayerCost
from coppice.domain import Metrics, WireSpec
from coppice.layer_fit import LayerFit
from coppice.method import ClientHalf, Local, Task, Update
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights
from edge_client import probe as module
from edge_client.cli import main
from edge_client.probe import DENSITIES, Prober
from tests.coppice.toys import ToyApp, examples, linear, local

SIZE = 1000
BASE_BYTES = 100_000_000


class Half(ClientHalf):
    """Steps that take what a layer of 2 ms and 1 us a weight takes, 1.5 times, and 10 ms more."""

    def __init__(self, kernels: bool = True) -> None:
        self.rehearsed: list[float] = []
        self.now = 0.0
        self._kernels = kernels

    def clock(self) -> float:
        return self.now

    def layer_costs(
        self, local: Local, clock: Callable[[], float]
    ) -> Iterator[tuple[str, LayerFit]]:
        cost = LayerCost.line(0.002, 1e-6, dense=1.0, size=SIZE)
        fit = LayerFit(cost=cost, is_line=True, r_squared=1.0, max_relative_residual=0.0)
        return iter([("fc", fit)] if self._kernels else [])

    def rehearse(self, local: Local, density: float, steps: int) -> Update | None:
        self.rehearsed.append(density)
        kept = round(density * SIZE)
        for _ in range(steps):
            self.now += 0.01 + 1.5 * (0.002 + 1e-6 * kept)
            local.meter.step_done()
        bits = torch.zeros(SIZE, dtype=torch.bool)
        bits[:kept] = True
        item = SparseTensor(Mask.of(bits.reshape(10, 100)), torch.zeros(kept))
        return Update(local.client_id, {"delta": {"fc": item}}, num_examples=1, steps=steps)

    def run(self, task: Task, local: Local) -> Update:
        raise NotImplementedError

    def evaluate(self, task: Task, local: Local) -> Metrics:
        raise NotImplementedError

    def model(self, task: Task, local: Local) -> Weights | None:
        raise NotImplementedError


class NothingToRehearse(Half):
    def rehearse(self, local: Local, density: float, steps: int) -> Update | None:
        return None


def prober(half: Half, budget_bytes: int) -> Prober:
    device = local(ToyApp(linear), examples(4))
    return Prober(half, device, WireSpec(), lambda: budget_bytes, half.clock)


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rehearsal needs 5 MB more than the one before."""
    found = itertools.count(BASE_BYTES, 5_000_000)
    monkeypatch.setattr(module, "forget_peak", lambda: None)
    monkeypatch.setattr(module, "peak_resident_bytes", lambda: next(found))


@pytest.mark.usefixtures("peaks")
def test_the_rest_of_a_step_and_how_much_longer_layers_take_in_it_are_found() -> None:
    found = prober(Half(), 10**12).probe(lambda text: None)
    assert found is not None
    assert found.time.step_seconds == pytest.approx(0.01)
    assert found.time.layers["fc"].dense_seconds == pytest.approx(1.5)
    assert found.max_relative_residual < 1e-6
    assert found.seconds_per_step({"fc": 300}) == pytest.approx(0.01 + 1.5 * 0.0023)


@pytest.mark.usefixtures("peaks")
def test_a_step_without_kernels_takes_the_same_at_all_densities() -> None:
    found = prober(Half(kernels=False), 10**12).probe(lambda text: None)
    assert found is not None
    assert found.layers == {}
    first, last = {"fc": 10}, {"fc": SIZE}
    assert found.seconds_per_step(first) == found.seconds_per_step(last) > 0.01


@pytest.mark.usefixtures("peaks")
def test_rehearsals_end_before_the_memory_does() -> None:
    half = Half()
    # After the second, 110 MB are predicted at least.
    found = prober(half, 119_000_000).probe(lambda text: None)
    assert found is not None
    assert 0 < len(half.rehearsed) < len(DENSITIES)
    assert [item.density for item in found.rehearsals] == half.rehearsed
    assert half.rehearsed == list(DENSITIES[: len(half.rehearsed)])
    more = Half()
    prober(more, 10**12).probe(lambda text: None)
    assert more.rehearsed == list(DENSITIES)


@pytest.mark.usefixtures("peaks")
def test_a_method_without_such_rounds_is_not_probed() -> None:
    assert prober(NothingToRehearse(), 10**12).probe(lambda text: None) is None


def test_the_command_measures_real_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "lenet", "--batch-size", "4", "--threads", "1", "--json"]
    assert main(["probe", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["density"] for item in found["rounds"]] == list(DENSITIES)
    assert found["layers"]["conv1.weight"]["kept"][-1] > 0
    for item in found["rounds"]:
        assert item["seconds_per_step"] > 0
        # Beside torch, a model of this size is nothing.
        assert item["peak_bytes"] <= item["predicted_peak_bytes"] < 1.2 * item["peak_bytes"]


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--model", "lenet", "--batch-size", "2", "--no-kernels"]) == 0
    printed = capsys.readouterr().out
    assert "ms a step" in printed
    assert "there are no kernels" in printed


@pytest.mark.parametrize(
    ("option", "value"),
    [("--input-shape", "28"), ("--input-shape", "0x28x28"), ("--input-shape", "1x28x"),
     ("--batch-size", "0"), ("--classes", "many"), ("--model", "gpt")],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_a_line(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["probe", "--model", "lenet", option, value])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    assert code != 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("peaks")
def test_rehearsals_know_what_the_layers_cost() -> None:
    known: list[DeviceCost | None] = []

    class Watching(Half):
        def rehearse(self, local: Local, density: float, steps: int) -> Update | None:
            known.append(local.cost)
            return super().rehearse(local, density, steps)

    prober(Watching(), 10**12).probe(lambda text: None)
    assert len(known) == len(DENSITIES)
    for cost in known:
        assert cost is not None
        assert cost.time.layers["fc"].dense_seconds == 1.0
