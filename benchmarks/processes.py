"""Real servers and clients for scenarios: started, watched and ended as processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from server.api_client import ApiClient, find_server
from server.config import WHERE_FILE

_START_SECONDS = 120.0
_GOODBYE_SECONDS = 20.0
_GLANCE_SECONDS = 0.2


@dataclass(frozen=True)
class RunningServer:
    """A `fedserver start` of this machine."""

    #: HOST:PORT for devices.
    address: str
    api: ApiClient
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def token(self, uses: int) -> str:
        """For so many devices to join with."""
        return str(self.api.post("/tokens", {"uses": uses, "valid_seconds": 3600.0})["token"])

    def wait_for_clients(self, count: int) -> None:
        """Until so many have joined, so that the first round has them all."""
        end = time.monotonic() + _START_SECONDS
        while len(self.api.get("/clients")) < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{count} clients did not join")
            time.sleep(_GLANCE_SECONDS)

    def wait_until_ended(self, run_id: int, seconds: float) -> dict[str, Any]:
        """The run's record once it has ended; RuntimeError when that takes too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run: dict[str, Any] = self.api.get(f"/runs/{run_id}")
            if run["ended_at"] is not None:
                if run["state"] != "finished":
                    raise RuntimeError(f"run {run_id} {run['state']}: {run['reason']}")
                return run
            time.sleep(_GLANCE_SECONDS)
        raise RuntimeError(f"run {run_id} took more than {seconds:.0f} s")


@contextmanager
def server(folder: Path, *flags: str, secure: bool = False) -> Iterator[RunningServer]:
    """A server on free ports, with its data in `folder`; a secure one lets in who has a token."""
    loopback = "127.0.0.1:0"
    ports = ("--listen", loopback, "--dashboard", loopback)
    access = ("--enrolment", loopback) if secure else ("--insecure",)
    arguments = ("--data", str(folder), *ports, *access, *flags)
    with started(folder.with_suffix(".log"), "server", "start", *arguments) as process:
        where = folder / WHERE_FILE
        end = time.monotonic() + _START_SECONDS
        while not where.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start; see {folder.with_suffix('.log')}")
            time.sleep(0.05)
        address = json.loads(where.read_text())["grpc"]
        api = ApiClient(find_server(None, folder))
        yield RunningServer(address, api, psutil.Process(process.pid))


@contextmanager
def started(log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module …` with its output in a file; ends with the block."""
    with running(log, sys.executable, "-m", module, *arguments) as process:
        yield process


@contextmanager
def running(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command with its output in a file; ends with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_GOODBYE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def all_started(log: Path, commands: Sequence[tuple[str, ...]]) -> Iterator[None]:
    """Several of them at once."""
    with ExitStack() as stack:
        for command in commands:
            stack.enter_context(started(log, *command))
        yield
