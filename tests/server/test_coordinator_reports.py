"""What devices tell with their polls: of themselves now, and of the round before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import Capability, Forecast, RoundReport
from coppice.errors import InvalidMessage, StoreUnusable
from coppice.wire import coordination_pb2 as pb
from coppice.wire.capability import capability_to_message
from coppice.wire.report import report_to_message
from server.store import Store
from tests.server.host import Device, Host, play
from tests.server.run_samples import CAPABILITY, A, B, run_spec

REPORT = RoundReport(
    round_number=1,
    steps=12,
    density=0.25,
    download_seconds=0.5,
    compute_seconds=12.25,
    upload_seconds=0.75,
    peak_bytes=312_000_000,
    budget_bytes=400_000_000,
    bound_by="free memory",
    forecast=Forecast(0.25, 11.5, 1.25, 300_000_000, "memory"),
)


async def first_round(host: Host, *devices: Device, rounds: int = 3) -> int:
    """Round 1, in which all of these devices answer."""
    run_id = await host.submit(run_spec(rounds=rounds, size=len(devices)))
    for device in devices:
        await device.poll()
    tasks = await asyncio.gather(*(device.task() for device in devices))
    for device, task in zip(devices, tasks, strict=True):
        await device.push(task)
    await host.event("round_committed", run_id=run_id, round_number=1)
    return run_id


def told(report: RoundReport = REPORT, **fields: Any) -> pb.RoundReport:
    return report_to_message(replace(report, **fields))


def test_a_report_is_stored_and_at_hand_before_its_poll_is_answered(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            run_id = await first_round(host, a, b)
            await asyncio.gather(a.poll(report=told()), b.poll(report=told(steps=3)))
            stored = {record.client_id: record for record in host.store.reports(run_id)}
            assert stored == host.coordinator.newest_reports
            assert stored[A].report == REPORT
            assert stored[B].report.steps == 3

    play(tmp_path, scene)


def test_a_report_that_comes_again_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[RoundReport] = []
    store_report = Store.store_report

    def noted(self: Store, run_id: int, client_id: Any, report: RoundReport, *rest: Any) -> Any:
        written.append(report)
        return store_report(self, run_id, client_id, report, *rest)

    monkeypatch.setattr(Store, "store_report", noted)

    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            run_id = await first_round(host, a)
            for _ in range(3):
                await a.poll(report=told())
            await a.poll(report=told(steps=13))
            assert [report.steps for report in written] == [12, 13]
            (record,) = host.store.reports(run_id)
            assert record.report.steps == 13

    play(tmp_path, scene)


def test_the_report_on_the_last_round_comes_after_the_end(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            run_id = await first_round(host, a, rounds=1)
            await host.ended(run_id)
            assert (await a.poll(report=told())).HasField("over")
            assert [record.report for record in host.store.reports(run_id)] == [REPORT]

    play(tmp_path, scene)


@pytest.mark.parametrize("run_key", ["1-0123456789abcdef", "7-0123456789abcdef"])
def test_a_report_on_a_run_of_another_server_is_let_go(tmp_path: Path, run_key: str) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            run_id = await first_round(host, a)
            reply = await a.poll(report=told(), run_key=run_key)
            assert reply.HasField("run")
            assert host.store.reports(run_id) == []
            assert host.coordinator.newest_reports == {}

    play(tmp_path, scene)


def test_a_report_on_a_round_without_the_device_is_let_go(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            run_id = await first_round(host, a)
            assert (await a.poll(report=told(round_number=2))).HasField("task")
            assert host.store.reports(run_id) == []
            assert host.coordinator.newest_reports == {}

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"report": told(density=2.0)}, r"report\.density is 2"),
        ({"report": told(), "run_key": ""}, "the run that run_key names"),
    ],
)
def test_a_poll_with_an_impossible_report_is_refused(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            run_id = await first_round(host, a)
            with pytest.raises(InvalidMessage, match=says):
                await a.poll(**fields)
            assert host.store.reports(run_id) == []
            assert host.store.clients()[0].refusals == 1

    play(tmp_path, scene)


def test_reports_outlive_the_server(tmp_path: Path) -> None:
    async def before(host: Host) -> None:
        async with host.devices("a") as (a,):
            await first_round(host, a)
            await a.poll(report=told())

    async def after(host: Host) -> None:
        await host.until(lambda: A in host.coordinator._clients)
        assert host.coordinator.newest_reports[A].report == REPORT
        assert [record.report for record in host.store.reports(1)] == [REPORT]

    play(tmp_path, before, after)


def test_a_store_that_takes_no_report_stops_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StoreUnusable("the disk is gone")

    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            await first_round(host, a)
            monkeypatch.setattr(host.store, "store_report", fail)
            poll = asyncio.create_task(a.poll(report=told()))
            with pytest.raises(StoreUnusable, match="the disk is gone"):
                await host.running
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)

    play(tmp_path, scene)


def test_what_a_device_has_is_what_it_said_last(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            presence = host.resources.presence
            assert presence.capability(A) == CAPABILITY
            assert presence.capability(B) is None
            now = Capability(2**20, 1, "aarch64", "memory.max of /x", 0.5, 81.5, ("under-voltage",))
            await host.submit(run_spec())
            await a.poll(capability=capability_to_message(now))
            assert presence.capability(A) == now

    play(tmp_path, scene)


def test_a_round_goes_on_without_a_device_that_gives_its_task_back(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            run_id = await host.submit(run_spec(rounds=2, size=2, quorum=1))
            await a.poll()
            await b.poll()
            one, two = await asyncio.gather(a.task(), b.task())
            # Of another one's task it does not get rid.
            again = await b.poll(declined_task_id=one.task_id)
            assert again.task.task_id == two.task_id
            back = asyncio.create_task(b.poll(declined_task_id=two.task_id))
            await a.push(one)
            await host.event("round_committed", run_id=run_id, round_number=1)
            await host.event("task_declined", run_id=run_id, round_number=1, client_id="b")
            # It is in the next one again.
            following = asyncio.gather(a.task(), b.task())
            await back
            assert {task.round_number for task in await following} == {2}

    play(tmp_path, scene)
