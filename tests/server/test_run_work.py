"""The heavy work of a run: states, tasks and sums, from blobs to blobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coppice import tree
from coppice.app import build_model, make_app
from coppice.domain import BlobRef, ClientId, MethodSpec, Metrics, Participant, RunSpec, TaskKind
from coppice.errors import InvalidPayload, UnknownBlob
from coppice.method import Task, Update, server_half
from coppice.methods.fedavg.server import State
from coppice.model_file import load_model, load_weights, read_info
from coppice.sparse import SparseTensor
from coppice.tensors import (
    Payload,
    Tensors,
    Weights,
    buffers_of,
    dense_group,
    dense_tensors,
    parameters_of,
    weight_group,
)
from coppice.wire import payload as wire
from coppice.wire.exchange import Known, known_masks
from server.blobs import Blobs
from server.records import EvaluationRecord, NewTask, UpdateRecord
from server.run_work import RunWork
from tests.server import toy_method
from tests.server.host import filled
from tests.server.run_samples import CAPABILITY, SPEC, A, B, on_masks, with_cuts
from tests.server.store_samples import NOON
from tests.server.toy_method import Toy

COHORT = [Participant(name, CAPABILITY, 10) for name in (B, A)]


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs", durable=False)


@pytest.fixture
def work(blobs: Blobs) -> RunWork:
    made = RunWork(SPEC, blobs)
    made.init_state(None)
    return made


def state_in(blobs: Blobs, ref: BlobRef) -> State:
    return tree.load(State, bytes(blobs.read(ref.digest)))


def initial(spec: RunSpec = SPEC, seed: int = SPEC.seed) -> dict[str, torch.Tensor]:
    return parameters_of(build_model(make_app(spec), seed))


def equal(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def sent_to(blobs: Blobs, task: NewTask, group: str) -> Tensors:
    """A group of dense tensors in a task's payload."""
    return dense_group(wire.decode(blobs.read(task.payload.digest)), group)


def masks_of(blobs: Blobs, task: NewTask) -> Known:
    """What a device knows that has fetched the task's masks."""
    assert task.masks is not None
    return known_masks(wire.decode(blobs.read(task.masks.digest)))


def models(work: RunWork) -> Mapping[str, Weights]:
    """The models in the newest state."""
    return work._half.models(work._state)


def record(task_id: int, task: NewTask, ref: BlobRef, **fields: Any) -> UpdateRecord:
    """The stored answer to a task, ten seconds after its offer."""
    needed: dict[str, Any] = {
        "num_examples": 10,
        "steps": 1,
        "metrics": {"loss": 1.0},
        "masks": task.masks,
        "offered_at": NOON,
        "received_at": NOON + 10,
        "counted": False,
    }
    return UpdateRecord(task_id, task.client_id, ref, **(needed | fields))


def answers(blobs: Blobs, tasks: list[NewTask], **values: float) -> Iterator[UpdateRecord]:
    """Updates whose every number is the client's value."""
    for position, task in enumerate(tasks):
        payload: Payload = {
            group: {
                name: torch.full(item.shape, values[task.client_id]) for name, item in spec.items()
            }
            for group, spec in task.expects.items()
        }
        ref = blobs.put(wire.encode(payload))
        yield record(position + 1, task, ref)


class TestState:
    def test_first_one_depends_on_the_seed_only(self, blobs: Blobs) -> None:
        torch.manual_seed(1)
        first = RunWork(SPEC, blobs).init_state(None)
        torch.manual_seed(2)
        assert RunWork(SPEC, blobs).init_state(None) == first
        assert RunWork(replace(SPEC, seed=8), blobs).init_state(None) != first
        assert equal(state_in(blobs, first).parameters, initial())

    def test_first_one_may_know_the_cohort(self, blobs: Blobs) -> None:
        method = MethodSpec(name="prunefl", settings={"local_steps": 1, "initial_passes": 0})
        work = RunWork(replace(SPEC, method=method), blobs)
        work.init_state(None)
        assert work._state.cohort == SPEC.cohort

    def test_first_one_may_be_a_warm_start(self, blobs: Blobs, tmp_path: Path) -> None:
        from safetensors.torch import save

        warm = {name: tensor + 1 for name, tensor in initial().items()}
        ref = blobs.put(save(warm))
        made = RunWork(replace(SPEC, warm_start=ref), blobs).init_state(None)
        assert equal(state_in(blobs, made).parameters, warm)

    def test_goes_on_from_a_stored_one(self, work: RunWork, blobs: Blobs) -> None:
        other = RunWork(replace(SPEC, seed=8), blobs).init_state(None)
        work.load_state(other)
        (task, _) = work.plan(TaskKind.TRAIN, COHORT, 1)
        assert equal(sent_to(blobs, task, "parameters"), state_in(blobs, other).parameters)

    def test_that_is_gone_or_damaged_is_an_error(self, work: RunWork, blobs: Blobs) -> None:
        with pytest.raises(UnknownBlob):
            work.load_state(BlobRef("0" * 64, 1))
        with pytest.raises(InvalidPayload, match="not a saved State"):
            work.load_state(blobs.put(b"nonsense"))


class TestPlan:
    def test_is_in_the_order_of_the_cohort_with_one_payload(self, work: RunWork) -> None:
        tasks = work.plan(TaskKind.TRAIN, COHORT, 1)
        assert [task.client_id for task in tasks] == [B, A]
        assert {task.kind for task in tasks} == {TaskKind.TRAIN}
        assert tasks[0].payload == tasks[1].payload
        assert tasks[0].expects["delta"].keys() == initial().keys()

    def test_payloads_that_differ_are_stored_each(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Each(Toy):
            def plan(
                self, state: Any, cohort: Sequence[Participant], round_number: int
            ) -> Mapping[ClientId, Task]:
                tasks = super().plan(state, cohort, round_number)
                return {
                    name: replace(task, payload={"own": {"x": torch.full((1,), float(index))}})
                    for index, (name, task) in enumerate(tasks.items())
                }

        monkeypatch.setattr("server.run_work.server_half", lambda _: Each())
        work = RunWork(SPEC, blobs)
        work.init_state(None)
        first, second = work.plan(TaskKind.TRAIN, COHORT, 1)
        assert [float(sent_to(blobs, task, "own")["x"]) for task in (first, second)] == [0.0, 1.0]

    @pytest.mark.parametrize("kind", [TaskKind.EVALUATE, TaskKind.KEEP])
    def test_of_other_kinds_brings_the_model_after_the_round_and_expects_metrics_only(
        self, work: RunWork, blobs: Blobs, kind: TaskKind
    ) -> None:
        tasks = work.plan(TaskKind.TRAIN, COHORT, 1)
        ref, _ = work.aggregate(list(answers(blobs, tasks, a=1.0, b=1.0)), 1)
        for task in work.plan(kind, COHORT, 1):
            assert task.kind is kind
            assert task.expects == {}
            assert equal(sent_to(blobs, task, "parameters"), state_in(blobs, ref).parameters)

    def test_of_other_kinds_goes_by_no_choice(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        toy = Toy()
        monkeypatch.setattr("server.run_work.server_half", lambda _: toy)
        work = RunWork(SPEC, blobs)
        work.init_state(None)
        cohort = [replace(participant, choice={"number": 3}) for participant in COHORT]
        work.plan(TaskKind.TRAIN, cohort, 1)
        work.plan(TaskKind.EVALUATE, cohort, 1)
        # What they chose was for the round that is over.
        assert toy.choices == {
            1: {A: {"number": 3}, B: {"number": 3}},
            2: dict.fromkeys((A, B)),
        }


class TestAggregate:
    def test_moves_the_state_by_the_mean(self, work: RunWork, blobs: Blobs) -> None:
        tasks = work.plan(TaskKind.TRAIN, COHORT, 1)
        ref, folded = work.aggregate(list(answers(blobs, tasks, a=1.0, b=2.0)), 1)
        moved = {name: tensor + 1.5 for name, tensor in initial().items()}
        found = state_in(blobs, ref).parameters
        assert all(torch.allclose(found[name], tensor) for name, tensor in moved.items())
        assert folded.metrics == {"loss": 1.0}

    def test_again_from_the_store_gives_the_same_bytes(self, work: RunWork, blobs: Blobs) -> None:
        before = blobs.put(tree.save(State(initial(), {})))
        folded = list(answers(blobs, work.plan(TaskKind.TRAIN, COHORT, 1), a=0.1, b=0.7))
        first, _ = work.aggregate(folded, 1)
        again = RunWork(SPEC, blobs)
        again.load_state(before)
        assert again.aggregate(folded, 1)[0] == first

    def test_of_nothing_leaves_the_state_alone(self, blobs: Blobs) -> None:
        work = RunWork(SPEC, blobs)
        before = work.init_state(None)
        ref, folded = work.aggregate([], 1)
        assert (ref, folded.metrics) == (before, {})


class TestMasks:
    @pytest.fixture
    def spec(self, blobs: Blobs, tmp_path: Path) -> RunSpec:
        return on_masks(blobs, tmp_path)

    def updates(self, blobs: Blobs, tasks: list[NewTask]) -> Iterator[UpdateRecord]:
        """Updates on the masks of their tasks, each full of its client's number."""
        for number, task in enumerate(tasks, 1):
            known = masks_of(blobs, task)
            payload = filled(task.expects, float(number), known)
            yield record(number, task, blobs.put(wire.encode(payload, known=known)))

    def test_are_stored_once_beside_the_payload(self, blobs: Blobs, spec: RunSpec) -> None:
        work = RunWork(spec, blobs)
        work.init_state(None)
        first, second = work.plan(TaskKind.TRAIN, COHORT, 1)
        assert first.masks is not None
        assert first.masks == second.masks != first.payload
        known = masks_of(blobs, first)
        with pytest.raises(InvalidPayload, match="which is not here"):
            wire.decode(blobs.read(first.payload.digest))
        sent = wire.decode(blobs.read(first.payload.digest), known=known)
        state = models(work)["global"]
        for name, item in weight_group(sent, "parameters").items():
            if isinstance(item, SparseTensor):
                whole = state[name]
                assert isinstance(whole, SparseTensor)
                assert item.mask == whole.mask
                assert torch.equal(item.values, whole.values)
        later = work.plan(TaskKind.TRAIN, COHORT, 2)
        assert {task.masks for task in later} == {first.masks}

    def test_are_known_to_who_folds_after_a_restart(self, blobs: Blobs, spec: RunSpec) -> None:
        work = RunWork(spec, blobs)
        before = work.init_state(None)
        folded = list(self.updates(blobs, work.plan(TaskKind.TRAIN, COHORT, 1)))
        after, _ = work.aggregate(folded, 1)
        again = RunWork(spec, blobs)
        again.load_state(before)
        assert again.aggregate(folded, 1)[0] == after
        moved = dense_tensors(models(again)["global"])
        started = RunWork(spec, blobs)
        started.load_state(before)
        for name, item in models(started)["global"].items():
            if isinstance(item, SparseTensor):
                expected = item.dense() + 1.5 * item.mask.bits
                assert torch.allclose(moved[name], expected)

    def test_that_are_gone_are_an_error(self, blobs: Blobs, spec: RunSpec) -> None:
        work = RunWork(spec, blobs)
        work.init_state(None)
        (task, *_) = work.plan(TaskKind.TRAIN, COHORT, 1)
        (update, *_) = self.updates(blobs, [task])
        with pytest.raises(UnknownBlob):
            work.aggregate([replace(update, masks=BlobRef("0" * 64, 1))], 1)
        with pytest.raises(InvalidPayload, match="which is not here"):
            work.aggregate([replace(update, masks=None)], 1)

    def test_are_saved_with_the_model(self, blobs: Blobs, spec: RunSpec, tmp_path: Path) -> None:
        work = RunWork(spec, blobs)
        path = tmp_path / "model.safetensors"
        work.export(work.init_state(None), {"global": path}.__getitem__, 1, {})
        found = [item for item in load_weights(path).values() if isinstance(item, SparseTensor)]
        assert len(found) == 2


class TestSeconds:
    def test_of_an_update_are_from_the_offer_to_the_stored_answer(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[float | None, float | None]] = []

        class Noting(Toy):
            def aggregate(
                self, state: toy_method.State, updates: Iterable[Update], round_number: int
            ) -> tuple[toy_method.State, Metrics]:
                seen.extend((update.seconds, update.pause_seconds) for update in updates)
                return state, {}

        monkeypatch.setattr("server.run_work.server_half", lambda _: Noting())
        work = RunWork(SPEC, blobs)
        work.init_state(None)
        task, *_ = work.plan(TaskKind.TRAIN, COHORT, 1)
        ref = blobs.put(wire.encode({"part": {"x": torch.zeros(1)}}))

        def fold(*times: tuple[float, float]) -> None:
            tasks = [replace(task, client_id=ClientId(f"{n}")) for n in range(len(times))]
            at = [{"offered_at": NOON + begin, "received_at": NOON + end} for begin, end in times]
            work.aggregate([record(1, t, ref, **a) for t, a in zip(tasks, at, strict=True)], 1)

        # The clock may have been set back meanwhile.
        fold((0, 12.5), (0, 0), (0, -400))
        assert seen == [(12.5, None), (0.0, None), (0.0, None)]
        fold((14, 20), (11, 21))
        assert seen[3:] == [(6.0, 1.5), (10.0, 0.0)]
        # A server that was away for a while has seen nothing of that.
        monkeypatch.setattr("server.run_work.time.time", lambda: NOON + 1)
        work.load_state(work.init_state(None))
        fold((0, 12), (2, 5))
        assert seen[5:] == [(None, None), (3.0, None)]


class TestOpening:
    def test_stores_the_terms_where_there_are_any(
        self, work: RunWork, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert work.opening(1) == (None, None)
        monkeypatch.setattr("server.run_work.server_half", lambda _: Toy())
        toy = RunWork(SPEC, blobs)
        toy.init_state(None)
        ref, reserved_for = toy.opening(3)
        assert ref is not None
        assert reserved_for is None
        terms = wire.decode(blobs.read(ref.digest))
        assert int(dense_group(terms, "offer")["round"]) == 3

    def test_says_for_whom_the_round_is(self, blobs: Blobs) -> None:
        settings = {"local_steps": 1, "initial_client": B}
        work = RunWork(replace(SPEC, method=MethodSpec(name="prunefl", settings=settings)), blobs)
        work.init_state(None)
        assert work.opening(1) == (None, B)


class TestExport:
    def test_saves_a_model_that_says_where_it_is_from(
        self, work: RunWork, blobs: Blobs, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.safetensors"
        ref = RunWork(SPEC, blobs).init_state(None)
        clients = EvaluationRecord(1, 12, "clients", {"accuracy": 0.5}, {})
        work.export(ref, {"global": path}.__getitem__, 12, {"clients": clients})
        info = read_info(path)
        assert (info.workload, info.round_number) == (SPEC.workload, 12)
        assert info.metrics == {"accuracy": 0.5}
        assert info.written_by.startswith("fedserver ")
        model, _ = load_model(path)
        assert equal(parameters_of(model), initial())
        assert buffers_of(model) == {}

    def test_of_a_method_without_a_model_is_nothing(
        self, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("server.run_work.server_half", lambda _: Toy())
        toy = RunWork(SPEC, blobs)
        path = tmp_path / "model.safetensors"
        toy.export(toy.init_state(None), {"global": path}.__getitem__, 1, {})
        assert not path.exists()

    @pytest.mark.parametrize("where", ["server", "clients"])
    def test_saves_each_model_with_what_was_measured_of_it(
        self, blobs: Blobs, tmp_path: Path, where: str
    ) -> None:
        spec, state = with_cuts()
        done = EvaluationRecord(1, 2, where, {"accuracy": 0.9}, {"cut-0.4": {"accuracy": 0.6}})
        RunWork(spec, blobs).export(
            blobs.put(tree.save(state)), tmp_path.joinpath, 2, {where: done}
        )
        infos = {path.name: read_info(path) for path in tmp_path.iterdir() if path.is_file()}
        assert {name: info.density for name, info in infos.items()} == {
            "global": 1.0,
            "cut-0.4": 0.4,
            "cut-0.7": 0.7,
        }
        metrics = {name: info.metrics for name, info in infos.items() if info.metrics}
        # Clients have measured their cuts, not the global model.
        assert metrics == (
            {"global": {"accuracy": 0.9}, "cut-0.4": {"accuracy": 0.6}} if where == "server" else {}
        )
        half = server_half(spec.method)
        for name, weights in half.models(state).items():
            saved = dense_tensors(load_weights(tmp_path / name))
            assert equal(saved, dense_tensors(weights))
