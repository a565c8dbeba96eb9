"""What models are worth: evaluations on the server and on clients, the best one, the target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import EvaluationSpec, Metrics, RunSpec, StopSpec, TaskKind
from coppice.errors import AppError, DataError, DiskFull
from coppice.method import Task
from coppice.methods.fedavg.server import Server as FedAvg
from server import coordinator
from tests.server.host import Host, play, sweep_everything
from tests.server.run_samples import SPEC, run_spec

EVALUATED = replace(
    SPEC, cohort=replace(SPEC.cohort, size=1), evaluation=EvaluationSpec(data="/data/test")
)


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


class TestEvaluationOnClients:
    def test_method_that_plans_nothing_more_ends_the_run_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = FedAvg.plan

        def last(self: FedAvg, state: Any, cohort: Any, round_number: int) -> Any:
            tasks: dict[Any, Task] = dict(plan(self, state, cohort, round_number))
            return tasks if round_number <= 2 else {}

        monkeypatch.setattr(FedAvg, "plan", last)

        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(run_spec(size=1, rounds=2, on_clients=True))
                assert (await a.work()).state == "finished"
                done = [(item.round_number, item.where) for item in host.store.evaluations(1)]
                assert done == [(1, "clients")]

        play(tmp_path, scene)

    def test_is_weighted_by_examples_and_judges_without_a_server_s(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1, on_clients=True))
                task, other = await asyncio.gather(a.task(), b.task())
                await asyncio.gather(a.push(task), b.push(other))
                task, other = await asyncio.gather(a.task(), b.task())
                assert task.kind == other.kind == TaskKind.EVALUATE
                await a.push(task, metrics={"accuracy": 0.5}, num_examples=30)
                await b.push(other, metrics={"accuracy": 0.9}, num_examples=10)
                run = await host.ended(1)
                assert run.best_value == pytest.approx(0.6)
                event = await host.event("evaluation_done")
                assert (event.round_number, event.text) == (
                    1,
                    "round 1 evaluated on clients, accuracy 0.6",
                )

        play(tmp_path, scene)


class TestEvaluationOnTheServer:
    def run(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        spec: RunSpec,
        verdicts: list[Metrics | Exception],
        check: Callable[[Host], None],
        others: dict[str, Metrics] | None = None,
    ) -> None:
        """A run of one device, whose rounds are evaluated like this; `others` in every round."""

        async def scene(host: Host) -> None:
            async def evaluate(*arguments: Any) -> dict[str, Metrics]:
                assert arguments[2] == "/data/test"
                assert arguments[3].is_file()
                verdict = verdicts.pop(0)
                if isinstance(verdict, Exception):
                    raise verdict
                return {"global": verdict, **(others or {})}

            monkeypatch.setattr(host.resources.evaluator, "evaluate", evaluate)
            async with host.devices("a") as (a,):
                await host.submit(spec)
                await a.work()
                check(host)

        play(folder, scene)

    def test_remembers_the_best_round(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def check(host: Host) -> None:
            run = host.store.run(1)
            assert (run.best_round, run.best_value) == (2, 0.9)
            rounds = [
                event.round_number for event in host.events if event.kind == "evaluation_done"
            ]
            assert rounds == [1, 2, 3]

        spec = replace(EVALUATED, stop=StopSpec(rounds=3))
        values: list[Metrics | Exception] = [{"accuracy": x} for x in (0.5, 0.9, 0.9)]
        self.run(tmp_path, monkeypatch, spec, values, check)

    def test_of_other_models_is_stored_and_decides_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others: dict[str, Metrics] = {"cut-0.1": {"accuracy": 0.95}, "cut-0.5": {"accuracy": 0.9}}

        def check(host: Host) -> None:
            run = host.store.run(1)
            assert (run.state, run.best_round, run.best_value) == ("finished", 1, 0.5)
            assert run.reason == "all 2 rounds are done"
            found = host.store.evaluations(1)
            assert [dict(item.metrics) for item in found] == [{"accuracy": 0.5}, {"accuracy": 0.4}]
            assert [item.others for item in found] == [others, others]
            texts = [event.text for event in host.events if event.kind == "evaluation_done"]
            assert texts[0] == (
                "round 1 evaluated on server, accuracy 0.5; "
                "cut-0.1, accuracy 0.95; cut-0.5, accuracy 0.9"
            )

        spec = replace(EVALUATED, stop=StopSpec(rounds=2, target=0.8))
        values: list[Metrics | Exception] = [{"accuracy": 0.5}, {"accuracy": 0.4}]
        self.run(tmp_path, monkeypatch, spec, values, check, others)

    def test_without_the_metric_decides_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def check(host: Host) -> None:
            run = host.store.run(1)
            assert (run.state, run.best_round) == ("finished", None)

        self.run(tmp_path, monkeypatch, EVALUATED, [{"loss": 1.0}, {}], check)

    def test_ends_the_run_at_its_target(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def check(host: Host) -> None:
            run = host.store.run(1)
            assert (run.state, run.reason) == ("finished", "the target was reached in round 1")

        spec = replace(EVALUATED, stop=StopSpec(rounds=10_000, target=0.8))
        self.run(tmp_path, monkeypatch, spec, [{"accuracy": 0.8}, *[{}] * 9999], check)

    @pytest.mark.parametrize("kind", [DataError, AppError])
    def test_that_fails_is_logged_and_the_run_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[DataError]
    ) -> None:
        def check(host: Host) -> None:
            texts = [event.text for event in host.events if event.kind == "evaluation_failed"]
            assert texts == ["evaluation of round 1: the set is gone"]
            assert host.store.run(1).state == "finished"
            assert [item.round_number for item in host.store.evaluations(1)] == [2]

        verdicts: list[Metrics | Exception] = [kind("the set is gone"), {"accuracy": 1.0}]
        self.run(tmp_path, monkeypatch, EVALUATED, verdicts, check)

    def test_that_cannot_be_stored_stops_the_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            async def evaluate(*_: Any) -> dict[str, Metrics]:
                return {"global": {"accuracy": 1.0}}

            def fail(*_: Any, **__: Any) -> None:
                raise DiskFull("the disk")

            monkeypatch.setattr(host.resources.evaluator, "evaluate", evaluate)
            monkeypatch.setattr(host.store, "record_evaluation", fail)
            async with host.devices("a") as (a,):
                await host.submit(EVALUATED)
                working = asyncio.create_task(a.work())
                with pytest.raises(DiskFull, match="the disk"):
                    await host.running
                working.cancel()
                await asyncio.wait([working])

        play(tmp_path, scene)

    def test_of_states_that_wait_keeps_them_on_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweeps = sweep_everything(monkeypatch)

        async def scene(host: Host) -> None:
            third = asyncio.Event()
            states: list[Path] = []

            async def evaluate(*arguments: Any) -> dict[str, Metrics]:
                states.append(arguments[3])
                if len(states) == 3:
                    third.set()
                await third.wait()
                assert arguments[3].is_file()
                return {"global": {"accuracy": 0.5}}

            monkeypatch.setattr(host.resources.evaluator, "evaluate", evaluate)
            async with host.devices("a") as (a,):
                a.value = 1.0
                await host.submit(replace(EVALUATED, stop=StopSpec(rounds=3)))
                for number in (1, 2, 3):
                    task = await a.task()
                    await host.until(lambda: number in sweeps)  # noqa: B023
                    await a.push(task)
                assert (await a.over()).state == "finished"
                assert len(set(states)) == len(host.store.evaluations(1)) == 3

        play(tmp_path, scene)

    def test_that_comes_when_the_model_is_saved_is_too_late(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            evaluating, go_on, saving = asyncio.Event(), asyncio.Event(), asyncio.Event()
            compute = host.resources.threads.compute

            async def evaluate(*_: Any) -> dict[str, Metrics]:
                evaluating.set()
                await go_on.wait()
                return {"global": {"accuracy": 1.0}}

            async def held(work: Callable[[], Any]) -> Any:
                if getattr(work, "func", work).__name__ == "export":
                    go_on.set()
                    saving.set()
                    await host.until(lambda: not host.driver._judge._evaluations)
                return await compute(work)

            monkeypatch.setattr(host.resources.evaluator, "evaluate", evaluate)
            monkeypatch.setattr(host.resources.threads, "compute", held)
            async with host.devices("a") as (a,):
                await host.submit(EVALUATED)
                await a.push(await a.task())
                await evaluating.wait()
                await host.coordinator.stop_run(1)
                await saving.wait()
                assert (await host.ended(1)).best_round is None
                assert host.store.evaluations(1) == []

        play(tmp_path, scene)
