"""Runs on masks: what devices are offered and may fetch, and rounds that are for one of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import MethodSpec
from coppice.errors import InvalidPayload, UnknownBlob, UpdateRefused
from coppice.model_file import load_weights
from coppice.sparse import SparseTensor
from coppice.tensors import masks_of, weight_group
from coppice.wire import payload as wire
from server import coordinator
from tests.server.host import Host, filled, play, sweep_everything
from tests.server.run_samples import on_masks, run_spec


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


def test_who_has_a_task_may_fetch_its_masks_and_nobody_else(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b", "c") as (a, b, c):
            await host.submit(on_masks(host.resources.blobs, tmp_path))
            task, other = await asyncio.gather(a.task(), b.task())
            assert task.masks.digest == other.masks.digest != task.payload.digest
            assert len(await a.fetch(task.masks)) == task.masks.size_bytes
            known = await a.known(task)
            data = await a.fetch(task.payload)
            with pytest.raises(InvalidPayload, match="which is not here"):
                wire.decode(data)
            parameters = weight_group(wire.decode(data, known=known), "parameters")
            assert len(masks_of(parameters)) == 2
            with pytest.raises(UnknownBlob, match=r"is not \(or no longer\) offered to c"):
                await c.fetch(task.masks)
            await a.push(task)
            with pytest.raises(UnknownBlob):
                await a.fetch(task.masks)

    play(tmp_path, scene)


def test_masks_that_stay_are_offered_as_the_same_blob(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            spec = on_masks(host.resources.blobs, tmp_path)
            run_id = await host.submit(spec)
            a.value = b.value = 1.0
            first, other = await asyncio.gather(a.task(), b.task())
            await asyncio.gather(a.push(first), b.push(other))
            second, other = await asyncio.gather(a.task(), b.task())
            assert second.masks == first.masks
            assert second.payload != first.payload
            await asyncio.gather(a.push(second), b.push(other))
            over = await a.over()
            assert over.keep.masks == first.masks
            assert len(await a.fetch(over.keep.masks)) == first.masks.size_bytes
            weights = load_weights(host.resources.model_path(run_id, spec.name))
            assert len(masks_of(weights)) == 2
            assert all(
                item.values.numel() == item.mask.count
                for item in weights.values()
                if isinstance(item, SparseTensor)
            )

    play(tmp_path, scene)


def test_updates_on_masks_outlive_a_restart_and_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def before(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            sweeps = sweep_everything(monkeypatch)
            await host.submit(on_masks(host.resources.blobs, tmp_path))
            task, _ = await asyncio.gather(a.task(), b.task())
            await host.until(lambda: bool(sweeps))
            a.value = 1.0
            await a.push(task)

    async def after(host: Host) -> None:
        async with host.devices("b") as (b,):
            b.value = 3.0
            task = await b.task()
            await b.push(task)
            await host.event("round_committed", round_number=1)
            state = host.store.rounds(1)[0]
            assert state.num_updates == 2

    play(tmp_path, before, after)


def test_update_on_other_masks_is_refused(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            await host.submit(on_masks(host.resources.blobs, tmp_path))
            task, _ = await asyncio.gather(a.task(), b.task())
            known = await a.known(task)
            expects = host.store.task(task.task_id).expects
            good = filled(expects, 1.0, known)
            delta = weight_group(good, "delta")
            other = {
                name: SparseTensor(item.mask.complement(), item.values)
                if isinstance(item, SparseTensor)
                else item
                for name, item in delta.items()
            }
            data = bytes(wire.encode({**good, "delta": other}, known=known))
            with pytest.raises(UpdateRefused, match="delta/"):
                await a.push(task, data=data)
            assert host.store.update(task.task_id) is None

    play(tmp_path, scene)


def test_round_for_one_client_is_played_by_it_alone(tmp_path: Path) -> None:
    settings = {
        "local_steps": 0,
        "mask_scope": "global",
        "initial_client": "b",
        "initial_passes": 2,
        "initial_interval": 1,
        "round_time": {
            "constant_seconds": 1.0,
            "seconds_per_weight": {"hidden.0.0.weight": 1.0, "output.weight": 1.0},
        },
    }
    method = MethodSpec(name="prunefl", settings=settings)

    async def before(host: Host) -> None:
        async with host.devices("a", "c") as (a, c):
            await host.submit(replace(run_spec(rounds=3, size=2), method=method))
            for device in (a, c):
                await device.poll()
            waiting = [a.polling(), c.polling()]
            await host.holds("a", "c")
            reserved = "b, the one client that the round is for"
            await host.until(lambda: reserved in host.coordinator.snapshot().wait.text)
            async with host.devices("b") as (b,):
                task = await b.task()
                assert [item.client_id for item in host.store.tasks(1, 1)] == ["b"]
                await b.push(task)
                await host.event("round_committed", round_number=1)
            for poll in waiting:
                poll.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def after(host: Host) -> None:
        async with host.devices("a", "b") as (a, b):
            await a.poll()
            waiting = a.polling()
            await host.holds("a")
            await b.push(await b.task())
            # From the third round on it is a cohort's again.
            task, other = await asyncio.gather(waiting, b.poll())
            assert task.task.round_number == other.task.round_number == 3
            assert [item.client_id for item in host.store.tasks(1, 2)] == ["b"]

    play(tmp_path, before, after)
