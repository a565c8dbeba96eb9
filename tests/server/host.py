"""A server in the test's own event loop, and devices that a test drives call by call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from coppice import errors
from coppice.domain import PROTOCOL_VERSION, ClientId, RunSpec
from coppice.errors import CoppiceError
from coppice.sparse import Item, SparseTensor
from coppice.tensors import DTYPES, Payload, PayloadSpec, TensorSpec
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.capability import capability_to_message
from coppice.wire.chunks import blob_ref
from coppice.wire.coordination_pb2_grpc import CoordinationStub
from coppice.wire.exchange import Known, known_masks
from coppice.wire.status import CLIENT_KEY, ERROR_KEY
from server import run_driver
from server.announcer import Announcer
from server.audit import Audit
from server.blobs import Blobs
from server.callers import Named
from server.coordinator import Coordinator
from server.evaluation import Evaluator
from server.presence import Presence
from server.receipt_key import open_receipt_key
from server.records import NewEvent, RunRecord
from server.resources import Resources
from server.run_driver import RunDriver
from server.service import TRANSPORT_MESSAGE_BYTES, CoordinationService
from server.store import Store
from server.threads import Threads
from server.uploads import Uploads
from tests.server.run_samples import CAPABILITY

#: Longest a test may take; long, because a loaded machine is slow, not wrong.
PATIENCE_SECONDS = 60.0


def make_resources(folder: Path) -> Resources:
    """What the server's parts share, in a folder that may have been used before."""
    for name in ("models", "apps"):
        (folder / name).mkdir(exist_ok=True)
    store = Store(f"sqlite:///{folder / 'store.sqlite'}", durable=False)
    store.migrate()
    blobs = Blobs(folder / "blobs", durable=False)
    return Resources(
        store=store,
        blobs=blobs,
        uploads=Uploads(blobs),
        threads=Threads(),
        presence=Presence(),
        announcer=Announcer(),
        evaluator=Evaluator(),
        models_folder=folder / "models",
        apps_folder=folder / "apps",
    )


class Host:
    """The parts of a server but for the dashboard. Belongs to one event loop."""

    def __init__(self, folder: Path) -> None:
        self.resources = make_resources(folder)
        self.store = self.resources.store
        self.receipt_key = open_receipt_key(folder)
        self.coordinator = Coordinator(self.resources)
        self.events: list[NewEvent] = []
        #: The coordinator's life: what it raises stops a real server.
        self.running: asyncio.Task[None]
        self.address = ""
        self._heard = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Host]:
        """The server is up meanwhile. Leaving is as sudden as it can be."""
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", TRANSPORT_MESSAGE_BYTES)]
        )
        service = CoordinationService(
            self.coordinator,
            Named(),
            self.resources.blobs,
            self.resources.threads,
            "host",
            self.receipt_key,
            Audit(self.resources),
        )
        server.add_generic_rpc_handlers((service.handlers(),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        listening = asyncio.create_task(self._listen())
        await asyncio.sleep(0)
        self.running = asyncio.create_task(self.coordinator.run())
        try:
            yield self
        finally:
            await server.stop(None)
            for task in (self.running, listening):
                task.cancel()
            await asyncio.gather(self.running, listening, return_exceptions=True)
            await self.resources.evaluator.close()
            self.resources.threads.close()
            self.resources.uploads.close()
            self.store.close()

    @property
    def driver(self) -> RunDriver:
        """The driver of the open run."""
        assert self.coordinator._driver is not None
        return self.coordinator._driver

    async def event(self, kind: str, count: int = 1, **fields: Any) -> NewEvent:
        """Wait for the `count`th event like this."""

        def found() -> list[NewEvent]:
            return [
                event
                for event in self.events
                if event.kind == kind
                and all(getattr(event, key) == value for key, value in fields.items())
            ]

        async with self._heard:
            await self._heard.wait_for(lambda: len(found()) >= count)
        return found()[count - 1]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of which no event tells."""
        while not holds():
            await asyncio.sleep(0.001)

    async def holds(self, *names: str) -> None:
        """Wait until the server holds a poll of each of these clients, without an answer."""
        seen = self.resources.presence._seen
        await self.until(
            lambda: all(
                name in seen and seen[name].polls and name in self.coordinator._polls
                for name in map(ClientId, names)
            )
        )

    async def ended(self, run_id: int) -> RunRecord:
        """Wait for the end of a run."""
        await self.event("run_ended", run_id=run_id)
        return self.store.run(run_id)

    async def submit(self, spec: RunSpec) -> int:
        return await self.coordinator.submit(spec)

    @contextlib.asynccontextmanager
    async def devices(self, *names: str) -> AsyncIterator[list[Device]]:
        """Devices that have joined, each with a channel of its own."""
        made = [Device(self, name) for name in names]
        try:
            for device in made:
                await device.join()
            yield made
        finally:
            for device in made:
                await device.close()

    async def _listen(self) -> None:
        with self.resources.announcer.listening() as events:
            async for event in events:
                async with self._heard:
                    self.events.append(event)
                    self._heard.notify_all()


class Device:
    """One caller. What it does wrong, the test told it to do."""

    def __init__(self, host: Host, name: str | None) -> None:
        self.host = host
        self.name = name
        self.run_key = ""
        self.choice: pb.Choice | None = None
        #: Every value of its updates.
        self.value = 0.0
        self._metadata = () if name is None else ((CLIENT_KEY, name),)
        self._channel: Any = grpc.aio.insecure_channel(
            host.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub: Any = CoordinationStub(self._channel)

    async def close(self) -> None:
        """Break every call off."""
        await self._channel.close(None)

    async def call(self, method: str, request: Any) -> Any:
        """The reply; raises what the server raised."""
        try:
            return await getattr(self._stub, method)(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _rebuilt(error) from None

    async def raw(self, method: str, *messages: bytes) -> Any:
        """The reply's bytes to bytes that need not be a message."""
        path = f"/coppice.wire.Coordination/{method}"
        try:
            if method == "PushUpdate":
                return await self._channel.stream_unary(path)(
                    iter(messages), metadata=self._metadata
                )
            return await self._channel.unary_unary(path)(messages[0], metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _rebuilt(error) from None

    async def join(self, **fields: Any) -> pb.JoinReply:
        request: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "device_id": f"device-{self.name}",
            "capability": capability_to_message(CAPABILITY),
        }
        reply: pb.JoinReply = await self.call("Join", pb.JoinRequest(**(request | fields)))
        return reply

    async def poll(self, **fields: Any) -> pb.PollReply:
        """One poll; gets ready for a run that is offered."""
        request: dict[str, Any] = {
            "run_key": self.run_key,
            "num_examples": 30,
            "capability": capability_to_message(CAPABILITY),
            "choice": self.choice,
        }
        reply: pb.PollReply = await self.call("PollTask", pb.PollRequest(**(request | fields)))
        if reply.HasField("run"):
            self.run_key = reply.run.run_key
        return reply

    def polling(self) -> asyncio.Task[pb.PollReply]:
        """A poll that is under way."""
        return asyncio.create_task(self.poll())

    async def task(self) -> pb.TaskOffer:
        """Poll until there is a task."""
        while not (reply := await self.poll()).HasField("task"):
            assert reply.HasField("run") or reply.HasField("wait"), reply
        return reply.task

    async def over(self) -> pb.RunOver:
        """Poll until the run is over."""
        while not (reply := await self.poll()).HasField("over"):
            assert reply.HasField("wait"), reply
        self.run_key = ""
        return reply.over

    async def fetch(self, ref: pb.BlobRef, **fields: Any) -> bytearray:
        request = pb.FetchRequest(**({"digest": ref.digest} | fields))
        data = bytearray()
        try:
            async for chunk in self._stub.FetchBlob(request, metadata=self._metadata):
                data += chunk.data
        except grpc.aio.AioRpcError as error:
            raise _rebuilt(error) from None
        return data

    async def known(self, task: pb.TaskOffer) -> Known:
        """The masks of a task, fetched."""
        if not task.HasField("masks"):
            return {}
        return known_masks(wire.decode(await self.fetch(task.masks)))

    async def push(
        self,
        task: pb.TaskOffer,
        payload: Payload | None = None,
        data: bytes | None = None,
        parts: Iterable[bytes] | None = None,
        **header: Any,
    ) -> pb.Receipt:
        """Answer a task."""
        if data is None:
            expects = self.host.store.task(task.task_id).expects
            known = await self.known(task)
            payload = filled(expects, self.value, known) if payload is None else payload
            data = bytes(wire.encode(payload, known=known))
        ref = blob_ref(data)
        fields: dict[str, Any] = {
            "task_id": task.task_id,
            "blob": pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes),
            "num_examples": 10,
        }
        messages = [pb.PushChunk(header=pb.PushHeader(**(fields | header)))]
        messages += [pb.PushChunk(data=part) for part in (parts or [data])]
        receipt: pb.Receipt = await self.call("PushUpdate", iter(messages))
        return receipt

    async def heartbeat(self, task_id: int = 0, **fields: Any) -> bool:
        reply = await self.call("Heartbeat", pb.HeartbeatRequest(task_id=task_id, **fields))
        return bool(reply.wanted)

    async def leave(self, reason: str = "") -> None:
        await self.call("Leave", pb.LeaveRequest(reason=reason))

    async def work(self) -> pb.RunOver:
        """Answer every task until the run is over."""
        while not (reply := await self.poll()).HasField("over"):
            if reply.HasField("task"):
                with contextlib.suppress(errors.RoundClosed):
                    await self.push(reply.task, metrics={"accuracy": 0.5})
        self.run_key = ""
        return reply.over


def sweep_everything(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on sweeps spare no blob for its youth; the list grows with each that is done.

    A device must not answer before that: its update's bytes would go too.
    """
    done: list[int] = []
    sweep = RunDriver._sweep

    async def noted(self: RunDriver) -> None:
        await sweep(self)
        done.append(self.machine.round_number)

    monkeypatch.setattr(run_driver, "_SWEEP_AGE_SECONDS", -1.0)
    monkeypatch.setattr(RunDriver, "_sweep", noted)
    return done


def filled(expects: PayloadSpec, value: float, known: Known | None = None) -> Payload:
    """What a task expects, with the same value everywhere; `known` has the masks that it names."""

    def item(spec: TensorSpec) -> Item:
        shape = spec.shape if spec.ones is None else (spec.ones,)
        values = torch.full(shape, value, dtype=DTYPES[spec.dtype])
        return values if spec.mask is None else SparseTensor((known or {})[spec.mask], values)

    return {
        group: {name: item(spec) for name, spec in specs.items()}
        for group, specs in expects.items()
    }


def play(folder: Path, *scenes: Callable[[Host], Awaitable[None]]) -> None:
    """Play each scene with a fresh server on the same folder: between two it was killed."""

    async def all_scenes() -> None:
        for scene in scenes:
            async with asyncio.timeout(PATIENCE_SECONDS), Host(folder).open() as host:
                await scene(host)

    asyncio.run(all_scenes())


def _rebuilt(error: grpc.aio.AioRpcError) -> CoppiceError:
    """What the server raised. An aio error has the fields of a call, but not its class."""
    metadata: Any = error.trailing_metadata()
    for key, value in metadata:
        if key == ERROR_KEY:
            kind: type[CoppiceError] = getattr(errors, str(value))
            return kind(error.details() or "")
    raise error
