"""What a device is told of its answers: so many bytes, a receipt, or why it does not count."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coppice.errors import RoundClosed, TransferBroken, UnknownTask, UpdateRefused
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.chunks import blob_ref
from coppice.wire.codec import blob_to_message
from server import coordinator
from tests.server.host import Device, Host, filled, play
from tests.server.run_samples import run_spec


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


def update_of(host: Host, task: pb.TaskOffer) -> bytes:
    return bytes(wire.encode(filled(host.store.task(task.task_id).expects, 1.0)))


async def status(device: Device, task_id: int, data: bytes = b"x") -> pb.PushStatusReply:
    blob = blob_to_message(blob_ref(data))
    request = pb.PushStatusRequest(task_id=task_id, blob=blob)
    reply: pb.PushStatusReply = await device.call("PushStatus", request)
    return reply


async def half_pushed(device: Device, task: pb.TaskOffer, data: bytes) -> None:
    with pytest.raises(TransferBroken, match="ended after"):
        await device.push(task, data=data, parts=[data[: len(data) // 2]])


async def two_tasks(host: Host, a: Device, b: Device) -> tuple[pb.TaskOffer, pb.TaskOffer]:
    await host.submit(run_spec())
    return await asyncio.gather(a.task(), b.task())


def test_join_tells_the_key_of_receipts(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        device = Device(host, "a")
        assert (await device.join()).receipt_key == host.receipt_key.public
        await device.close()

    play(tmp_path, scene)


def test_upload_goes_on_where_it_ended_after_the_server_was_killed(tmp_path: Path) -> None:
    offered: dict[str, pb.TaskOffer] = {}

    async def before(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            offered["a"], _ = await two_tasks(host, a, b)
            data = update_of(host, offered["a"])
            assert (await status(a, offered["a"].task_id, data)).offset == 0
            await half_pushed(a, offered["a"], data)
            assert (await status(a, offered["a"].task_id, data)).offset == len(data) // 2

    async def after(host: Host) -> None:
        async with host.devices("a") as (a,):
            task = offered["a"]
            data = update_of(host, task)
            offset = (await status(a, task.task_id, data)).offset
            assert offset == len(data) // 2
            receipt = await a.push(task, data=data, parts=[data[offset:]], offset=offset)
            known = await status(a, task.task_id, data)
            assert known.receipt == receipt == await a.push(task, data=data)
            assert (known.offset, receipt.client) == (0, "a")
            assert receipt.digest == blob_ref(data).digest
            assert receipt.base == host.store.task(task.task_id).base
            assert receipt.run_key == host.driver.record.key

    play(tmp_path, before, after)


def test_receipt_is_the_same_after_the_run(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            await host.submit(run_spec(rounds=1))
            task, other = await asyncio.gather(a.task(), b.task())
            receipt = await a.push(task)
            await b.push(other)
            await host.event("run_ended")
            assert (await status(a, task.task_id)).receipt == receipt

    play(tmp_path, scene)


def test_asking_for_an_old_receipt_leaves_the_open_task_alone(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            task, other = await two_tasks(host, a, b)
            await a.push(task)
            await b.push(other)
            next_task, _ = await asyncio.gather(a.task(), b.task())
            await status(a, task.task_id)
            # An old answer says nothing of the open task.
            assert next_task.task_id in {each.task_id for each in host.driver.tasks.values()}

    play(tmp_path, scene)


def test_what_does_not_count_is_refused_before_its_bytes(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            task, other = await two_tasks(host, a, b)
            for task_id in (other.task_id, 999, 2**63):
                with pytest.raises(UnknownTask):
                    await status(a, task_id)
            with pytest.raises(UpdateRefused):
                await a.push(task, data=b"xyz")
            with pytest.raises(UpdateRefused):
                await status(a, task.task_id)
            host.store.close_tasks(1, 1, host.store.task(other.task_id).kind, 0, 0.0)
            host.driver.tasks.clear()
            with pytest.raises(RoundClosed, match="does not count"):
                await status(b, other.task_id)

    play(tmp_path, scene)
