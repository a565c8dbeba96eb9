"""What a device finds out about a run's rounds before the first one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import pytest
import torch

from coppice.batch_parts import BatchMemory, part_size
from coppice.device_cost import DeviceCost, LayerCost
from coppice.domain import Metrics, WireSpec
from coppice.layer_fit import LayerFit
from coppice.method import ClientHalf, Local, Task, Update
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights
from edge_client import probe as module
from edge_client import probe_command
from edge_client.cli import main
from edge_client.limits import MemoryBudget
from edge_client.probe import DENSITIES, Probe, Prober
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


class InBatches(Half):
    """Each example of a part takes 10 MB for a while, and each round leaves 1 MB behind.

    To get ready for a round takes 60 MB, whatever its examples.
    """

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.parts: list[int] = []
        self.sizes: list[int] = []
        self.timed_in_parts = 0
        self.forgotten = 0

    def examples_per_step(self, local: Local) -> int:
        return self.examples

    def layer_costs(
        self, local: Local, clock: Callable[[], float]
    ) -> Iterator[tuple[str, LayerFit]]:
        self.timed_in_parts = local.parts
        return super().layer_costs(local, clock)

    def rehearse(self, local: Local, density: float, steps: int) -> Update | None:
        self.parts.append(local.parts)
        self.sizes.append(part_size(min(self.examples, len(local.train)), local.parts))
        return super().rehearse(local, density, steps)

    def forget(self) -> None:
        self.forgotten += 1

    def held_bytes(self) -> int:
        return BASE_BYTES + 1_000_000 * len(self.sizes)

    def peak_bytes(self) -> int:
        ready = 60_000_000 if self.forgotten == 2 * len(self.sizes) - 1 else 0
        return self.held_bytes() + max(ready, 10_000_000 * self.sizes[-1])


def in_batches(
    monkeypatch: pytest.MonkeyPatch, examples_per_step: int, budget_bytes: int
) -> tuple[InBatches, Probe]:
    half = InBatches(examples_per_step)
    monkeypatch.setattr(module, "forget_peak", half.forget)
    monkeypatch.setattr(module, "peak_resident_bytes", half.peak_bytes)
    monkeypatch.setattr(module, "resident_bytes", half.held_bytes)
    device = local(ToyApp(linear), examples(40))
    found = Prober(half, device, WireSpec(), lambda: budget_bytes, half.clock).probe(print)
    assert found is not None
    return half, found


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


def test_whole_batches_are_rehearsed_after_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    half, found = in_batches(monkeypatch, 20, 10**12)
    assert half.sizes[:3] == [3, 5, 10]
    assert half.rehearsed == [DENSITIES[0]] * 3 + list(DENSITIES)
    assert half.parts == [1] * (3 + len(DENSITIES))
    assert half.timed_in_parts == 1
    assert found.batch == BatchMemory(examples=20, parts=1, bytes_per_example=10e6)


def test_a_batch_that_might_not_fit_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    # With 5 examples 152 MB were there at most; 10 might take 202 MB, which is below 9/10 of it.
    half, found = in_batches(monkeypatch, 20, 230_000_000)
    assert half.sizes[:3] == [3, 5, 10]
    assert set(half.sizes[3:]) == {10}
    assert set(half.parts[3:]) == {half.timed_in_parts} == {2}
    assert found.batch == BatchMemory(examples=20, parts=2, bytes_per_example=10e6)
    predicted = found.peak_bytes(found.rehearsals[0].ones)
    assert predicted == pytest.approx(found.rehearsals[0].peak_bytes, rel=0.1)


def test_a_device_with_hardly_any_memory_trains_in_the_most_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half, found = in_batches(monkeypatch, 20, 140_000_000)
    assert set(half.sizes) == {3}
    assert found.batch == BatchMemory(examples=20, parts=8)
    # Getting ready takes more than such a part.
    first = found.rehearsals[0]
    assert first.peak_bytes == first.held_bytes + 60_000_000


@pytest.mark.usefixtures("peaks")
def test_a_method_without_such_rounds_is_not_probed() -> None:
    assert prober(NothingToRehearse(), 10**12).probe(lambda text: None) is None


def test_the_command_measures_real_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "lenet", "--batch-size", "4", "--threads", "1", "--json"]
    assert main(["probe", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["density"] for item in found["rounds"]] == list(DENSITIES)
    assert found["parts"] == found["memory"]["memory"]["batch"]["parts"] == 1
    assert found["memory"]["memory"]["batch"]["examples"] == 4
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
    assert "split" not in printed


def test_the_command_says_that_batches_are_split(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = MemoryBudget(budget_bytes=0, bound_by="nothing", resident_bytes=0)
    monkeypatch.setattr(probe_command, "memory_budget", lambda: nothing)
    arguments = ["--model", "lenet", "--batch-size", "10", "--no-kernels"]
    assert main(["probe", *arguments]) == 0
    assert "batches are split into 4 parts of up to 3 examples" in capsys.readouterr().out
    assert main(["probe", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == 4


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


@pytest.mark.usefixtures("peaks")
def test_one_rehearsal_says_nothing_of_what_more_weights_take() -> None:
    # After the first, hardly more memory is there than it took.
    found = prober(Half(), BASE_BYTES + 1).probe(lambda text: None)
    assert found is not None
    assert len(found.rehearsals) == 1
    assert found.overhead.seconds_per_weight == 0
    assert found.overhead.fixed_seconds == pytest.approx(
        max(1e-4, found.rehearsals[0].rest_seconds)
    )
