"""A real coordinator with its page, and devices that compute nothing, for the dashboard's tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvicorn

from coppice.domain import Capability, ClientId, Forecast, Metrics, RoundReport, TaskKind
from coppice.tensors import DTYPES
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.chunks import blob_ref
from coppice.wire.codec import blob_to_message
from server.access import Access
from server.announcer import Announcer
from server.answers import CheckIn, EndedRun, OpenRun
from server.blobs import Blobs
from server.coordinator import Coordinator
from server.dashboard.api import make_app
from server.evaluation import Evaluator
from server.presence import Presence
from server.records import ClientRecord, TaskRecord
from server.resources import Resources
from server.run_file import parse_run_file
from server.store import Store
from server.submission import submit
from server.threads import Threads
from server.uploads import Uploads

#: Longest wait for anything that should happen; long, because a loaded machine is slow, not wrong.
PATIENCE_SECONDS = 30.0

RUN_FILE = """
name = "digits"
[model]
name = "mlp"
hidden = [4]
[data]
classes = ["left", "right"]
input_shape = [3]
[method]
name = "fedavg"
local_steps = 1
[cohort]
size = 3
[evaluation]
on_clients = true
[stop]
rounds = 4
"""

SPEC = parse_run_file(RUN_FILE, Path()).spec

CAPABILITY = Capability(memory_bytes=2_000_000_000, num_threads=4, machine="aarch64")

T = TypeVar("T")


def client(name: str, **fields: Any) -> ClientRecord:
    """A client that has joined, but for what `fields` say."""
    record: dict[str, Any] = {
        "client_id": ClientId(name),
        "device_id": f"device of {name}",
        "labels": {"site": "barn"},
        "capability": CAPABILITY,
        "app_digest": "",
        "software": "coppice 0.1.0",
        "joined_at": 1e9,
        "left_at": None,
        "left_reason": "",
        "refusals": 0,
    }
    return ClientRecord(**(record | fields))


def report(task: TaskRecord) -> RoundReport:
    """What a device says of the round of a task: slower from round to round."""
    return RoundReport(
        round_number=task.round_number,
        steps=task.round_number + 10,
        density=0.25,
        download_seconds=0.5,
        compute_seconds=12.0 + task.round_number,
        upload_seconds=0.75,
        peak_bytes=312_000_000,
        budget_bytes=400_000_000,
        bound_by="memory.max of /coppice",
        forecast=Forecast(0.25, 11.5, 1.25, 305_000_000, "memory"),
    )


def measured(task: TaskRecord) -> Metrics:
    """What a device says of its work: it gets better from round to round."""
    if task.kind is TaskKind.TRAIN:
        return {"loss": 2.0 / (1 + task.round_number)}
    return {"accuracy": 1 - 0.8 / (1 + task.round_number), "loss": 2.1 / (1 + task.round_number)}


class Stage:
    """The parts of a server that a page needs. Belongs to one event loop."""

    def __init__(self, folder: Path, *, has_login: bool = False) -> None:
        (folder / "models").mkdir(exist_ok=True)
        store = Store(f"sqlite:///{folder / 'store.sqlite'}", durable=False)
        store.migrate()
        blobs = Blobs(folder / "blobs", durable=False)
        self.resources = Resources(
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
        self.store = store
        self.coordinator = Coordinator(self.resources)
        self.access = Access(self.resources) if has_login else None
        self.app = make_app(
            self.coordinator,
            self.resources,
            partial(submit, self.resources, self.coordinator),
            access=self.access,
        )
        #: How many pieces of work the devices may still hand in.
        self.turns = asyncio.Semaphore(0)
        self._devices: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def playing(self) -> AsyncIterator[Stage]:
        """The coordinator runs meanwhile."""
        running = asyncio.create_task(self.coordinator.run())
        try:
            yield self
        finally:
            self.resources.announcer.close()
            tasks = [running, *self._devices]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.resources.threads.close()
            self.resources.uploads.close()
            self.store.close()

    async def enter(self, *names: str, **fields: Any) -> None:
        """Devices join, and poll until the end."""
        for name in names:
            record = client(name, **fields)
            await self.coordinator.join(record)
            self._devices.add(asyncio.create_task(self._work(record)))

    def let(self, pieces_of_work: int) -> None:
        """Allow the devices to hand in so much more."""
        for _ in range(pieces_of_work):
            self.turns.release()

    async def ended(self, run_id: int) -> None:
        """Wait until a run is over."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with self.resources.announcer.listening() as events:
                async for event in events:
                    if event.kind == "run_ended" and event.run_id == run_id:
                        return

    async def _work(self, record: ClientRecord) -> None:
        run_key, last = "", None
        while True:
            check_in = CheckIn(record.client_id, run_key, 10, record.capability, "", None, last)
            answer, last = await self.coordinator.poll(check_in), None
            match answer:
                case OpenRun(run):
                    run_key = run.key
                case EndedRun():
                    run_key = ""
                case TaskRecord() as task:
                    await self.turns.acquire()
                    await self._answer(record.client_id, task)
                    last = report(task) if task.kind is TaskKind.TRAIN else None

    async def _answer(self, client_id: ClientId, task: TaskRecord) -> None:
        payload = {
            group: {
                name: torch.zeros(spec.shape, dtype=DTYPES[spec.dtype])
                for name, spec in tensors.items()
            }
            for group, tensors in task.expects.items()
        }
        data = wire.encode(payload)
        header = pb.PushHeader(
            task_id=task.task_id,
            blob=blob_to_message(blob_ref(data)),
            num_examples=10,
            steps=1,
            metrics=measured(task),
        )

        async def chunks() -> AsyncIterator[bytes]:
            yield bytes(data)

        await self.coordinator.push(client_id, header, chunks())


class Theatre:
    """A stage behind a real web server, in a thread of its own."""

    def __init__(self, folder: Path, *, has_login: bool = False) -> None:
        self._folder = folder
        self._has_login = has_login
        self._up = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def do(self, work: Callable[[Stage], Coroutine[Any, Any, T]]) -> T:
        """Have something done in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(self.stage), self._loop).result(
            PATIENCE_SECONDS
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[Theatre]:
        """The server is up meanwhile. It can be opened again, at the same address."""
        thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        thread.start()
        try:
            assert self._up.wait(PATIENCE_SECONDS)
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._close)
            thread.join(PATIENCE_SECONDS)
            self._up.clear()

    def _close(self) -> None:
        self.stage.resources.announcer.close()
        self._web.should_exit = True

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.stage = Stage(self._folder, has_login=self._has_login)
        # asyncio switches Nagle's delay off only where the protocol is named.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.stage.app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        self._web = uvicorn.Server(config)
        async with self.stage.playing():
            self._up.set()
            await self._web.serve([listener])
