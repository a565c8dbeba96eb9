"""A fake server, a device in a thread of the test, and the real program beside it."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coppice.domain import PROTOCOL_VERSION, ClientId
from coppice.wire import coordination_pb2 as pb
from edge_client.backoff import Backoff
from edge_client.connection import Connection
from edge_client.console import Console
from edge_client.journal import Journal
from edge_client.link import Link
from edge_client.loop import Device, Plan
from edge_client.state_folder import StateFolder
from edge_client.status import Status, StatusFile
from edge_client.stop import Stop
from tests.edge_client.fake_server import PATIENCE_SECONDS, FakeServer

ROOT = Path(__file__).parents[2]


class NoWait(random.Random):
    """Chance that never lets anyone wait, and counts how often it was asked."""

    asked = 0

    def uniform(self, a: float, b: float) -> float:
        self.asked += 1
        return 0.0


class ThreadedDevice:
    """The objects of one device, as `edge_client.join` builds them, living in a thread."""

    def __init__(self, server: FakeServer, folder: StateFolder, data: Path) -> None:
        self.folder = folder
        self.stop = Stop()
        self.out = io.StringIO()
        self.plan = Plan(
            client_id=ClientId("kitchen"),
            data=data,
            app=None,
            app_digest="",
            num_threads=1,
            kernels=True,
            outbox="always",
            once=False,
        )
        self.status = StatusFile(
            folder.status, Status(pid=1, server=server.address, name="kitchen")
        )
        self.journal = Journal(Console(self.out), self.status)
        self.connection = Connection(server.address, "kitchen", self.stop)
        request = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, device_id="1" * 32)
        self.link = Link(self.connection, request, self.stop, self.journal, Backoff(NoWait()))
        self.refusals = NoWait()
        self._pool = ThreadPoolExecutor(1)
        self._life: Future[int] | None = None

    @property
    def printed(self) -> str:
        return self.out.getvalue()

    def start(self, **changes: Any) -> Future[int]:
        """Live; `changes` are to the plan."""
        self.plan = replace(self.plan, **changes)
        self._life = self._pool.submit(self._live)
        return self._life

    def _live(self) -> int:
        with self.link as link:
            link.meet(0.0)
            with Device(self.plan, link, self.folder, self.stop, self.journal) as device:
                device._wait_after_refusal = Backoff(self.refusals)
                return device.live(pb.PollReply())

    def end(self) -> None:
        self.stop.request()
        if self._life is not None:
            self._life.exception(PATIENCE_SECONDS)
        self._pool.shutdown()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty examples for the workload of the fake server: 30 to train on, 10 held out."""
    path = tmp_path / "data.npz"
    chance = np.random.default_rng(0)
    np.savez(path, x=chance.normal(size=(40, 4)).astype(np.float32), y=np.arange(40) % 2)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state")
    state.make()
    return state


@pytest.fixture
def device(server: FakeServer, folder: StateFolder, data: Path) -> Iterator[ThreadedDevice]:
    threads = torch.get_num_threads()
    built = ThreadedDevice(server, folder, data)
    yield built
    built.end()
    torch.set_num_threads(threads)


@pytest.fixture
def fedclient(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the real program; what still runs at the end of the test is killed."""
    with ExitStack() as started:

        def start(*arguments: str | Path, **env: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge_client", *map(str, arguments)],
                cwd=ROOT,
                env={"XDG_STATE_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1", **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start
