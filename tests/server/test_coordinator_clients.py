"""Who is there: clients that join, leave, fall silent, or do not fit the run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import AppSpec
from coppice.errors import (
    AppMismatch,
    NameTaken,
    NotJoined,
)
from coppice.wire import coordination_pb2 as pb
from server import coordinator
from server.round_events import Phase
from tests.server.host import Device, Host, play
from tests.server.run_samples import SPEC, A, B, run_spec


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


class TestJoin:
    def test_twice_is_the_same_client(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await a.join(labels={"room": "8"})
                (client,) = host.store.clients()
                assert client.labels == {"room": "8"}

        play(tmp_path, scene)

    def test_of_another_device_under_the_name_is_refused(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a"):
                thief = Device(host, "a")
                with pytest.raises(NameTaken, match="another device has the name 'a'"):
                    await thief.join(device_id="another one")
                await thief.close()
                assert host.store.clients()[0].device_id == "device-a"
                assert host.store.clients()[0].refusals == 1

        play(tmp_path, scene)

    @pytest.mark.parametrize("method", ["poll", "heartbeat", "leave", "fetch", "push"])
    def test_comes_first(self, tmp_path: Path, method: str) -> None:
        async def scene(host: Host) -> None:
            stranger = Device(host, "stranger")
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "poll": stranger.poll,
                "heartbeat": stranger.heartbeat,
                "leave": stranger.leave,
                "fetch": lambda: stranger.fetch(pb.BlobRef(digest="0" * 64)),
                "push": lambda: stranger.push(pb.TaskOffer(task_id=1), data=b"x"),
            }
            with pytest.raises(NotJoined, match="stranger has not joined this server"):
                await calls[method]()
            await stranger.close()
            assert host.store.clients() == []

        play(tmp_path, scene)

    def test_survives_a_restart_of_the_server(self, tmp_path: Path) -> None:
        async def before(host: Host) -> None:
            async with host.devices("a", "b") as (_, b):
                await b.leave()

        async def after(host: Host) -> None:
            a, b = Device(host, "a"), Device(host, "b")
            await host.until(lambda: A in host.coordinator._clients)
            assert await a.heartbeat()
            with pytest.raises(NotJoined):
                await b.poll()
            await a.close()
            await b.close()

        play(tmp_path, before, after)


class TestApp:
    SPEC = replace(SPEC, model=None, data=None, app=AppSpec(name="own.py", digest="d" * 64))

    @pytest.mark.parametrize(
        ("digest", "says"),
        [
            ("", "uses the app own.py .d{12}.: copy that file"),
            ("e" * 64, "this device has another .e{12}.: copy the server's file"),
        ],
    )
    def test_other_than_the_run_s_is_refused_at_join_and_poll(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str, says: str
    ) -> None:
        async def scene(host: Host) -> None:
            # The state is never made: only the run's app matters here.
            hold = asyncio.Event()
            monkeypatch.setattr("server.run_driver.RunDriver.run", lambda _: hold.wait())
            async with host.devices("a") as (a,):
                poll = asyncio.create_task(a.poll(app_digest=digest))
                await host.submit(self.SPEC)
                with pytest.raises(AppMismatch, match=says):
                    await poll
                with pytest.raises(AppMismatch, match=says):
                    await a.join(app_digest=digest)
                await a.join(app_digest="d" * 64)
                assert (await a.poll(app_digest="d" * 64)).HasField("run")

        play(tmp_path, scene)

    def test_where_the_run_has_none_is_refused(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(SPEC)
                await a.poll()
                with pytest.raises(AppMismatch, match="uses no app: join without --app"):
                    await a.poll(app_digest="e" * 64)

        play(tmp_path, scene)


class TestLabels:
    def test_run_takes_only_clients_that_have_them(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b", "c") as (a, b, c):
                await b.join(labels={"room": "7", "floor": "1"})
                await c.join(labels={"room": "8"})
                await host.submit(run_spec(size=1, labels={"room": "7"}))
                others = [a.polling(), c.polling()]
                assert (await b.task()).round_number == 1
                await host.holds("a", "c")
                assert not any(poll.done() for poll in others)
                assert host.driver.machine.known == {B}

        play(tmp_path, scene)


class TestGoodbye:
    def test_of_a_waiting_client_ends_its_poll(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(size=3))
                await asyncio.gather(a.poll(), b.poll())
                poll = a.polling()
                await host.until(lambda: A in host.driver.machine.present)
                await a.leave("tired")
                assert (await poll).HasField("wait")
                await host.until(lambda: A not in host.driver.machine.known)
                (client, _) = host.store.clients()
                assert client.left_reason == "tired"
                assert (await host.event("client_left")).text == "a left: tired"
                assert host.coordinator.snapshot().clients[A].presence == "left"

        play(tmp_path, scene)

    def test_of_a_working_client_is_not_waited_for(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1))
                task, _ = await asyncio.gather(a.task(), b.task())
                await a.push(task)
                await b.leave()
                await host.event("run_ended")
                assert host.store.rounds(1)[0].num_updates == 1

        play(tmp_path, scene)

    def test_while_the_round_is_planned_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coordinator, "_WATCH_SECONDS", 0.01)

        async def scene(host: Host) -> None:
            planning, go_on = asyncio.Event(), asyncio.Event()
            compute = host.resources.threads.compute

            async def held(work: Callable[[], Any]) -> Any:
                if host.driver.machine.phase is Phase.PLANNING:
                    planning.set()
                    await go_on.wait()
                return await compute(work)

            monkeypatch.setattr(host.resources.threads, "compute", held)
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1))
                await asyncio.gather(a.poll(), b.poll())
                polls = a.polling(), b.polling()
                await planning.wait()
                await b.leave()
                go_on.set()
                await a.push((await polls[0]).task)
                await host.event("run_ended")
                assert host.store.rounds(1)[0].num_updates == 1

        play(tmp_path, scene)


class TestSilence:
    def test_is_logged_once_and_then_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coordinator, "_WATCH_SECONDS", 0.01)

        async def scene(host: Host) -> None:
            seen = host.resources.presence._seen
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1))
                task, _ = await asyncio.gather(a.task(), b.task())
                seen[B].at -= 20
                event = await host.event("client_suspected")
                assert event.client_id == B
                assert event.text.startswith("b has been silent for 2")
                await a.push(task)
                assert host.driver.machine.awaited == {B}
                seen[B].at -= 60
                await host.event("run_ended")
                assert sum(event.kind == "client_suspected" for event in host.events) == 1

        play(tmp_path, scene)
