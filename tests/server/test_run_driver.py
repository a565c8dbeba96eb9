"""One run: its rounds and terms, carried out on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coppice import tree
from coppice.errors import InvalidMessage, RoundClosed
from coppice.tensors import dense_group
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.header import encoded_size_bytes
from server import coordinator
from server.records import RoundState
from server.round_events import Phase
from tests.server.host import Device, Host, play
from tests.server.run_samples import SPEC, A, B, run_spec
from tests.server.toy_method import State, Toy


@pytest.fixture(autouse=True)
def _polls_end_only_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 10_000.0)


def hold_aggregation(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Set when the server begins to fold; and to be set so that it goes on."""
    busy, go_on = asyncio.Event(), asyncio.Event()
    compute = host.resources.threads.compute

    async def held(work: Callable[[], Any]) -> Any:
        if getattr(work, "func", work).__name__ == "aggregate":
            busy.set()
            await go_on.wait()
        return await compute(work)

    monkeypatch.setattr(host.resources.threads, "compute", held)
    return busy, go_on


class TestRounds:
    def test_are_recorded_with_their_bytes_and_metrics(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(SPEC)
                task, other = await asyncio.gather(a.task(), b.task())
                await a.push(task, metrics={"loss": 1.0}, num_examples=30)
                await b.push(other, metrics={"loss": 2.0}, num_examples=10)
                await host.event("round_committed", round_number=1)
                (first, *_) = host.store.rounds(1)
                update = encoded_size_bytes(host.store.task(1).expects)
                assert (first.state, first.num_updates) == (RoundState.COMMITTED, 2)
                assert first.metrics == {"loss": 1.25}
                assert first.bytes_up == 2 * update
                await asyncio.gather(a.work(), b.work())
                assert [row.outcome for row in host.store.ledger(1)] == ["counted"] * 4

        play(tmp_path, scene)

    def test_bytes_that_went_down_are_stored_with_the_first_update(self, tmp_path: Path) -> None:
        """From here on a killed server does not forget them."""

        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(SPEC)
                task, other = await asyncio.gather(a.task(), b.task())
                await asyncio.gather(a.fetch(task.payload), b.fetch(other.payload))
                await a.push(task)
                assert host.store.rounds(1)[0].bytes_down == 2 * task.payload.size_bytes
                await b.push(other)
                await host.event("round_committed", round_number=1)
                assert host.store.rounds(1)[0].bytes_down == 2 * task.payload.size_bytes

        play(tmp_path, scene)

    def test_without_quorum_fail_and_the_state_stays(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1, quorum=2))
                task, _ = await asyncio.gather(a.task(), b.task())
                before = host.store.run(1).state_blob
                await a.push(task)
                await b.leave()
                event = await host.event("round_failed")
                assert event.text == "round 1 failed: 1 updates came, 2 are needed"
                run = await host.ended(1)
                assert run.state_blob == before
                assert [row.outcome for row in host.store.ledger(1)] in (
                    ["uncounted", "missing"],
                    ["missing", "uncounted"],
                )

        play(tmp_path, scene)

    def test_deadline_closes_the_round(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(rounds=1, deadline_seconds=0.5))
                task, other = await asyncio.gather(a.task(), b.task())
                await a.push(task)
                assert (await host.ended(1)).state == "finished"
                assert host.store.rounds(1)[0].num_updates == 1
                with pytest.raises(RoundClosed, match="round 1 is over"):
                    await b.push(other)

        play(tmp_path, scene)

    def test_small_fleet_is_taken_when_the_gathering_ends(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(size=4, gather_seconds=0.2))
                overs = await asyncio.gather(a.work(), b.work())
                assert {over.state for over in overs} == {"finished"}
                assert [item.num_updates for item in host.store.rounds(1)] == [2, 2]

        play(tmp_path, scene)

    def test_over_selected_client_that_is_late_is_told(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(size=1, over_selection=2.0))
                task = await a.task()
                await b.poll()
                poll = b.polling()
                await host.until(lambda: host.driver.machine.known == {A, B})
                await a.push(task)
                # Now that both are known, both are planned where one is needed.
                fast, slow = await a.task(), (await poll).task
                assert await b.heartbeat(slow.task_id)
                await a.push(fast)
                await host.event("run_ended")
                assert not await b.heartbeat(slow.task_id)
                with pytest.raises(RoundClosed):
                    await b.push(slow)
                assert [item.num_updates for item in host.store.rounds(1)] == [1, 1]

        play(tmp_path, scene)

    def test_second_receipt_of_an_update_leaves_the_next_task_alone(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(on_clients=True))
                task, other = await asyncio.gather(a.task(), b.task())
                first = await a.push(task)
                await b.push(other)
                await host.event("tasks_committed", count=2)
                await host.until(lambda: host.driver.machine.phase is Phase.EVALUATING)
                # The receipt was lost on the way: a sends its update of the training again.
                assert await a.push(task) == first
                evaluate = await a.task()
                assert evaluate.kind == "evaluate"
                assert host.driver.machine.awaited == {A, B}
                await a.push(evaluate, metrics={"accuracy": 0.25})
                await b.push(await b.task(), metrics={"accuracy": 0.75})
                await host.event("evaluation_done", round_number=1)
                assert host.store.evaluations(1)[0].metrics == {"accuracy": 0.5}

        play(tmp_path, scene)

    def test_client_that_comes_and_goes_while_the_server_is_busy_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            busy, go_on = hold_aggregation(host, monkeypatch)
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(size=1))
                await a.push(await a.task())
                await busy.wait()
                await b.poll()
                poll = b.polling()
                await host.holds("b")
                poll.cancel()
                await host.until(lambda: B not in host.coordinator._polls)
                go_on.set()
                assert (await a.task()).round_number == 2
                assert host.driver.machine.known == {A}

        play(tmp_path, scene)

    def test_client_that_goes_and_comes_while_the_server_is_busy_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            busy, go_on = hold_aggregation(host, monkeypatch)
            async with host.devices("a", "b") as (a, b):
                await host.submit(run_spec(quorum=1, on_clients=True))
                task, other = await asyncio.gather(a.task(), b.task())
                await b.push(other)
                poll = b.polling()
                await host.until(lambda: B in host.driver.machine.present)
                await a.push(task)
                await busy.wait()
                poll.cancel()
                await host.until(lambda: B not in host.coordinator._polls)
                again = b.polling()
                await host.holds("b")
                go_on.set()
                # Only who is there evaluates.
                assert (await again).task.kind == "evaluate"

        play(tmp_path, scene)


class TestTerms:
    @pytest.fixture
    def toy(self, monkeypatch: pytest.MonkeyPatch) -> Toy:
        half = Toy()
        monkeypatch.setattr("server.run_work.server_half", lambda _: half)
        return half

    async def choose(self, device: Device) -> int:
        """Poll until there are terms, and choose by them. Gives the round that they are for."""
        while not (reply := await device.poll()).HasField("terms"):
            assert reply.HasField("run"), reply
        data = await device.fetch(reply.terms.payload)
        offered = int(dense_group(wire.decode(data), "offer")["round"])
        assert offered == reply.terms.round_number
        device.choice = pb.Choice(
            round_number=reply.terms.round_number, values_json=f'{{"number": {offered * 10}}}'
        )
        return offered

    def test_are_chosen_from_anew_in_every_round(self, tmp_path: Path, toy: Toy) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                await host.submit(SPEC)
                for number in (1, 2):
                    assert await self.choose(a) == await self.choose(b) == number
                    task, other = await asyncio.gather(a.task(), b.task())
                    assert toy.choices[number] == {
                        A: {"number": number * 10},
                        B: {"number": number * 10},
                    }
                    for device, offer in ((a, task), (b, other)):
                        device.choice = None
                        await device.push(offer)
                    await host.event("round_committed", round_number=number)
                run = await host.ended(1)
                assert run.state == "finished"
                assert run.state_blob is not None
                saved = host.resources.blobs.read(run.state_blob.digest)
                assert tree.load(State, bytes(saved)).total.tolist() == [0.0]

        play(tmp_path, scene)

    def test_choice_for_another_round_is_asked_for_again(self, tmp_path: Path, toy: Toy) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(run_spec(size=1))
                await self.choose(a)
                a.choice = pb.Choice(round_number=9, values_json="{}")
                assert await self.choose(a) == 1
                assert (await a.poll()).HasField("task")

        play(tmp_path, scene)

    def test_of_the_last_round_are_never_taken_for_the_next(
        self, tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            opening, go_on = asyncio.Event(), asyncio.Event()
            terms, loop = toy.terms, asyncio.get_running_loop()

            def held(state: State, round_number: int) -> Any:
                if round_number == 2:
                    loop.call_soon_threadsafe(opening.set)
                    asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
                return terms(state, round_number)

            monkeypatch.setattr(toy, "terms", held)
            async with host.devices("a") as (a,):
                await host.submit(run_spec(size=1))
                await self.choose(a)
                task = (await a.poll()).task
                a.choice = None
                await a.push(task)
                await opening.wait()
                assert host.driver.machine.round_number == 2
                choosing = asyncio.create_task(self.choose(a))
                await host.holds("a")
                assert not choosing.done()
                go_on.set()
                assert await choosing == 2
                assert (await a.poll()).HasField("task")
                assert toy.choices[2] == {A: {"number": 20}}

        play(tmp_path, scene)

    @pytest.mark.parametrize("values", ["nonsense", "[1]", "[" * 100_000, '{"x": NaN}'])
    def test_choice_that_is_none_is_refused(self, tmp_path: Path, toy: Toy, values: str) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                await host.submit(run_spec(size=1))
                await a.poll()
                a.choice = pb.Choice(round_number=1, values_json=values)
                with pytest.raises(InvalidMessage):
                    await a.poll()

        play(tmp_path, scene)
