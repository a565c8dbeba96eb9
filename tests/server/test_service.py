"""The calls on the wire: what is refused, how that is counted, and what devices are told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from coppice.errors import (
    CoppiceError,
    DiskFull,
    InvalidMessage,
    NotJoined,
    ProtocolMismatch,
    ServerBusy,
    StoreUnusable,
    UnknownBlob,
)
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import (
    FIRST_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    MIN_CHUNK_BYTES,
)
from server.presence import HEARTBEAT_SECONDS
from server.service import TRANSPORT_MESSAGE_BYTES
from tests.server.host import Device, Host, play
from tests.server.run_samples import A, B, run_spec


class TestJoin:
    def test_tells_name_and_heartbeat_and_stores_the_device(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                reply = await a.join(labels={"room": "7"}, software="s" * 1000, app_digest="e" * 64)
                assert (reply.server_name, reply.heartbeat_seconds) == ("host", HEARTBEAT_SECONDS)
                (client,) = host.store.clients()
                assert client.client_id == A
                assert client.labels == {"room": "7"}
                assert client.capability.machine == "aarch64"
                assert client.software == "s" * 500
                assert client.app_digest == "e" * 64

        play(tmp_path, scene)

    @pytest.mark.parametrize("version", [0, 1, 2, 2**32 - 1])
    def test_of_another_protocol_names_both(self, tmp_path: Path, version: int) -> None:
        async def scene(host: Host) -> None:
            device = Device(host, "a")
            with pytest.raises(ProtocolMismatch) as caught:
                await device.join(protocol_version=version)
            assert str(caught.value) == (
                f"this server speaks protocol 3, the device {version}: "
                "install the same version of coppice on both"
            )
            await device.close()
            assert host.store.clients() == []

        play(tmp_path, scene)

    @pytest.mark.parametrize(
        "fields",
        [
            {"device_id": ""},
            {"device_id": "1234567"},
            {"device_id": "x" * 65},
            {"app_digest": "E" * 64},
            {"app_digest": "e" * 63},
            {"labels": {f"key {index}": "" for index in range(33)}},
            {"labels": {"": "x"}},
            {"labels": {"key": "x" * 64}},
            {"labels": {"k\n": "x"}},
            {"capability": pb.Capability(memory_bytes=2**53)},
            {"capability": pb.Capability(machine="x" * 64)},
        ],
        ids=str,
    )
    def test_outside_its_limits_is_refused(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        async def scene(host: Host) -> None:
            device = Device(host, "a")
            with pytest.raises(InvalidMessage):
                await device.join(**fields)
            await device.close()
            assert host.store.clients() == []

        play(tmp_path, scene)


class TestCaller:
    @pytest.mark.parametrize("name", [None, "", "-a", "a b", "x" * 64, "../a"])
    def test_without_a_valid_name_is_refused(self, tmp_path: Path, name: str | None) -> None:
        async def scene(host: Host) -> None:
            device = Device(host, name)
            with pytest.raises(NotJoined, match="no valid 'coppice-client' in its metadata"):
                await device.join(device_id="device-1")
            await device.close()
            assert host.coordinator.snapshot().refusals == 1

        play(tmp_path, scene)


class TestPoll:
    @pytest.mark.parametrize(
        "fields",
        [
            {"run_key": "1"},
            {"run_key": "../../x-0123456789abcdef"},
            {"run_key": "9" * 16 + "-0123456789abcdef"},
            {"num_examples": 2**53},
            {"capability": pb.Capability(memory_bytes=2**64 - 1)},
            {"choice": pb.Choice(values_json="{")},
            {"choice": pb.Choice(values_json='{"x": "' + "y" * 2**16 + '"}')},
        ],
        ids=["number", "path", "largest", "examples", "memory", "choice", "long choice"],
    )
    def test_outside_its_limits_is_refused(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                with pytest.raises(InvalidMessage):
                    await a.poll(**fields)

        play(tmp_path, scene)


class TestFetch:
    def test_chunks_are_bounded_whatever_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            ref = host.resources.blobs.put(bytes(3 * MAX_CHUNK_BYTES + 1))
            monkeypatch.setattr(host.coordinator, "may_fetch", lambda *_: None)
            async with host.devices("a") as (a,):
                for asked, size in (
                    (0, FIRST_CHUNK_BYTES),
                    (1, MIN_CHUNK_BYTES),
                    (2**18, 2**18),
                    (2**32 - 1, MAX_CHUNK_BYTES),
                ):
                    request = pb.FetchRequest(digest=ref.digest, chunk_bytes=asked)
                    stream = a._stub.FetchBlob(request, metadata=a._metadata)
                    assert len((await stream.read()).data) == size
                    stream.cancel()

        play(tmp_path, scene)

    def test_goes_on_from_an_offset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scene(host: Host) -> None:
            data = bytes(range(256)) * 1000
            ref = host.resources.blobs.put(data)
            wire = pb.BlobRef(digest=ref.digest)
            monkeypatch.setattr(host.coordinator, "may_fetch", lambda *_: None)
            async with host.devices("a") as (a,):
                assert await a.fetch(wire) == data
                assert await a.fetch(wire, offset=1234) == data[1234:]
                assert await a.fetch(wire, offset=len(data)) == b""
                for offset in (len(data) + 1, 2**63, 2**64 - 1):
                    with pytest.raises(InvalidMessage, match="the blob has 256000 bytes"):
                        await a.fetch(wire, offset=offset)

        play(tmp_path, scene)

    @pytest.mark.parametrize("digest", ["", "x", "A" * 64, "../" + "a" * 61])
    def test_of_no_digest_is_refused(self, tmp_path: Path, digest: str) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                with pytest.raises(InvalidMessage, match="64 lower-case hexadecimal digits"):
                    await a.fetch(pb.BlobRef(digest=digest))

        play(tmp_path, scene)


class TestMessages:
    @pytest.mark.parametrize("method", ["Join", "PollTask", "Heartbeat", "Leave", "PushUpdate"])
    def test_that_are_garbage_are_refused(self, tmp_path: Path, method: str) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                with pytest.raises(InvalidMessage, match="the bytes are not a "):
                    await a.raw(method, b"\xff\xff\xff")
                assert host.store.clients()[0].refusals == 1

        play(tmp_path, scene)

    @pytest.mark.parametrize("method", ["Join", "PushUpdate"])
    def test_over_the_limit_are_refused_by_name(self, tmp_path: Path, method: str) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                with pytest.raises(InvalidMessage, match=f"allowed are {MAX_MESSAGE_BYTES} at"):
                    await a.raw(method, bytes(MAX_MESSAGE_BYTES + 1))

        play(tmp_path, scene)

    def test_over_the_transport_s_limit_do_not_even_arrive(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await a.raw("Join", bytes(TRANSPORT_MESSAGE_BYTES + 1))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert await a.heartbeat()

        play(tmp_path, scene)

    def test_of_a_push_come_in_order(self, tmp_path: Path) -> None:
        header = pb.PushChunk(header=pb.PushHeader(task_id=1)).SerializeToString()
        data = pb.PushChunk(data=b"x").SerializeToString()

        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                for first in ([], [data], [b""]):
                    with pytest.raises(InvalidMessage, match="the first message of a push"):
                        await a.raw("PushUpdate", *first)
                await host.submit(run_spec(size=1))
                task = await a.task()
                for second in (header, b""):
                    parts = [
                        pb.PushChunk(header=_header(host, task)).SerializeToString(),
                        data,
                        second,
                    ]
                    with pytest.raises(InvalidMessage, match="only data may follow"):
                        await a.raw("PushUpdate", *parts)

        play(tmp_path, scene)


def _header(host: Host, task: pb.TaskOffer) -> pb.PushHeader:
    from coppice.wire.header import encoded_size_bytes

    size = encoded_size_bytes(host.store.task(task.task_id).expects)
    return pb.PushHeader(task_id=task.task_id, blob=pb.BlobRef(digest="0" * 64, size_bytes=size))


class TestRefusals:
    def test_are_counted_always_and_logged_once_for_each_kind(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a") as (a,):
                for _ in range(3):
                    with pytest.raises(InvalidMessage):
                        await a.raw("Heartbeat", b"\xff")
                with pytest.raises(InvalidMessage):
                    await a.fetch(pb.BlobRef(digest="x"))
                assert host.store.clients()[0].refusals == 4
                assert host.coordinator.snapshot().refusals == 4
                logged = [
                    event for event in host.store.events(None) if event.kind == "call_refused"
                ]
                assert [event.client_id for event in logged] == [A, A]
                assert logged[0].text == "refused a: the bytes are not a HeartbeatRequest"

        play(tmp_path, scene)

    def test_who_makes_up_ever_new_kinds_does_not_fill_the_log_of_others(
        self, tmp_path: Path
    ) -> None:
        async def scene(host: Host) -> None:
            async with host.devices("a", "b") as (a, b):
                for device, count in ((a, 103), (b, 1)):
                    for number in range(count):
                        with pytest.raises(UnknownBlob):
                            await device.fetch(pb.BlobRef(digest=f"{number:012}{0:052}"))
                logged = [
                    event.client_id
                    for event in host.store.events(None)
                    if event.kind == "call_refused"
                ]
                assert logged == [A] * 100 + [B]
                assert host.coordinator.snapshot().refusals == 104

        play(tmp_path, scene)

    def test_of_strangers_are_one_line_whatever_they_call_themselves(self, tmp_path: Path) -> None:
        async def scene(host: Host) -> None:
            for name in ("x", "y", "z"):
                device = Device(host, name)
                with pytest.raises(NotJoined):
                    await device.heartbeat()
                await device.close()
            logged = [event for event in host.store.events(None) if event.kind == "call_refused"]
            assert [(event.client_id, event.text) for event in logged] == [
                (None, "refused x: x has not joined this server")
            ]
            assert host.coordinator.snapshot().refusals == 3

        play(tmp_path, scene)


class TestStoreThatFails:
    @pytest.mark.parametrize("kind", [DiskFull, StoreUnusable])
    def test_stops_the_server_and_sends_devices_away_for_now(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CoppiceError]
    ) -> None:
        async def scene(host: Host) -> None:
            def fail(*_: Any, **__: Any) -> None:
                raise kind("the disk")

            async with host.devices("a") as (a,):
                monkeypatch.setattr(host.store, "leave_client", fail)
                with pytest.raises(ServerBusy, match="cannot store anything"):
                    await a.leave()
                with pytest.raises(kind, match="the disk"):
                    await host.running
                assert host.store.clients()[0].refusals == 0

        play(tmp_path, scene)

    def test_even_while_a_refusal_is_noted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scene(host: Host) -> None:
            def fail(*_: Any, **__: Any) -> None:
                raise DiskFull("the disk")

            async with host.devices("a") as (a,):
                monkeypatch.setattr(host.store, "count_refusal", fail)
                with pytest.raises(ServerBusy):
                    await a.raw("Heartbeat", b"\xff")
                with pytest.raises(DiskFull):
                    await host.running

        play(tmp_path, scene)


def test_heartbeats_go_on_while_the_server_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(host: Host) -> None:
        async with host.devices("a") as (a,):
            hold = asyncio.Event()
            loop = asyncio.get_running_loop()
            busy = asyncio.create_task(
                host.resources.threads.compute(
                    lambda: asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(30)
                )
            )
            for _ in range(10):
                assert await a.heartbeat()
            assert not busy.done()
            hold.set()
            await busy

    play(tmp_path, scene)
