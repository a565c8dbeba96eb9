"""Clients and what their polls are answered, over a real channel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coppice.errors import (
    InvalidMessage,
    UnknownBlob,
    UpdateRefused,
)
from coppice.wire import coordination_pb2 as pb
from server import coordinator
from server.answers import CheckIn
from tests.server.host import Host, play
from tests.server.run_samples import CAPABILITY, SPEC, A, B, run_spec


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


class TestPoll:
    def test_is_answered_when_a_run_is_submitted(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                poll = a.polling()
                await host.holds("a")
                run_id = await host.submit(SPEC)
                reply = await poll
                assert reply.run.run_id == run_id
                assert '"name":"tiny"' in reply.run.workload_json

        play(tmp_path, scene)

    def test_is_answered_when_the_cohort_is_there(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                run_id = await host.submit(SPEC)
                await asyncio.gather(a.poll(), b.poll())
                poll = a.polling()
                await host.holds("a")
                assert not poll.done()
                second = (await b.poll()).task
                first = (await poll).task
                assert {first.kind, second.kind} == {"train"}
                assert (first.run_id, first.round_number) == (run_id, 1)
                assert first.task_id != second.task_id
                assert first.payload == second.payload
                assert 0 < first.deadline_seconds <= 600
                assert first.settings_json == '{"learning_rate": 0.1}'

        play(tmp_path, scene)

    def test_without_an_answer_is_held_and_then_asks_to_come_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.05)

        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                reply = await a.poll()
                assert reply.wait.retry_seconds == 0
                assert reply.HasField("wait")

        play(tmp_path, scene)

    def test_newer_one_ends_the_older_one(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                older = a.polling()
                await host.holds("a")
                newer = a.polling()
                assert (await older).HasField("wait")
                assert not newer.done()
                await host.submit(SPEC)
                assert (await newer).HasField("run")

        play(tmp_path, scene)

    def test_broken_off_means_that_the_client_is_gone(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(size=3))
                await asyncio.gather(a.poll(), b.poll())
                a_waits, b_waits = a.polling(), b.polling()
                await host.until(lambda: host.driver.machine.present == {A, B})
                b_waits.cancel()
                await host.until(lambda: host.driver.machine.known == {A})
                assert host.driver.machine.present == {A}
                a_waits.cancel()

        play(tmp_path, scene)

    def test_older_one_that_breaks_off_does_not_take_the_newer_one_along(
        self, tmp_path: Path
    ) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(SPEC)
                await a.poll()
                check_in = CheckIn(A, a.run_key, 10, CAPABILITY, "", None)
                older = asyncio.create_task(host.coordinator.poll(check_in))
                await host.until(lambda: host.driver.machine.present == {A})
                newer = asyncio.create_task(host.coordinator.poll(check_in))
                await asyncio.sleep(0)
                older.cancel()
                await asyncio.wait([older])
                assert older.cancelled()
                assert not newer.done()
                await host.until(host.driver._events.empty)
                assert host.driver.machine.known == {A}
                newer.cancel()

        play(tmp_path, scene)

    def test_unanswered_task_is_offered_again_even_after_a_new_join(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(SPEC)
                first, _ = await asyncio.gather(a.task(), b.task())
                again = (await a.poll()).task
                assert again.task_id == first.task_id
                await a.join()
                assert (await a.poll()).task.task_id == first.task_id

        play(tmp_path, scene)

    @pytest.mark.parametrize("key", ["1-0123456789abcdef", "77-0123456789abcdef"])
    def test_who_is_ready_for_the_run_of_another_server_gets_ready_for_this_one(
        self, tmp_path: Path, key: str
    ) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                run_id = await host.submit(SPEC)
                reply = await a.poll(run_key=key)
                assert (reply.run.run_id, reply.run.run_key) == (1, host.store.run(run_id).key)
                assert reply.run.run_key != key

        play(tmp_path, scene)


class TestHeartbeat:
    def test_tells_whether_the_task_still_counts(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                assert await a.heartbeat()
                assert not await a.heartbeat(1)
                await host.submit(run_spec(quorum=1))
                task, other = await asyncio.gather(a.task(), b.task())
                assert await a.heartbeat(task.task_id, steps_done=3, resident_bytes=99)
                live = host.coordinator.snapshot().clients[A]
                assert (live.presence, live.steps_done, live.resident_bytes) == ("working", 3, 99)
                assert await a.heartbeat(task.task_id, fetched=0.5)
                live = host.coordinator.snapshot().clients[A]
                assert (live.activity, live.share) == ("fetching", 0.5)
                for wrong in (-0.5, 1.5, float("nan")):
                    with pytest.raises(InvalidMessage, match="fetched is a share"):
                        await a.heartbeat(task.task_id, fetched=wrong)
                assert not await a.heartbeat(other.task_id)
                await a.push(task)
                assert not await a.heartbeat(task.task_id)
                assert await b.heartbeat(other.task_id)

        play(tmp_path, scene)


class TestFetch:
    def test_gives_what_was_offered_and_nothing_else(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b", "c") as (a, b, c):
                await host.submit(run_spec(quorum=1))
                task, _ = await asyncio.gather(a.task(), b.task())
                data = await a.fetch(task.payload)
                assert len(data) == task.payload.size_bytes
                assert await a.fetch(task.payload, offset=100) == data[100:]
                with pytest.raises(UnknownBlob, match=r"is not \(or no longer\) offered to c"):
                    await c.fetch(task.payload)
                state = host.store.run(1).state_blob
                assert state is not None
                with pytest.raises(UnknownBlob):
                    await a.fetch(pb.BlobRef(digest=state.digest))
                await a.push(task)
                with pytest.raises(UnknownBlob):
                    await a.fetch(task.payload)

        play(tmp_path, scene)

    def test_bytes_are_counted_and_are_a_sign_of_life(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(run_spec(size=1, rounds=1))
                task = await a.task()
                host.resources.presence._seen[A].at -= 500
                assert host.coordinator.snapshot().clients[A].presence == "lost"
                await a.fetch(task.payload)
                assert host.coordinator.snapshot().clients[A].presence == "working"
                await a.push(task)
                await host.event("run_ended")
                assert host.store.rounds(1)[0].bytes_down == task.payload.size_bytes

        play(tmp_path, scene)


class TestRejected:
    def test_update_ends_the_client_s_part_of_the_round(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1))
                task, other = await asyncio.gather(a.task(), b.task())
                with pytest.raises(UpdateRefused, match="3 bytes are too few for a payload"):
                    await a.push(task, data=b"xyz")
                assert not await a.heartbeat(task.task_id)
                await host.until(lambda: host.driver.machine.awaited == {B})
                await b.push(other)
                assert (await host.ended(1)).state == "finished"
                outcomes = {row.client_id: row.outcome for row in host.store.ledger(1)}
                assert outcomes == {A: "refused", B: "counted"}
                assert host.store.clients()[0].refusals == 1

        play(tmp_path, scene)
