"""What coordination costs: rounds without any training, over sizes of model and cohort."""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import RunningServer, all_started, server
from coppice.memory import peak_resident_bytes
from coppice.table import table
from coppice.wire.payload import encode
from server.printing import size

DESCRIPTION = "cost of a round without training: real processes on loopback, by size and cohort"

_SIZES = (100_000, 1_000_000, 10_000_000, 25_000_000)
_CLIENTS = (2, 10, 50)
_NUM_TENSORS = 20
_WARM_UP_ROUNDS = 2
_MAX_ROUNDS = 30
#: A case has as many rounds as move about so many bytes, within the bounds above and below.
_BYTES_OF_A_CASE = 8e9
_MIN_ROUNDS = 3
_TIMEOUT_SECONDS = 1800.0

_APP = '''\
"""A model of {count} parameters that is never trained."""
import torch

class Flat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for index, length in enumerate({lengths}):
            self.register_parameter(f"part{{index}}", torch.nn.Parameter(torch.zeros(length)))

def model():
    return Flat()

def loss(outputs, targets):
    return outputs.sum()

def load_data(path):
    raise RuntimeError("nothing is trained here")
'''

_RUN = """\
name = "coordination"
app = "app.py"
[method]
name = "fedavg"
local_steps = 0
[cohort]
size = {clients}
[stop]
rounds = {rounds}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument(
        "--parameters",
        type=int,
        nargs="+",
        default=list(_SIZES),
        metavar="N",
        help="float32 parameters of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=list(_CLIENTS),
        metavar="N",
        help="client processes (default: %(default)s)",
    )
    parser.add_argument(
        "--durable",
        nargs="+",
        choices=("true", "false"),
        default=["true", "false"],
        help="with and without fsync (default: both)",
    )
    parser.add_argument(
        "--tls",
        nargs="+",
        choices=("true", "false"),
        default=["true", "false"],
        help="with and without TLS (default: both)",
    )
    parser.add_argument("--folder", type=Path, help="where the stores are (default: a new one)")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every case, and print a line as soon as it is there."""
    cases = []
    for count, clients in product(arguments.parameters, arguments.clients):
        # With and without fsync and TLS next to each other, as these are compared.
        for durable, tls in product(arguments.durable, arguments.tls):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                case = _measure(Path(folder), count, clients, durable == "true", tls == "true")
            cases.append(case)
            print(_row(case), flush=True)
    print("\n" + table(_HEADER, [_cells(case) for case in cases]))
    return cases


def _measure(folder: Path, count: int, clients: int, durable: bool, tls: bool) -> dict[str, Any]:
    lengths = [count // _NUM_TENSORS] * (_NUM_TENSORS - 1)
    lengths.append(count - sum(lengths))
    app = _APP.format(count=count, lengths=lengths)
    (folder / "app.py").write_text(app)
    delta = {f"part{index}": torch.zeros(length) for index, length in enumerate(lengths)}
    update = encode({"delta": delta})
    (folder / "update").write_bytes(update)
    rounds = _WARM_UP_ROUNDS + int(
        min(max(_BYTES_OF_A_CASE / (2 * len(update) * clients), _MIN_ROUNDS), _MAX_ROUNDS)
    )
    digest = hashlib.sha256(app.encode()).hexdigest()
    flags = ("--durable", str(durable).lower(), "--enrolment-calls", "1000")
    with server(folder / "server", *flags, secure=tls) as running:
        token = [running.token(clients + 1)] if tls else []
        commands = [
            (
                *("benchmarks.light_client", running.address, f"c{n}"),
                *(str(folder / "update"), digest, *token),
            )
            for n in range(clients)
        ]
        pulse = [
            ("benchmarks.light_client", running.address, "pulse", "heartbeats", digest, *token)
        ]
        with all_started(folder / "clients.log", commands):
            running.wait_for_clients(clients)
            with all_started(folder / "pulse", pulse):
                running.wait_for_clients(clients + 1)
                figures = _figures(running, folder, clients, rounds)
    heartbeats = sorted(float(line) for line in (folder / "pulse").read_text().split())
    return {
        "parameters": count,
        "clients": clients,
        "durable": durable,
        "tls": tls,
        "rounds": rounds - _WARM_UP_ROUNDS,
        **figures,
        "heartbeat_p99_seconds": heartbeats[int(len(heartbeats) * 0.99)],
    }


def _figures(running: RunningServer, folder: Path, clients: int, rounds: int) -> dict[str, Any]:
    cpu_seconds = running.cpu_seconds()
    toml = _RUN.format(clients=clients, rounds=rounds)
    run_id = running.api.post("/runs", {"toml": toml, "folder": str(folder)})["run_id"]
    running.wait_until_ended(run_id, _TIMEOUT_SECONDS)
    cpu_seconds = running.cpu_seconds() - cpu_seconds
    closed = running.api.get(f"/runs/{run_id}/rounds")
    # From one close to the next: everything between two rounds counts too.
    closes = [item["closed_at"] for item in closed]
    seconds = [late - early for early, late in pairwise(closes)]
    last = closed[-1]
    return {
        "seconds_per_round": statistics.median(seconds[_WARM_UP_ROUNDS - 1 :]),
        "server_cpu_seconds_per_round": cpu_seconds / rounds,
        "server_peak_rss_bytes": peak_resident_bytes(running.process.pid),
        "bytes_down_per_client": last["bytes_down"] // last["num_updates"],
        "bytes_up_per_client": last["bytes_up"] // last["num_updates"],
    }


_HEADER = (
    "parameters", "clients", "fsync", "tls",
    "s/round", "cpu s/round", "peak", "down", "up", "pulse p99",
)  # fmt: skip


def _cells(case: dict[str, Any]) -> tuple[object, ...]:
    return (
        case["parameters"],
        case["clients"],
        "yes" if case["durable"] else "no",
        "yes" if case["tls"] else "no",
        f"{case['seconds_per_round']:.3f}",
        f"{case['server_cpu_seconds_per_round']:.3f}",
        size(case["server_peak_rss_bytes"]),
        size(case["bytes_down_per_client"]),
        size(case["bytes_up_per_client"]),
        f"{case['heartbeat_p99_seconds']:.3f}",
    )


def _row(case: dict[str, Any]) -> str:
    return "  ".join(f"{name} {cell}" for name, cell in zip(_HEADER, _cells(case), strict=True))
