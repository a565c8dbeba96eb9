"""Hostile payloads, messages, requests and bytes: to all that reads them, and to a real server."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import torch

from benchmarks.fuzzing_calls import Calls, HostileDevice, fuzz_enrolment
from benchmarks.fuzzing_http import HttpFuzzer, fuzz_sockets
from benchmarks.fuzzing_readers import signing_requests
from benchmarks.fuzzing_tally import Tally, Watch
from benchmarks.processes import started
from coppice.domain import ClientId
from coppice.join_token import parse_token
from coppice.table import table
from coppice.tensors import dense_group
from coppice.wire.payload import decode, encode
from edge_client.enrolment import enrol
from edge_client.state_folder import StateFolder
from server.api_client import ApiClient, find_server
from server.config import AUTHORITY_FILE, WHERE_FILE

DESCRIPTION = "hostile payloads and messages, to all that reads them and to a real server"

_START_SECONDS = 120.0
_ROUND_SECONDS = 120.0
#: A reader that hangs in code that no signal reaches ends with its process.
_SECONDS_PER_READER_CASE = 0.1
#: Shares of all cases; the rest is of readers.
_DEVICES, _STRANGERS, _HTTP, _SOCKETS = 0.2, 0.05, 0.08, 0.02
_NUM_DEVICES = 2

_RUN = """\
name = "{name}"
model = {{ name = "mlp", hidden = [4] }}
method = {{ name = "fedavg", local_steps = 1, batch_size = 4 }}
cohort = {{ size = {size}, quorum = 1, deadline_seconds = {deadline}, gather_seconds = 1 }}
protection = {{ strikes = 0 }}
stop = {{ rounds = {rounds} }}
[data]
classes = ["a", "b"]
input_shape = [4]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--cases", type=int, default=100_000, help="of all surfaces together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("readers", "server"), help="one part; both unless given")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Readers first, then a server. Returns a case a surface; exits with what was found."""
    wire = (_DEVICES, _STRANGERS, _HTTP, _SOCKETS)
    in_process = arguments.cases - sum(int(share * arguments.cases) for share in wire)
    began = time.monotonic()
    cases: list[dict[str, Any]] = []
    if arguments.only != "server":
        cases += _read(in_process, arguments.seed)
    if arguments.only != "readers":
        with tempfile.TemporaryDirectory() as text:
            cases += _serve(Path(text), arguments.cases, arguments.seed)
    _show(cases, time.monotonic() - began)
    findings = [finding for case in cases for finding in case["findings"]]
    if findings:
        raise SystemExit("\n".join(["", "found:", *findings]))
    return cases


def _show(cases: Sequence[dict[str, Any]], seconds: float) -> None:
    rows = [
        (
            case["surface"], sum(_counts(case)), *_counts(case),
            f"{case['held']['warm_mb']:.0f}", f"{case['held']['end_mb']:.0f}",
            f"{case['held']['mb_per_1000_cases']:.3f}",
        )
        for case in cases
    ]  # fmt: skip
    total = [sum(column) for column in zip(*map(_counts, cases), strict=True)]
    rows.append(("all", sum(total), *total, "", "", ""))
    head = ("surface", "cases", "accepted", "refused", "crashes", "hangs")
    print(table((*head, "MB warm", "MB end", "MB/1000"), rows))
    held = cases[-1]["held"]
    if "sockets" not in {case["surface"] for case in cases}:
        return
    print(
        f"\nseconds {seconds:.0f}; threads of the server {held['warm_threads']} and "
        f"{held['end_threads']}, its files {held['warm_files']} and {held['end_files']}; "
        "then an honest device finished a round on it"
    )


def _counts(case: dict[str, Any]) -> tuple[int, int, int, int]:
    return case["accepted"], case["refused"], case["crashes"], case["hangs"]


# ---- readers -----------------------------------------------------------------------------------


def _read(cases: int, seed: int) -> list[dict[str, Any]]:
    """The cases of everything that reads bytes, in a process of its own."""
    module = ("-m", "benchmarks.fuzzing_readers", "--cases", str(cases), "--seed", str(seed))
    limit = 60.0 + _SECONDS_PER_READER_CASE * cases
    done = subprocess.run(
        [sys.executable, *module], stdout=subprocess.PIPE, timeout=limit, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"a reader ended its process: {done.returncode}")
    result = json.loads(done.stdout)
    return [{**tally, "held": result["held"]} for tally in result["tallies"]]


# ---- a server ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    """A server with TLS, as `fedserver start` starts it."""

    folder: Path
    log: Path
    api: ApiClient
    process: psutil.Process
    address: str
    enrolment: str
    dashboard_port: int

    @property
    def authority(self) -> bytes:
        return (self.folder / AUTHORITY_FILE).read_bytes()


@contextmanager
def _server(folder: Path) -> Iterator[_Server]:
    data, log = folder / "server", folder / "server.log"
    anywhere = ("--listen", "--enrolment", "--dashboard")
    ports = [word for flag in anywhere for word in (flag, "127.0.0.1:0")]
    # Else most calls there would only be told that they are too many.
    flags = (*ports, "--enrolment-calls", "1000000")
    with started(log, "server", "start", "--data", str(data), *flags) as process:
        end = time.monotonic() + _START_SECONDS
        while not (data / WHERE_FILE).exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)
        told = json.loads((data / WHERE_FILE).read_text())
        api = ApiClient(find_server(None, data))
        port = int(told["dashboard"].rpartition(":")[2])
        watched = psutil.Process(process.pid)
        yield _Server(data, log, api, watched, told["grpc"], told["enrolment"], port)


def _serve(folder: Path, cases: int, seed: int) -> list[dict[str, Any]]:
    with _server(folder) as server:
        text = _RUN.format(name="fuzz", size=_NUM_DEVICES, deadline=2, rounds=10**6)
        run_id = server.api.post("/runs", {"toml": text, "folder": str(folder)})["run_id"]
        watch = Watch(server.process)
        works, tallies, devices = _works(server, folder, cases, seed)
        with ThreadPoolExecutor(len(works)) as threads, watch.watching():
            for done in [threads.submit(work) for work in works]:
                done.result()
        for device in devices:
            device.leave()
        watch.sample()
        held = watch.told(sum(tally.cases for tally in tallies))
        log = server.log.read_text()
        if "Traceback" in log:
            tallies[0].crash("the server's log", log[log.index("Traceback") :][:2000])
        _stop_all(server.api, run_id)
        _finish_a_round(server, folder)
    merged: dict[str, Tally] = {}
    for tally in tallies:
        merged.setdefault(tally.surface, Tally(tally.surface)).add(tally)
    return [{**vars(tally), "held": held} for tally in merged.values()]


def _works(
    server: _Server, folder: Path, cases: int, seed: int
) -> tuple[list[Callable[[], None]], list[Tally], list[HostileDevice]]:
    """What is done at the same time, and where it is counted."""
    works: list[Callable[[], None]] = []
    tallies: list[Tally] = []
    devices: list[HostileDevice] = []

    def add(surface: str, number: int, share: float, work: Callable[..., None]) -> Tally:
        tally, most = Tally(surface), int(share * cases)
        chance = random.Random(f"{seed} {surface} {number}")
        tallies.append(tally)
        works.append(lambda: work(tally, chance, most))
        return tally

    for number in range(_NUM_DEVICES):
        credentials = _certificate(server, folder / f"mallory-{number}", f"mallory-{number}")

        def as_device(
            tally: Tally, chance: random.Random, most: int, shown: Any = credentials
        ) -> None:
            device = HostileDevice(Calls(server.address, shown, "Coordination", tally), chance)
            devices.append(device)
            device.fuzz(most, _idle_update)

        add("Coordination, over TLS", number, _DEVICES / _NUM_DEVICES, as_device)
    made = server.api.post("/tokens", {"uses": 100, "valid_seconds": 3600.0})
    secret, requests = parse_token(made["token"]).secret, signing_requests()

    def as_stranger(tally: Tally, chance: random.Random, most: int) -> None:
        credentials = grpc.ssl_channel_credentials(server.authority)
        calls = Calls(server.enrolment, credentials, "Enrolment", tally)
        fuzz_enrolment(calls, chance, most, secret, requests)
        calls.close()

    add("Enrolment, over TLS", 0, _STRANGERS, as_stranger)
    operator = server.api.post("/access", {"name": "fuzz-tool", "role": "operator"})["token"]
    port = server.dashboard_port
    add("HTTP API", 0, _HTTP, lambda t, c, n: HttpFuzzer(port, operator, c, t).fuzz(n))
    ports = [port, *(int(at.rpartition(":")[2]) for at in (server.address, server.enrolment))]
    add("sockets", 0, _SOCKETS, lambda t, c, n: fuzz_sockets(ports, server.authority, c, t, n))
    return works, tallies, devices


def _certificate(server: _Server, folder: Path, name: str) -> grpc.ChannelCredentials:
    """What a device shows that was let in honestly."""
    made = server.api.post("/tokens", {"uses": 1, "valid_seconds": 3600.0})
    folder.mkdir()
    state = StateFolder(folder)
    membership = enrol(state, "127.0.0.1", parse_token(made["token"]), ClientId(name))
    return grpc.ssl_channel_credentials(
        membership.authority.encode(), state.key.read_bytes(), membership.certificate.encode()
    )


def _idle_update(task: bytes) -> bytes:
    """FedAvg's answer of a device that trained nothing."""
    parameters = dense_group(decode(bytearray(task)), "parameters")
    return bytes(encode({"delta": {name: torch.zeros_like(t) for name, t in parameters.items()}}))


def _stop_all(api: ApiClient, run_id: int) -> None:
    """The fuzzer's run, and those that it may have queued."""
    for run in reversed(api.get("/runs")):
        if run["ended_at"] is None:
            api.post(f"/runs/{run['run_id']}/stop", {})
    _until_ended(api, run_id)


def _finish_a_round(server: _Server, folder: Path) -> None:
    """A real device joins the same server and does its part of a run."""
    chance = np.random.default_rng(0)
    data = folder / "honest.npz"
    x = chance.normal(size=(40, 4)).astype(np.float32)
    np.savez(data, x=x, y=(x.sum(1) > 0).astype(np.int64))
    token = server.api.post("/tokens", {"uses": 1, "valid_seconds": 3600.0})["token"]
    flags = ("--name", "honest", "--token", token, "--once", "--state", str(folder / "honest"))
    log = folder / "honest.log"
    text = _RUN.format(name="honest", size=1, deadline=60, rounds=1)
    with started(log, "edge_client", "join", server.address, *flags, "--data", str(data)):
        run_id = server.api.post("/runs", {"toml": text, "folder": str(folder)})["run_id"]
        run = _until_ended(server.api, run_id)
    if run["state"] != "finished" or run["round_number"] != 1:
        raise SystemExit(f"no honest round any more: {run['reason']}\n{log.read_text()}")


def _until_ended(api: ApiClient, run_id: int) -> dict[str, Any]:
    end = time.monotonic() + _ROUND_SECONDS
    while time.monotonic() < end:
        run: dict[str, Any] = api.get(f"/runs/{run_id}")
        if run["ended_at"] is not None:
            return run
        threading.Event().wait(0.1)
    raise SystemExit(f"run {run_id} does not end")
