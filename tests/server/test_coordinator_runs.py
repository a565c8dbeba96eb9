"""Runs: the queue, stopping, failing, and what clients keep at the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import BlobRef, MethodSpec
from coppice.errors import DiskFull, StoreUnusable, UnknownBlob, UnknownRun
from coppice.methods.fedavg.server import Server as FedAvg
from coppice.model_file import load_model, read_info
from server import coordinator
from server.records import RunState, Wait
from tests.server.host import Host, play, sweep_everything
from tests.server.run_samples import SPEC, A, run_spec


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


class TestQueue:
    def test_runs_come_one_after_the_other(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                first, second = await host.submit(SPEC), await host.submit(replace(SPEC, name="2"))
                for run_id in (first, second):
                    overs = await asyncio.gather(a.work(), b.work())
                    assert {over.run_id for over in overs} == {run_id}
                    assert {over.state for over in overs} == {"finished"}
                runs = host.store.runs()
                assert [run.state for run in runs] == [RunState.FINISHED] * 2
                assert runs[0].ended_at is not None
                assert runs[1].started_at is not None
                assert runs[0].ended_at <= runs[1].started_at

        play(tmp_path, scene)

    def test_server_without_runs_is_idle(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            snapshot = host.coordinator.snapshot()
            assert (snapshot.run_id, snapshot.phase, snapshot.wait) == (None, "idle", Wait())

        play(tmp_path, scene)

    def test_open_run_is_shown_with_what_it_waits_for(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                run_id = await host.submit(SPEC)
                await a.poll()
                poll = a.polling()
                await host.until(lambda: A in host.driver.machine.present)
                snapshot = host.coordinator.snapshot()
                assert (snapshot.run_id, snapshot.round_number) == (run_id, 1)
                assert snapshot.phase == "gathering"
                assert snapshot.wait.text == "1 more client (1 of 2 are here)"
                assert snapshot.clients[A].presence == "idle"
                poll.cancel()

        play(tmp_path, scene)


class TestStop:
    def test_open_run_ends_and_clients_are_told(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                run_id = await host.submit(SPEC)
                task, _ = await asyncio.gather(a.task(), b.task())
                await host.coordinator.stop_run(run_id)
                run = await host.ended(run_id)
                assert (run.state, run.reason) == ("stopped", "stopped by an operator")
                assert not await a.heartbeat(task.task_id)
                over = await a.over()
                assert (over.state, over.reason) == ("stopped", "stopped by an operator")
                # No round has changed the first model: there is nothing to keep.
                assert not over.HasField("keep")
                assert not host.resources.model_path(run_id, SPEC.name).exists()
                assert host.store.ledger(run_id)[0].outcome == "missing"

        play(tmp_path, scene)

    def test_run_that_waits_its_turn_never_begins(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            first, second = await host.submit(SPEC), await host.submit(SPEC)
            await host.event("run_started", run_id=first)
            await host.coordinator.stop_run(second)
            run = await host.ended(second)
            assert (run.state, run.started_at, run.state_blob) == ("stopped", None, None)
            await host.coordinator.stop_run(first)
            await host.ended(first)
            await host.until(lambda: host.coordinator._driver is None)
            assert not host.running.done()

        play(tmp_path, scene)

    def test_run_that_is_just_beginning_does_not_hurt_the_server(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            for _ in range(5):
                run_id = await host.submit(SPEC)
                await host.coordinator.stop_run(run_id)
                assert (await host.ended(run_id)).state == "stopped"
            assert not host.running.done()

        play(tmp_path, scene)

    def test_run_that_has_ended_or_never_was_is_refused(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            run_id = await host.submit(SPEC)
            await host.coordinator.stop_run(run_id)
            await host.ended(run_id)
            await host.until(lambda: host.coordinator._driver is None)
            with pytest.raises(UnknownRun, match=r"has ended already \(stopped\)"):
                await host.coordinator.stop_run(run_id)
            with pytest.raises(UnknownRun, match="there is no run 99"):
                await host.coordinator.stop_run(99)

        play(tmp_path, scene)


class TestFailure:
    @pytest.mark.parametrize("step", ["init", "plan", "aggregate", "models"])
    def test_of_the_method_fails_the_run_and_not_the_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                with monkeypatch.context() as broken:

                    def fail(*_: Any) -> None:
                        raise ZeroDivisionError("oh")

                    broken.setattr(FedAvg, step, fail)
                    run_id = await host.submit(run_spec(rounds=1))
                    a.run_key = b.run_key = host.store.run(run_id).key
                    overs = await asyncio.gather(a.work(), b.work())
                    assert {over.state for over in overs} == {"failed"}
                    assert {over.reason for over in overs} == {"ZeroDivisionError: oh"}
                await host.submit(SPEC)
                overs = await asyncio.gather(a.work(), b.work())
                assert {over.state for over in overs} == {"finished"}

        play(tmp_path, scene)

    def test_that_the_method_explains_is_the_reason(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            run_id = await host.submit(replace(SPEC, method=MethodSpec(name="gone")))
            run = await host.ended(run_id)
            assert (run.state, run.reason[:21]) == ("failed", "method.name is 'gone'")

        play(tmp_path, scene)

    @pytest.mark.parametrize("kind", [DiskFull, StoreUnusable])
    @pytest.mark.parametrize("operation", ["start_run", "open_round", "commit_tasks"])
    def test_of_the_store_stops_the_server_and_leaves_the_run_open(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        operation: str,
        kind: type[StoreUnusable],
    ) -> None:
        async def scene(host: Host) -> None:
            def fail(*_: Any, **__: Any) -> None:
                raise kind("the disk")

            monkeypatch.setattr(host.store, operation, fail)
            async with host.devices("a", "b") as (a, b):
                run_id = await host.submit(SPEC)
                working = [asyncio.create_task(device.work()) for device in (a, b)]
                with pytest.raises(kind, match="the disk"):
                    await host.running
                assert host.store.run(run_id).ended_at is None
                for task in working:
                    task.cancel()
                await asyncio.wait(working)

        play(tmp_path, scene)

    def test_of_the_store_while_watching_stops_the_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coordinator, "_WATCH_SECONDS", 0.01)

        async def scene(host: Host) -> None:
            def fail(*_: Any, **__: Any) -> None:
                raise DiskFull("the disk")

            async with host.devices("a"):
                monkeypatch.setattr(host.store, "append", fail)
                host.resources.presence._seen[A].at -= 20
                with pytest.raises(DiskFull, match="the disk"):
                    await host.running

        play(tmp_path, scene)


class TestKeep:
    def test_client_keeps_the_last_model(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                run_id = await host.submit(SPEC)
                over, other = await asyncio.gather(a.work(), b.work())
                assert over.keep.payload == other.keep.payload
                assert (over.keep.round_number, over.keep.task_id) == (2, 0)
                assert len(await a.fetch(over.keep.payload)) == over.keep.payload.size_bytes
                async with host.devices("c") as (c,):
                    with pytest.raises(UnknownBlob):
                        await c.fetch(over.keep.payload)
                path = host.resources.model_path(run_id, "tiny")
                assert read_info(path).round_number == 2
                load_model(path)

        play(tmp_path, scene)

    def test_that_is_not_fetched_yet_outlives_the_next_run_s_sweep(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(size=1, rounds=1))
                over, _ = await asyncio.gather(a.work(), b.work())
                # a is slow: it fetches when the next run is well under way.
                sweeps = sweep_everything(monkeypatch)
                await host.submit(replace(run_spec(size=1), seed=8))
                await b.task()
                await host.until(lambda: bool(sweeps))
                assert len(await a.fetch(over.keep.payload)) == over.keep.payload.size_bytes

        play(tmp_path, scene)

    def test_is_nothing_when_the_run_never_began(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                monkeypatch.setattr(FedAvg, "init", lambda *_: 1 / 0)
                run_id = await host.submit(SPEC)
                await host.ended(run_id)
                a.run_key = host.store.run(run_id).key
                over = await a.over()
                assert over.state == "failed"
                assert not over.HasField("keep")

        play(tmp_path, scene)

    def test_is_the_best_model_when_there_is_one(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(run_spec(size=1, rounds=3, on_clients=True))
                scores = {1: 0.5, 2: 0.9, 3: 0.7}
                kept: list[BlobRef] = []
                while not (reply := await a.poll()).HasField("over"):
                    if not reply.HasField("task"):
                        continue
                    task = reply.task
                    if task.kind == "evaluate":
                        await host.event("round_committed", round_number=task.round_number)
                        state = host.store.run(1).state_blob
                        assert state is not None
                        kept.append(state)
                        metrics = {"accuracy": scores[task.round_number]}
                        await a.push(task, metrics=metrics)
                    else:
                        await a.push(task)
                assert reply.over.keep.round_number == 2
                run = host.store.run(1)
                assert (run.best_round, run.best_value) == (2, 0.9)
                assert run.best_blob == kept[1]
                path = host.resources.model_path(1, "tiny")
                assert (read_info(path).round_number, read_info(path).metrics) == (
                    2,
                    {"accuracy": 0.9},
                )

        play(tmp_path, scene)
