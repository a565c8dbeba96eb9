"""`make demo`: one server and three devices on this machine train on digits, start to end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coppice.errors import CoppiceError, ServerUnreachable
from coppice.partition import DirichletPartitioner
from coppice.table import table
from server.api_client import ApiClient, find_server
from server.config import TOKEN_FILE, WHERE_FILE
from server.printing import size

HERE = Path(__file__).parent
NUM_DEVICES = 3
_TEST_SHARE = 0.2
_START_SECONDS = 120.0
_GOODBYE_SECONDS = 15.0
_GLANCE_SECONDS = 0.2
_BAR_WIDTH = 20


def main() -> int:
    """Run the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder that the demo makes anew each time (default: %(default)s)",
    )
    output: Path = parser.parse_args().output.absolute()
    # SIGTERM ends the demo as Ctrl-C does: with everything that it started. Ctrl-C is named too,
    # because a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        _run(output)
    except KeyboardInterrupt:
        print("\nstopped; nothing is left running")
        return 130
    except CoppiceError as error:
        print(f"demo: {error}; the logs are in {output}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    _deal_out_data(output)
    with _started(output, "server", "server", "start", *_server_flags(output)) as server:
        where = _wait_for_server(output / "server" / WHERE_FILE, server)
        api = ApiClient(find_server(where["dashboard"], output / "server"))
        run_id = api.post(
            "/runs", {"toml": (output / "run.toml").read_text(), "folder": str(output)}
        )["run_id"]
        print(f"dashboard: {where['dashboard']}")
        print(f"log in with {(output / 'server' / TOKEN_FILE).read_text()}")
        token = api.post("/tokens", {"uses": NUM_DEVICES})["token"]
        with _devices(output, where["grpc"], token) as devices:
            run = _watch(api, run_id, [server, *devices])
        _report(api, run, output)


def _deal_out_data(output: Path) -> None:
    """One file for each device, by label as devices in different places would have them."""
    shutil.copy(HERE / "run.toml", output)
    with np.load(HERE / "digits.npz", allow_pickle=False) as digits:
        x, y = digits["x"], digits["y"]
    order = np.random.default_rng(1).permutation(len(y))
    num_test = int(len(y) * _TEST_SHARE)
    test, train = order[:num_test], order[num_test:]
    np.savez_compressed(output / "test.npz", x=x[test], y=y[test])
    parts = DirichletPartitioner(num_partitions=NUM_DEVICES, alpha=0.3).partition(y[train], seed=2)
    for number, part in enumerate(parts, start=1):
        mine = train[part]
        np.savez_compressed(output / f"pi-{number}.npz", x=x[mine], y=y[mine])
        seen = np.bincount(y[mine], minlength=10)
        print(f"pi-{number}: {len(mine):4} digits, of 0 to 9: {' '.join(f'{n:3}' for n in seen)}")


def _server_flags(output: Path) -> tuple[str, ...]:
    loopback = "127.0.0.1:0"
    return ("--data", str(output / "server"), "--listen", loopback, "--dashboard", loopback)


@contextmanager
def _started(
    output: Path, name: str, module: str, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a log file, which ends with the block: asked first, then killed."""
    with (output / f"{name}.log").open("wb") as log, ExitStack() as ending:
        with _uninterrupted():
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the demo, which then asks its processes to end.
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
            ending.callback(_end, process)
        yield process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: a process that was just started is not forgotten."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


@contextmanager
def _devices(output: Path, address: str, token: str, number: int = 1) -> Iterator[list[Any]]:
    if number > NUM_DEVICES:
        yield []
        return
    name = f"pi-{number}"
    join = (
        "join",
        address,
        "--token",
        token,
        "--name",
        name,
        "--data",
        str(output / f"{name}.npz"),
    )
    state = ("--state", str(output / name), "--threads", "1", "--once")
    with (
        _started(output, name, "edge_client", *join, *state) as process,
        _devices(output, address, token, number + 1) as others,
    ):
        yield [process, *others]


def _wait_for_server(path: Path, server: subprocess.Popen[bytes]) -> dict[str, Any]:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if path.exists():
            where: dict[str, Any] = json.loads(path.read_text())
            return where
        time.sleep(0.05)
    raise ServerUnreachable("the server did not start")


def _watch(api: ApiClient, run_id: int, processes: list[Any]) -> dict[str, Any]:
    """Show progress until the run has ended."""
    shown = 0
    while True:
        run: dict[str, Any] = api.get(f"/runs/{run_id}")
        shown = _show_rounds(api, run, shown)
        if run["ended_at"] is not None:
            print(end="\n" if sys.stdout.isatty() else "")
            return run
        if failed := [item.returncode for item in processes if item.poll()]:
            raise ServerUnreachable(f"a process of the demo ended with code {failed[0]}")
        time.sleep(_GLANCE_SECONDS)


def _show_rounds(api: ApiClient, run: dict[str, Any], shown: int) -> int:
    """Show the rounds after `shown` that are evaluated. Returns the last one shown."""
    values = _accuracies(api, run["run_id"])
    for item in api.get(f"/runs/{run['run_id']}/rounds?after={shown}"):
        if item["round_number"] not in values:
            break
        shown = item["round_number"]
        _show_round(item, run["spec"]["stop"]["rounds"], values[shown])
    return shown


def _accuracies(api: ApiClient, run_id: int) -> dict[int, float]:
    """The server's test accuracy after each round that clients have evaluated as well."""
    found: dict[str, dict[int, float]] = {"server": {}, "clients": {}}
    for item in api.get(f"/runs/{run_id}/evaluations"):
        found[item["where"]][item["round_number"]] = item["metrics"]["accuracy"]
    done = found["server"].keys() & found["clients"].keys()
    return {number: found["server"][number] for number in done}


def _show_round(item: dict[str, Any], total: int, accuracy: float) -> None:
    number = item["round_number"]
    filled = round(_BAR_WIDTH * number / total)
    bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
    line = (
        f"round {number:3}/{total} {bar} accuracy {accuracy:.3f}  "
        f"{item['num_updates']} updates  "
        f"down {size(item['bytes_down'])}  up {size(item['bytes_up'])}"
    )
    print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n")
    sys.stdout.flush()


def _report(api: ApiClient, run: dict[str, Any], output: Path) -> None:
    if run["state"] != "finished":
        raise CoppiceError(f"the run {run['state']}: {run['reason']}")
    rounds = api.get(f"/runs/{run['run_id']}/rounds")
    model = output / "server" / "models" / f"{run['run_id']}-{run['spec']['name']}.safetensors"
    rows = [
        ("rounds", str(run["round_number"])),
        ("best test accuracy", f"{run['best_value']:.3f} (round {run['best_round']})"),
        ("sent to devices", size(sum(item["bytes_down"] for item in rounds))),
        ("sent by devices", size(sum(item["bytes_up"] for item in rounds))),
        ("time", f"{run['ended_at'] - run['started_at']:.1f} s"),
        ("model", os.path.relpath(model)),
    ]
    print("\n" + table(("result", ""), rows))
    print(
        "\nThe model is a safetensors file; in Python:\n"
        "  from coppice.model_file import load_model\n"
        f"  model, info = load_model('{os.path.relpath(model)}')\n"
        f"The run file is {os.path.relpath(output / 'run.toml')}; "
        "README.md shows how to do the same with your own devices."
    )


if __name__ == "__main__":
    sys.exit(main())
