"""From bytes to a receipt: nothing is stored of what is refused, and nothing twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import update

from coppice.domain import ClientId, TaskKind
from coppice.errors import (
    CoppiceError,
    InvalidMessage,
    RoundClosed,
    TransferBroken,
    UnknownTask,
    UpdateRefused,
)
from coppice.tensors import Payload, TensorSpec
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import MAX_CHUNK_BYTES, blob_ref
from coppice.wire.codec import blob_from_message
from coppice.wire.payload import encode
from server import tables
from server.intake import take_update
from server.records import NewTask, TaskRecord, UpdateRecord
from server.resources import Resources
from tests.server.host import PATIENCE_SECONDS, make_resources
from tests.server.run_samples import SPEC, A, B
from tests.server.store_samples import NOON, blob, new_client

EXPECTS = {"delta": {"w": TensorSpec((3, 2), "float32")}, "state": {"n": TensorSpec((), "int64")}}
GOOD: Payload = {"delta": {"w": torch.ones(3, 2)}, "state": {"n": torch.tensor(3)}}


def payload(w: torch.Tensor, name: str = "w") -> bytes:
    """GOOD with another delta."""
    return bytes(encode({"delta": {name: w}, "state": GOOD["state"]}))


@dataclass
class Desk:
    """Where updates are taken in, with one open task of a and one of b."""

    resources: Resources
    task: TaskRecord
    other: TaskRecord

    def header(self) -> pb.PushHeader:
        """What a good update begins with."""
        ref = blob_ref(encode(GOOD))
        return pb.PushHeader(
            task_id=self.task.task_id,
            blob=pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes),
        )

    def take(
        self,
        data: bytes | None = None,
        parts: Sequence[bytes] | None = None,
        client: ClientId = A,
        **header: Any,
    ) -> UpdateRecord:
        """Push some bytes, by default a good update."""
        data = bytes(encode(GOOD)) if data is None else data
        ref = blob_ref(data)
        fields: dict[str, Any] = {
            "task_id": self.task.task_id,
            "blob": pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes),
            "num_examples": 60,
            "steps": 5,
            "metrics": {"loss": 0.5},
        }

        async def chunks() -> AsyncIterator[bytes]:
            for part in [data] if parts is None else parts:
                yield part

        async def take() -> UpdateRecord:
            head = pb.PushHeader(**(fields | header))
            told: list[TaskRecord] = []
            _, update = await take_update(
                self.resources, client, head, chunks(), None, int, told.append
            )
            assert [task.task_id for task in told] == [update.task_id]
            return update

        return asyncio.run(asyncio.wait_for(take(), PATIENCE_SECONDS))

    def refused(self, kind: type[CoppiceError], match: str, left: Any = (), **push: Any) -> None:
        """It is refused like this, and nothing is stored but why, where it is an update's fault.

        `left` are the sizes of what waits for the rest of its bytes.
        """
        folder, store = self.resources.blobs.folder, self.resources.store
        with pytest.raises(kind, match=match) as caught:
            self.take(**push)
        refusal = store.refusal(self.task.task_id)
        if kind is UpdateRefused:
            assert refusal is not None
            assert refusal.finding.reason == str(caught.value)
            assert [event.kind for event in store.events(None)] == ["update_refused"]
        else:
            assert refusal is None
            assert store.events(None) == []
        assert self.resources.store.update(self.task.task_id) is None
        assert self.resources.store.update(self.other.task_id) is None
        assert [path.stat().st_size for path in (folder / "partial").iterdir()] == [*left]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    resources = make_resources(tmp_path)
    store = resources.store
    for name in (A, B):
        store.join_client(new_client(name, f"device-{name}"), NOON)
    run_id = store.submit_run(SPEC, NOON)
    store.start_run(run_id, blob("0"), NOON)
    store.open_round(run_id, 1, NOON)
    new = [NewTask(name, TaskKind.TRAIN, blob("b"), None, {}, EXPECTS) for name in (A, B)]
    tasks = store.commit_tasks(run_id, 1, "0" * 64, NOON, new, NOON)
    yield Desk(resources, *tasks)
    resources.threads.close()
    resources.uploads.close()
    store.close()


class TestGood:
    def test_update_is_stored_with_all_that_is_said_of_it(self, desk: Desk) -> None:
        update = desk.take()
        assert desk.resources.store.update(desk.task.task_id) == update
        assert (update.client_id, update.num_examples, update.steps) == (A, 60, 5)
        assert update.metrics == {"loss": 0.5}
        assert not update.counted
        assert desk.resources.blobs.read(update.blob.digest) == encode(GOOD)
        (event,) = desk.resources.store.events(None)
        assert (event.kind, event.client_id, event.text) == (
            "update_stored",
            A,
            "round 1: update of a stored",
        )

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_update_may_come_in_pieces_of_any_size(self, desk: Desk, size: int) -> None:
        data = bytes(encode(GOOD))
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        assert desk.take(parts=[b"", *parts, b""]).blob == blob_ref(data)

    def test_every_piece_is_a_sign_of_life(self, desk: Desk) -> None:
        assert desk.resources.presence.silent_for(A) == float("inf")
        desk.take()
        assert desk.resources.presence.silent_for(A) < PATIENCE_SECONDS


class TestTwice:
    def test_second_push_gets_the_first_receipt_without_its_bytes_being_read(
        self, desk: Desk
    ) -> None:
        first = desk.take()
        assert desk.take(parts=[b"never read"], num_examples=7) == first
        assert len(desk.resources.store.events(None)) == 1

    def test_other_bytes_for_the_same_task_change_nothing(self, desk: Desk) -> None:
        first = desk.take()
        assert desk.take(payload(torch.zeros(3, 2))) == first

    def test_after_the_round_has_closed_the_receipt_is_still_given(self, desk: Desk) -> None:
        first = desk.take()
        desk.resources.store.close_tasks(1, 1, TaskKind.TRAIN, 0, NOON)
        assert desk.take() == first

    def test_two_at_the_same_time_are_stored_once(self, desk: Desk) -> None:
        data, header = bytes(encode(GOOD)), desk.header()

        async def both() -> None:
            async def chunks(started: asyncio.Event, other: asyncio.Event) -> AsyncIterator[bytes]:
                started.set()
                await other.wait()
                yield data

            events = asyncio.Event(), asyncio.Event()
            pushes = [
                take_update(desk.resources, A, header, chunks(*pair), None, int, lambda task: None)
                for pair in (events, events[::-1])
            ]
            results = await asyncio.gather(*pushes, return_exceptions=True)
            stored = [result for result in results if isinstance(result, tuple)]
            broken = [result for result in results if isinstance(result, TransferBroken)]
            assert (len(stored), len(broken)) == (1, 1), "the newer one ends the older"

        asyncio.run(asyncio.wait_for(both(), PATIENCE_SECONDS))
        stored = desk.resources.store.update(desk.task.task_id)
        assert desk.take() == stored
        assert len(desk.resources.store.events(None)) == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"x", "1 bytes are too few for a payload"),
            (bytes(encode(GOOD)) + bytes(8), "is the model the run's"),
            (payload(torch.ones(3, 2), "v"), "delta/v was not asked for"),
            (payload(torch.ones(2, 3)), r"delta/w is float32 \[2, 3\]; the task expects"),
            (payload(torch.ones(3, 2, dtype=torch.int32)), "delta/w is int32"),
            (payload(torch.full((3, 2), float("nan"))), "values that are not finite"),
            (payload(torch.full((3, 2), float("inf"))), "values that are not finite"),
            (bytes(len(encode(GOOD))), "these bytes are not a payload"),
        ],
        ids=["short", "long", "name", "shape", "type", "NaN", "infinite", "garbage"],
    )
    def test_update_that_does_not_fit_its_task(self, desk: Desk, data: bytes, match: str) -> None:
        desk.refused(UpdateRefused, match, data=data)

    def test_a_refused_update_is_kept_with_its_evidence(self, desk: Desk) -> None:
        store, bad = desk.resources.store, payload(torch.full((3, 2), float("nan")))
        desk.refused(UpdateRefused, "not finite", data=bad)
        (refusal,) = store.refusals(1)
        assert (refusal.client_id, refusal.round_number, refusal.task_id) == (A, 1, 1)
        assert (refusal.finding.rule, refusal.blob) == ("structure", blob_ref(bad))
        assert desk.resources.blobs.read(refusal.blob.digest) == bad
        assert refusal.blob.digest in store.live_blobs()
        (client, _) = store.clients()
        assert client.refusals == 1

    def test_a_refused_update_is_the_answer_to_its_task(self, desk: Desk) -> None:
        bad = payload(torch.full((3, 2), float("-inf")))
        for push in ({"data": bad}, {}, {"data": bad}):
            desk.refused(UpdateRefused, "not finite", **push)
        assert len(desk.resources.store.refusals(1)) == 1
        assert desk.resources.store.clients()[0].refusals == 1

    @pytest.mark.parametrize(
        ("claim", "reason"),
        [
            ({"num_examples": 61}, "it claims 61 examples; the client had 60"),
            ({"steps": 6}, "it claims 6 local steps; the task has 5"),
        ],
        ids=["examples", "steps"],
    )
    def test_claims_that_cannot_be(self, desk: Desk, claim: dict[str, int], reason: str) -> None:
        with desk.resources.store._write() as connection:
            connection.execute(update(tables.tasks).values(most_examples=60, most_steps=5))
        desk.refused(UpdateRefused, reason, **claim)
        assert desk.resources.store.refusals(1)[0].finding.rule == "claims"

    @pytest.mark.parametrize("kind", [torch.float16, torch.int8], ids=str)
    def test_values_that_are_not_finite_once_they_are_unfolded(
        self, desk: Desk, kind: torch.dtype
    ) -> None:
        name: Any = str(kind).removeprefix("torch.")
        data = encode(
            {"delta": {"w": torch.full((3, 2), 1e4)}, "state": GOOD["state"]},
            coding={"delta": name},
            generator=torch.Generator(),
        )
        good, huge = {"float16": (1e4, torch.inf), "int8": (1e4 / 127, torch.inf)}[name]
        written = torch.float16 if name == "float16" else torch.float32
        old, new = (bytes(torch.tensor([x], dtype=written).numpy().data) for x in (good, huge))
        assert old in data
        desk.refused(UpdateRefused, "finite|scale", data=bytes(data.replace(old, new)))

    @pytest.mark.parametrize("task_id", [3, 10**9, 2**53, 2**63, 2**64 - 1])
    def test_task_that_never_was(self, desk: Desk, task_id: int) -> None:
        desk.refused(UnknownTask, f"there is no task {task_id}", task_id=task_id)

    def test_task_of_another_client(self, desk: Desk) -> None:
        desk.refused(UnknownTask, "is not a task of b", client=B)

    def test_task_that_is_closed(self, desk: Desk) -> None:
        desk.resources.store.close_tasks(1, 1, TaskKind.TRAIN, 0, NOON)
        desk.refused(RoundClosed, "round 1 is over")

    def test_task_that_is_closed_is_refused_before_its_bytes_are_read(self, desk: Desk) -> None:
        desk.resources.store.close_tasks(1, 1, TaskKind.TRAIN, 0, NOON)
        desk.refused(RoundClosed, "round 1 is over", parts=[bytes(MAX_CHUNK_BYTES + 1)])

    @pytest.mark.parametrize(
        ("header", "match"),
        [
            ({"num_examples": 2**53}, "num_examples is"),
            ({"steps": 2**64 - 1}, "steps is"),
            ({"metrics": {"loss": float("nan")}}, "metric 'loss' is nan; it must be finite"),
            ({"metrics": {"": 1.0}}, "not a valid name"),
            ({"metrics": {f"m{index}": 1.0 for index in range(65)}}, "64 metrics at most"),
            ({"blob": pb.BlobRef(digest="X" * 64, size_bytes=9)}, "64 lower-case"),
            ({"blob": pb.BlobRef(digest="a" * 64, size_bytes=2**64 - 1)}, "size_bytes is"),
        ],
        ids=["examples", "steps", "NaN", "name", "metrics", "digest", "size"],
    )
    def test_header_outside_its_limits(
        self, desk: Desk, header: dict[str, Any], match: str
    ) -> None:
        desk.refused(InvalidMessage, match, **header)

    def test_fewer_bytes_than_announced(self, desk: Desk) -> None:
        data = bytes(encode(GOOD))
        match = f"ended after {len(data) - 1} of {len(data)} bytes"
        desk.refused(TransferBroken, match, parts=[data[:-1]], left=[len(data) - 1])
        desk.refused(TransferBroken, "ended after 0 of", parts=[])

    def test_update_goes_on_only_where_it_ended(self, desk: Desk) -> None:
        data = bytes(encode(GOOD))
        desk.refused(TransferBroken, "has 0 bytes of this update, not 8", offset=8)
        desk.refused(TransferBroken, "ended after 8", parts=[data[:8]], left=[8])
        desk.refused(TransferBroken, "has 8 bytes", parts=[data[9:]], offset=9, left=[8])
        assert desk.take(parts=[data[8:]], offset=8).blob == blob_ref(data)

    def test_more_bytes_than_announced(self, desk: Desk) -> None:
        data = bytes(encode(GOOD))
        desk.refused(InvalidMessage, "more bytes arrive", parts=[data, b"x"])
        desk.refused(InvalidMessage, "more bytes arrive", parts=[data + b"x"])

    def test_other_bytes_than_announced(self, desk: Desk) -> None:
        data = bytes(encode(GOOD))
        damaged = data[:-1] + bytes([data[-1] ^ 1])
        desk.refused(TransferBroken, "arrived damaged", parts=[damaged])

    def test_piece_over_the_limit(self, desk: Desk) -> None:
        desk.refused(
            InvalidMessage,
            f"a chunk may have {MAX_CHUNK_BYTES} bytes at most",
            parts=[bytes(MAX_CHUNK_BYTES + 1)],
        )

    def test_sender_that_breaks_off(self, desk: Desk) -> None:
        header = desk.header()

        async def scene() -> None:
            waiting = asyncio.Event()

            async def chunks() -> AsyncIterator[bytes]:
                yield bytes(8)
                waiting.set()
                await asyncio.Event().wait()

            push = asyncio.create_task(
                take_update(desk.resources, A, header, chunks(), None, int, lambda task: None)
            )
            await waiting.wait()
            push.cancel()
            await asyncio.wait([push])

        asyncio.run(asyncio.wait_for(scene(), PATIENCE_SECONDS))
        assert desk.resources.store.update(desk.task.task_id) is None
        assert desk.resources.uploads.received_bytes(A, blob_from_message(header.blob)) == 8
        desk.take()

    def test_sender_that_breaks_off_while_its_update_is_stored(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        header, store_update = desk.header(), desk.resources.store.store_update
        storing, cut = threading.Event(), threading.Event()

        def slowly(*arguments: Any, **named: Any) -> UpdateRecord:
            storing.set()
            cut.wait(PATIENCE_SECONDS)
            return store_update(*arguments, **named)

        monkeypatch.setattr(desk.resources.store, "store_update", slowly)

        async def scene() -> None:
            told = asyncio.Event()

            async def chunks() -> AsyncIterator[bytes]:
                yield bytes(encode(GOOD))

            push = asyncio.create_task(
                take_update(desk.resources, A, header, chunks(), None, int, lambda task: told.set())
            )
            await asyncio.to_thread(storing.wait, PATIENCE_SECONDS)
            push.cancel()
            await asyncio.wait([push])
            cut.set()
            await told.wait()

        asyncio.run(asyncio.wait_for(scene(), PATIENCE_SECONDS))
        assert desk.resources.store.update(desk.task.task_id) is not None
