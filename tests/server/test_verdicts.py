"""Hostile devices in real rounds: refused by name, told why, left out; a restart judges alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import ClientId, RunSpec
from coppice.errors import UpdateRefused
from coppice.protection import ProtectionSpec
from coppice.wire import coordination_pb2 as pb
from server import coordinator
from server.round_events import Phase
from tests.server.host import Device, Host, play
from tests.server.run_samples import run_spec

NAMES = ("a", "b", "c", "d", "e", "f")
#: Far larger than the others' changes.
HUGE = 50.0


def spec(rounds: int = 1, size: int = 6, strikes: int = 3, **cohort: Any) -> RunSpec:
    run = run_spec(rounds=rounds, size=size, **cohort)
    return replace(run, protection=ProtectionSpec(strikes=strikes))


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


@contextlib.asynccontextmanager
async def six(host: Host, huge: str = "f") -> AsyncIterator[list[Device]]:
    """Six devices, one of which answers with far too large a change."""
    async with host.devices(*NAMES) as devices:
        for number, device in enumerate(devices):
            device.value = HUGE if device.name == huge else 0.01 + 0.001 * number
        yield devices


async def tasks_of(devices: Iterable[Device]) -> list[pb.TaskOffer]:
    return list(await asyncio.gather(*(device.task() for device in devices)))


async def one_round(devices: Iterable[Device]) -> None:
    """All of them answer one task."""
    devices = list(devices)
    tasks = await tasks_of(devices)
    await asyncio.gather(*(d.push(task) for d, task in zip(devices, tasks, strict=True)))


def test_one_that_is_far_too_large_is_refused_and_named(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with six(host) as devices:
            await host.submit(spec())
            await one_round(devices)
            event = await host.event("update_refused")
            assert (event.client_id, event.round_number) == ("f", 1)
            assert event.text.startswith("round 1: update of f refused: its change is 50 per")
            committed = await host.event("round_committed")
            assert committed.text.startswith("round 1 committed: 5 updates")
            await host.ended(1)
            outcomes = {row.client_id: row.outcome for row in host.store.ledger(1)}
            assert outcomes == dict.fromkeys("abcde", "counted") | {"f": "refused"}
            assert host.store.rounds(1)[0].num_updates == 5
            (refusal,) = host.store.refusals(1)
            assert (refusal.client_id, refusal.finding.rule) == ("f", "size")
            assert refusal.finding.evidence["times"] > 1000
            assert [c.refusals for c in host.store.clients()] == [0, 0, 0, 0, 0, 1]

    play(tmp_path, scene)


def test_the_device_is_told_why_until_it_has_heard(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with six(host) as devices:
            await host.submit(spec(rounds=2))
            await one_round(devices)
            await host.event("round_committed")
            replies = await asyncio.gather(*(device.poll() for device in devices))
            assert [len(reply.refusals) for reply in replies] == [0, 0, 0, 0, 0, 1]
            (told,) = replies[-1].refusals
            assert (told.round_number, told.strikes, told.strikes_allowed) == (1, 1, 3)
            assert told.reason.startswith("its change is 50 per weight and step")
            assert not told.left_out
            # Its poll is answered with the next task as well, again and again.
            again = await devices[-1].poll()
            assert list(again.refusals) == [told]
            heard = await devices[-1].poll(refusal_seen=told.refusal_id)
            assert not heard.refusals
            assert heard.task == again.task or heard.HasField("task")

    play(tmp_path, scene)


def test_after_so_many_strikes_a_client_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with six(host) as devices:
            await host.submit(spec(rounds=4, strikes=2, quorum=5, gather_seconds=0.2))
            await one_round(devices)
            await one_round(devices)
            event = await host.event("client_left_out")
            assert event.client_id == "f"
            assert event.text == (
                "f is left out of the run from now on: 2 of its updates were refused"
            )
            last = devices[-1].polling()
            await asyncio.gather(*(device.work() for device in devices[:-1]))
            reply = await last
            # What it hears after all the rounds without it is the end.
            assert reply.HasField("over")
            assert reply.refusals[-1].left_out
            clients = [row.client_id for row in host.store.ledger(1) if row.round_number > 2]
            assert sorted(clients) == sorted([*"abcde"] * 2)

    play(tmp_path, scene)


def test_who_is_waited_for_is_said_with_who_is_left_out(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with six(host) as devices:
            await host.submit(spec(rounds=2, strikes=1, quorum=6))
            await one_round(devices)
            await host.event("client_left_out")
            polls = [device.polling() for device in devices]
            await host.until(lambda: len(host.driver.machine.present) == 5)
            assert host.driver.machine.phase is Phase.GATHERING
            assert host.coordinator.snapshot().wait.text == (
                "1 more client (5 of 6 are here); left out for refused updates: f"
            )
            for poll in polls:
                poll.cancel()

    play(tmp_path, scene)


def test_a_restarted_server_remembers_who_is_left_out(tmp_path: Path) -> None:
    async def before(host: Host) -> None:
        async with six(host) as devices:
            await host.submit(spec(rounds=3, strikes=1, quorum=5, gather_seconds=0.2))
            await one_round(devices)
            await host.event("client_left_out")

    async def after(host: Host) -> None:
        async with six(host) as devices:
            devices[-1].run_key = host.store.run(1).key
            last = devices[-1].polling()
            await asyncio.gather(*(device.work() for device in devices[:-1]))
            assert not (await last).HasField("task")
            assert [row.client_id for row in host.store.ledger(1)].count(ClientId("f")) == 1
            assert len(host.store.refusals(1)) == 1

    play(tmp_path, before, after)


def test_a_restart_between_judging_and_commit_judges_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[set[str]] = []

    async def before(host: Host) -> None:
        reached = asyncio.Event()
        write = type(host.resources).write

        async def held(self: Any, operation: Any, *arguments: Any, **named: Any) -> Any:
            inner = getattr(operation, "func", operation)
            if inner.__name__ == "commit_round":
                judged.append({host.store.task(n).client_id for n in operation.keywords["refused"]})
                reached.set()
                await asyncio.Event().wait()
            return await write(self, operation, *arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(type(host.resources), "write", held)
            async with six(host) as devices:
                await host.submit(spec())
                await one_round(devices)
                await reached.wait()
        assert host.store.refusals(1) == []
        assert host.store.client(ClientId("f")).refusals == 0  # type: ignore[union-attr]

    async def after(host: Host) -> None:
        assert (await host.ended(1)).state == "finished"
        (refusal,) = host.store.refusals(1)
        assert {refusal.client_id} == judged[0] == {"f"}
        outcomes = [row.outcome for row in host.store.ledger(1)]
        assert sorted(outcomes) == ["counted"] * 5 + ["refused"]
        assert host.store.client(ClientId("f")).refusals == 1  # type: ignore[union-attr]

    play(tmp_path, before, after)


# ---- refused when it comes ----


def test_a_round_waits_for_no_device_whose_update_was_refused(tmp_path: Path) -> None:
    """Nor does it fail, where the quorum is everybody."""

    async def scene(host: Host) -> None:
        async with host.devices("a", "b", "c") as devices:
            await host.submit(spec(size=3, quorum=3))
            a, b, c = zip(devices, await tasks_of(devices), strict=True)
            with pytest.raises(UpdateRefused, match="3 bytes are too few"):
                await a[0].push(a[1], data=b"xyz")
            await b[0].push(b[1])
            await c[0].push(c[1])
            assert (await host.ended(1)).state == "finished"
            outcomes = [row.outcome for row in host.store.ledger(1)]
            assert sorted(outcomes) == ["counted", "counted", "refused"]
            assert [e.kind for e in host.events].count("call_refused") == 0

    play(tmp_path, scene)


def test_where_most_are_refused_the_round_fails_and_nobody_is_struck(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a", "b", "c") as devices:
            await host.submit(spec(size=3, strikes=1))
            a, b, c = zip(devices, await tasks_of(devices), strict=True)
            for device, task in (a, b):
                with pytest.raises(UpdateRefused):
                    await device.push(task, data=b"xyz")
            await c[0].push(c[1])
            event = await host.event("round_failed")
            assert event.text.endswith("1 updates came, 2 are needed; 2 more were refused")
            assert host.store.strikes(1) == {}
            assert [c.refusals for c in host.store.clients()].count(1) == 2

    play(tmp_path, scene)


def test_a_restarted_server_waits_for_no_refused_device(tmp_path: Path) -> None:
    offered: dict[str, pb.TaskOffer] = {}

    async def before(host: Host) -> None:
        async with host.devices("a", "b", "c") as devices:
            await host.submit(spec(size=3, quorum=3))
            for device, task in zip(devices, await tasks_of(devices), strict=True):
                offered[str(device.name)] = task
            with pytest.raises(UpdateRefused):
                await devices[0].push(offered["a"], data=b"xyz")
            await devices[1].push(offered["b"])

    async def after(host: Host) -> None:
        async with host.devices("a", "b", "c") as (a, _, c):
            await host.event("run_resumed")
            await host.until(lambda: host.driver.machine.phase is Phase.REPORTING)
            assert host.driver.machine.awaited == {"c"}
            a.run_key = host.store.run(1).key
            with pytest.raises(UpdateRefused, match="3 bytes are too few"):
                await a.push(offered["a"])
            await c.push(offered["c"])
            assert (await host.ended(1)).state == "finished"

    play(tmp_path, before, after)
