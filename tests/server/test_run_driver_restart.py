"""A server that is killed goes on in the same round with what it has; clients come back to it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from coppice.wire import coordination_pb2 as pb
from server import coordinator, run_driver
from server.round_events import Phase
from server.run_work import RunWork
from tests.server.host import Device, Host, play
from tests.server.run_samples import A, B, run_spec


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


class Returning:
    """Two devices that outlive their server."""

    def __init__(self) -> None:
        self.tasks: dict[str, pb.TaskOffer] = {}

    async def come_back(self, host: Host) -> tuple[Device, Device]:
        """The same devices on the new server, which still knows them."""
        await host.until(lambda: {A, B} <= host.coordinator._clients.keys())
        devices = Device(host, "a"), Device(host, "b")
        for device in devices:
            device.run_key = host.store.run(1).key
        return devices

    async def begin(self, host: Host, **spec: Any) -> tuple[Device, Device]:
        a, b = Device(host, "a"), Device(host, "b")
        await a.join()
        await b.join()
        await host.submit(run_spec(quorum=2, **spec))
        self.tasks["a"], self.tasks["b"] = await asyncio.gather(a.task(), b.task())
        return a, b


class Gate:
    """Holds a thread of the server until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self.go_on.wait(30)


def test_round_goes_on_with_the_update_that_is_stored(tmp_path: Path) -> None:
    devices = Returning()

    async def before(host: Host) -> None:
        a, b = await devices.begin(host)
        await a.push(devices.tasks["a"])
        await a.close()
        await b.close()

    async def after(host: Host) -> None:
        a, b = await devices.come_back(host)
        await host.event("run_resumed")
        assert await b.heartbeat(devices.tasks["b"].task_id)
        assert (await b.poll()).task.task_id == devices.tasks["b"].task_id
        await b.push(devices.tasks["b"])
        await asyncio.gather(a.work(), b.work())
        assert (await host.ended(1)).state == "finished"
        assert [row.outcome for row in host.store.ledger(1)] == ["counted"] * 4
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_update_that_was_stored_before_gets_its_receipt_again(tmp_path: Path) -> None:
    devices = Returning()
    receipts = []

    async def before(host: Host) -> None:
        a, b = await devices.begin(host)
        receipts.append(await a.push(devices.tasks["a"]))
        await a.close()
        await b.close()

    async def after(host: Host) -> None:
        a, b = await devices.come_back(host)
        receipts.append(await a.push(devices.tasks["a"]))
        assert receipts[0] == receipts[1]
        await b.push(devices.tasks["b"])
        await host.event("round_committed", round_number=1)
        assert host.store.rounds(1)[0].num_updates == 2
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_client_that_comes_back_while_the_run_is_loaded_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Returning()

    async def before(host: Host) -> None:
        a, b = await devices.begin(host)
        await a.push(devices.tasks["a"])
        await a.close()
        await b.close()

    async def after(host: Host) -> None:
        gate, load = Gate(), RunWork.load_state

        def held(self: RunWork, *arguments: Any) -> None:
            gate()
            load(self, *arguments)

        monkeypatch.setattr(RunWork, "load_state", held)
        await gate.reached.wait()
        a, b = await devices.come_back(host)
        # Nothing is known of the task yet, so it must not be taken away …
        assert await b.heartbeat(devices.tasks["b"].task_id)
        poll = b.polling()
        await host.holds("b")
        gate.go_on.set()
        # … and it is offered as soon as it is known.
        assert (await poll).task.task_id == devices.tasks["b"].task_id
        await host.until(lambda: host.driver.machine.known == {B})
        assert host.driver.machine.present == set()
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_deadlines_follow_what_was_measured_and_survive_a_restart(tmp_path: Path) -> None:
    devices = Returning()

    async def seconds_of(host: Host, number: int) -> float:
        event = await host.event("tasks_committed", round_number=number)
        return float(event.text.split()[-2])

    async def one_round(a: Device, b: Device) -> None:
        tasks = await asyncio.gather(a.task(), b.task())
        await asyncio.gather(a.push(tasks[0]), b.push(tasks[1]))

    async def before(host: Host) -> None:
        a, b = await devices.begin(host, rounds=4, deadline_shortest_seconds=200.0)
        await asyncio.gather(a.push(devices.tasks["a"]), b.push(devices.tasks["b"]))
        # Nothing was known of anybody in the first round.
        assert await seconds_of(host, 1) == 600
        await one_round(a, b)
        assert await seconds_of(host, 2) == 200
        await asyncio.gather(a.task(), b.task())
        await a.close()
        await b.close()

    async def after(host: Host) -> None:
        await host.event("run_resumed")
        await host.until(lambda: host.driver.machine.phase is Phase.REPORTING)
        (task, _) = host.store.tasks(1, 3)
        until = host.coordinator.snapshot().wait.until
        assert until is not None
        assert until == pytest.approx(task.deadline_at, abs=5)
        a, b = await devices.come_back(host)
        await one_round(a, b)
        await asyncio.gather(a.task(), b.task())
        # What the store knows of the rounds before is enough.
        assert await seconds_of(host, 4) == 200
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_client_that_does_not_come_back_is_not_waited_for_until_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "_WATCH_SECONDS", 0.01)
    devices = Returning()

    async def before(host: Host) -> None:
        a, b = await devices.begin(host, rounds=1)
        await a.push(devices.tasks["a"])
        await a.close()
        await b.close()

    async def after(host: Host) -> None:
        await host.event("run_resumed")
        await host.until(lambda: B in host.resources.presence._seen)
        assert host.coordinator.snapshot().clients[B].presence == "working"
        host.resources.presence._seen[B].at -= 60
        event = await host.event("round_failed")
        assert event.text == "round 1 failed: 1 updates came, 2 are needed"

    play(tmp_path, before, after)


def test_killed_while_it_folds_folds_again_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Returning()

    async def before(host: Host) -> None:
        gate, aggregate = Gate(), RunWork.aggregate

        def held(self: RunWork, *arguments: Any) -> Any:
            gate()
            return aggregate(self, *arguments)

        with monkeypatch.context() as holding:
            holding.setattr(RunWork, "aggregate", held)
            a, b = await devices.begin(host)
            await asyncio.gather(a.push(devices.tasks["a"]), b.push(devices.tasks["b"]))
            await gate.reached.wait()
            host.running.cancel()
            await asyncio.wait([host.running])
            gate.go_on.set()
        await a.close()
        await b.close()
        assert host.store.rounds(1)[0].state == "open"

    async def after(host: Host) -> None:
        a, b = await devices.come_back(host)
        await asyncio.gather(a.work(), b.work())
        assert [row.outcome for row in host.store.ledger(1)] == ["counted"] * 4
        assert [item.num_updates for item in host.store.rounds(1)] == [2, 2]
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_killed_between_rounds_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Returning()

    async def before(host: Host) -> None:
        with monkeypatch.context() as dying:

            async def die(*_: Any) -> None:
                raise asyncio.CancelledError

            a, b = await devices.begin(host)
            dying.setattr(run_driver.RunDriver, "_open_round", die)
            await asyncio.gather(a.push(devices.tasks["a"]), b.push(devices.tasks["b"]))
            await asyncio.wait([host.running])
        await a.close()
        await b.close()
        assert [item.state for item in host.store.rounds(1)] == ["committed"]

    async def after(host: Host) -> None:
        a, b = await devices.come_back(host)
        await asyncio.gather(a.work(), b.work())
        assert [item.state for item in host.store.rounds(1)] == ["committed"] * 2
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_killed_while_clients_evaluate_goes_on_with_that(tmp_path: Path) -> None:
    devices = Returning()

    async def before(host: Host) -> None:
        a, b = await devices.begin(host, on_clients=True)
        await a.push(devices.tasks["a"])
        await b.push(devices.tasks["b"])
        devices.tasks["a"] = await a.task()
        await a.push(devices.tasks["a"], metrics={"accuracy": 0.25})
        await a.close()
        await b.close()

    async def after(host: Host) -> None:
        a, b = await devices.come_back(host)
        task = await b.task()
        assert (task.kind, task.round_number) == ("evaluate", 1)
        assert host.driver.machine.phase is Phase.EVALUATING
        await b.push(task, metrics={"accuracy": 0.75})
        await host.event("evaluation_done", round_number=1)
        assert host.store.evaluations(1)[0].metrics == {"accuracy": 0.5}
        assert host.store.run(1).best_round == 1
        await asyncio.gather(a.work(), b.work())
        assert [item.num_updates for item in host.store.rounds(1)] == [2, 2]
        await a.close()
        await b.close()

    play(tmp_path, before, after)


def test_queue_survives(tmp_path: Path) -> None:
    async def before(host: Host) -> None:
        await host.submit(run_spec())
        await host.submit(run_spec(rounds=1))
        await host.event("run_started", run_id=1)

    async def after(host: Host) -> None:
        await host.event("run_resumed", run_id=1)
        await host.coordinator.stop_run(1)
        await host.event("run_started", run_id=2)

    play(tmp_path, before, after)
