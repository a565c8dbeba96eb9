"""Five unequal devices, real processes in control groups: dense FL, one mask, and pace."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.fashion_data import DATA, add_data_argument, deal_out, read_both
from benchmarks.others import Others
from benchmarks.pace_clock import draw
from benchmarks.pace_report import report
from benchmarks.pace_start import MODEL, pruned_start
from benchmarks.processes import RunningServer, running, server
from benchmarks.small_devices import Size, SmallDevice, small_devices
from coppice.data import Raw
from server.printing import size

DESCRIPTION = "five unequal devices in control groups (needs root): dense FL, one mask, pace"

#: The devices, weakest first.
SIZES = {
    "pi-0": Size(400, 0.05),
    "pi-1": Size(512, 0.10),
    "pi-2": Size(800, 0.20),
    "pi-3": Size(1200, 0.40),
    "pi-4": Size(2048, 0.60),
}
ALPHA = 0.5
TRAINING = {"local_steps": 5, "batch_size": 20, "learning_rate": 0.05}
_PRUNED = {**TRAINING, "initial_passes": 0, "reconfigure_every": 10}
#: Method and settings of each way to train.
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dense": ("fedavg", TRAINING),
    "one-mask": ("prunefl", {**_PRUNED, "mask_scope": "global"}),
    "pace": ("prunefl", _PRUNED),
}
PARTS = ("killed", "memory", "clock", "disturbed")
_TIMEOUT_SECONDS = 4 * 3600.0
_GLANCE_SECONDS = 0.2
#: What the larger model learns by without norms.
_LARGE_RATE = 0.01
#: Test examples of evaluations in between, and training examples of the larger model.
_TESTED = 2000

#: Rounds between two evaluations of the runs by the clock: some twenty seconds each.
_EVERY = {"dense": 2, "one-mask": 3, "pace": 6}
#: More than any run by the clock gets to.
_ENDLESS = 100_000
#: Of the disturbed run: rounds before the first disturbance, and between the two.
_CALM = 12
_RUN = """\
name = "{way}"
seed = {seed}
{warm_start}
[model]
name = "{model}"
[data]
classes = {classes}
input_shape = {shape}
scale = 255.0
mean = {mean}
std = {std}
held_out = 0.0
[method]
name = "{method}"
{settings}
[cohort]
size = {size}
quorum = {size}
lost_after_seconds = 600
[evaluation]
data = "{data}"
every = {every}
[stop]
rounds = {rounds}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    add_data_argument(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the runs by the clock"
    )
    parser.add_argument(
        "--minutes", type=float, default=5.5, help="of each run by the clock, after its first round"
    )
    parser.add_argument(
        "--targets", type=float, nargs="+", default=[0.7, 0.75, 0.8], help="accuracies to reach"
    )
    parser.add_argument("--figure", type=Path, help="file to draw the curves into (.svg)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/pace"),
        help="folder for runs, which are not done again (default: %(default)s)",
    )


@dataclass(frozen=True)
class Job:
    """One run to do."""

    part: str
    way: str
    rounds: int
    seed: int = 1
    #: After which the run is stopped.
    minutes: float | None = None
    #: Rounds between two evaluations; by default the last one is evaluated.
    every: int | None = None
    limits_memory: bool = True
    #: Of a larger model: vgg11, for which images are padded.
    large: bool = False
    #: What is done to devices once so many rounds are over.
    disturbances: Mapping[int, Callable[[Mapping[str, SmallDevice]], None]] | None = None


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The parts, one after the other; tables of all that is in the results' folder."""
    results: Path = arguments.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    bench = _Bench(results, arguments.data)
    if "killed" in arguments.parts:
        _tell_one_round(SIZES["pi-0"].memory_mb)
    for job in _jobs(arguments.parts, arguments.seeds, arguments.minutes):
        file = results / f"{job.part}-{job.seed}-{job.way}.json"
        if file.exists():
            continue
        found = bench.run(job)
        file.write_text(json.dumps(found) + "\n")
        print(f"{file.stem} is done", flush=True)
    runs = [json.loads(file.read_text()) for file in sorted(results.glob("*-*-*.json"))]
    print(report(runs, arguments.targets))
    if arguments.figure is not None:
        draw(runs, arguments.figure)
    return runs


def _tell_one_round(memory_mb: int) -> None:
    """Whether a round of the larger model fits, dense and pruned, for who does not look first."""
    for density in (1.0, 0.1):
        with small_devices({"one-round": Size(memory_mb, 1.0)}) as devices:
            device = devices["one-round"]
            module = ("-m", "benchmarks.one_round", str(density))
            subprocess.run(device.command(sys.executable, *module), check=False)
            told = device.told()
        print(
            f"a round of density {density:g} in {memory_mb} MB: killed {told.killed} times, peak "
            f"{size(told.peak_bytes)}",
            flush=True,
        )


def _jobs(parts: Sequence[str], seeds: Sequence[int], minutes: float) -> Iterator[Job]:
    if "killed" in parts:
        yield Job("killed", "dense", 3, large=True)
    if "memory" in parts:
        yield Job("memory", "pace", 8, large=True, disturbances={4: _lower_memory})
    if "clock" in parts:
        # Devices have probed themselves before: once in a device's life is not once in a run.
        yield Job("warm-up", "pace", 3)
        for position, seed in enumerate(seeds):
            ways = list(WAYS)
            first = position % len(ways)
            for way in ways[first:] + ways[:first]:
                yield Job(
                    "clock",
                    way,
                    _ENDLESS,
                    seed,
                    minutes,
                    _EVERY[way],
                    limits_memory=way != "dense",
                )
    if "disturbed" in parts:
        yield Job(
            "disturbed",
            "pace",
            3 * _CALM,
            disturbances={_CALM: _halve_processor, 2 * _CALM: _lower_memory},
        )


def _padded(images: Any) -> Any:
    """(N, 28, 28) → (N, 3, 32, 32)."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None].repeat(3, axis=1)


def _halve_processor(devices: Mapping[str, SmallDevice]) -> None:
    devices["pi-1"].limit_processor(SIZES["pi-1"].share / 2)


def _lower_memory(devices: Mapping[str, SmallDevice]) -> None:
    devices["pi-1"].limit_memory(round(0.8 * SIZES["pi-1"].memory_mb))


class _Bench:
    """Devices and their folders, which stay from one run to the next."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._results = folder
        self._folder = folder / "work"
        self._folder.mkdir(exist_ok=True)
        self._data = read_both(data)
        self._seed: int | None = None

    def _deal_out(self, seed: int) -> None:
        """The examples of each device, and the pruned model that runs begin with."""
        if seed == self._seed:
            return
        self._seed = seed
        train, test = self._data
        few = Raw(test.inputs[:_TESTED], test.labels[:_TESTED])
        parts = deal_out(train, len(SIZES), ALPHA, seed)
        for name, part in zip(("test", *SIZES), (few, *parts.values()), strict=True):
            np.savez(self._file(name, large=False), x=part.inputs, y=part.labels)
            # As many as a small device holds in memory, larger as they are.
            padded = _padded(part.inputs[:_TESTED])
            np.savez(self._file(name, large=True), x=padded, y=part.labels[:_TESTED])
        if not self._start(seed).exists():
            pruned_start(parts, TRAINING, seed, self._start(seed))

    def run(self, job: Job) -> dict[str, Any]:
        """All that the server and the kernel tell of it."""
        self._deal_out(job.seed)
        folder = self._folder / f"{job.part}-{job.way}-{time.time_ns()}"
        with (
            small_devices(SIZES) as devices,
            server(folder) as host,
            self._clients(host, devices, job) as clients,
        ):
            self._limit(devices, job)
            others = Others([host.process, *clients.values()])
            text = self._toml(job)
            asked = {"toml": text, "folder": str(self._folder)}
            run_id = host.api.post("/runs", asked)["run_id"]
            gone = self._watch(host, run_id, devices, clients, job)
            return {
                "part": job.part,
                "way": job.way,
                "seed": job.seed,
                "others_cores": others.cores(),
                "rounds": host.api.get(f"/runs/{run_id}/rounds"),
                "reports": host.api.get(f"/runs/{run_id}/reports"),
                "evaluations": host.api.get(f"/runs/{run_id}/evaluations"),
                "gone": {name: self._last_words(name) for name in gone},
                "told": {name: asdict(device.told()) for name, device in devices.items()},
                "costs": {name: self._cost(name) for name in SIZES} if job.way == "pace" else {},
            }

    @contextmanager
    def _clients(
        self, host: RunningServer, devices: Mapping[str, SmallDevice], job: Job
    ) -> Iterator[dict[str, psutil.Process]]:
        """All devices, joined; they get their share of the processor only then, to begin sooner."""
        with ExitStack() as stack:
            processes = {}
            for name, device in devices.items():
                device.limit_processor(None)
                command = device.command(
                    sys.executable, "-m", "edge_client", "join", host.address, "--insecure",
                    "--name", name, "--threads", "1", "--state", str(self._state(name)),
                    "--data", str(self._file(name, large=job.large)),
                )  # fmt: skip
                log = self._folder / f"{name}.log"
                process = stack.enter_context(running(log, *command))
                processes[name] = psutil.Process(process.pid)
            while len(host.api.get("/clients")) < len(devices):
                for name, each in processes.items():
                    if not _is_there(each):
                        raise RuntimeError(f"{name} did not join: {self._last_words(name)}")
                time.sleep(_GLANCE_SECONDS)
            yield processes
            # A device ends in its own time, and has more of it without a limit.
            for device in devices.values():
                device.limit_processor(None)

    def _limit(self, devices: Mapping[str, SmallDevice], job: Job) -> None:
        for name, limits in SIZES.items():
            devices[name].limit_memory(limits.memory_mb if job.limits_memory else None)
            devices[name].limit_processor(limits.share)

    def _watch(
        self,
        host: RunningServer,
        run_id: int,
        devices: Mapping[str, SmallDevice],
        clients: Mapping[str, psutil.Process],
        job: Job,
    ) -> list[str]:
        """Disturb when it is time; returns when the run has ended, or the devices that are gone."""
        to_come = dict(job.disturbances or {})
        seconds_left = None if job.minutes is None else 60 * job.minutes
        end = time.monotonic() + _TIMEOUT_SECONDS
        while (record := host.api.get(f"/runs/{run_id}"))["ended_at"] is None:
            for number in [*to_come]:
                if len(host.api.get(f"/runs/{run_id}/rounds")) > number:
                    to_come.pop(number)(devices)
            if seconds_left is not None and self._lasted(host, run_id) > seconds_left:
                host.api.post(f"/runs/{run_id}/stop", {})
                seconds_left = None
            gone = [name for name, process in clients.items() if not _is_there(process)]
            if gone:
                return gone
            if time.monotonic() > end:
                raise RuntimeError(f"{job.way} took more than {_TIMEOUT_SECONDS:.0f} s")
            time.sleep(_GLANCE_SECONDS)
        if record["state"] != ("finished" if job.minutes is None else "stopped"):
            raise RuntimeError(f"{job.way} {record['state']}: {record['reason']}")
        return []

    def _lasted(self, host: RunningServer, run_id: int) -> float:
        """Seconds since its first round was over."""
        rounds = host.api.get(f"/runs/{run_id}/rounds")
        began = rounds[0]["closed_at"] if rounds else None
        return 0.0 if began is None else time.time() - began

    def _last_words(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text().splitlines()[-1]

    def _toml(self, job: Job) -> str:
        method, settings = WAYS[job.way]
        shape = [3, 32, 32] if job.large else [1, 28, 28]
        is_warm = job.way != "dense" and not job.large
        if job.large:
            settings = {**settings, "learning_rate": _LARGE_RATE}
        lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())
        return _RUN.format(
            way=job.way,
            seed=job.seed,
            warm_start=f'warm_start = "{self._start(job.seed)}"' if is_warm else "",
            model="vgg11" if job.large else MODEL.name,
            classes=json.dumps(DATA.classes),
            shape=shape,
            mean=[*DATA.mean] * shape[0],
            std=[*DATA.std] * shape[0],
            data=self._file("test", large=job.large).name,
            method=method,
            settings="\n".join(lines),
            size=len(SIZES),
            every=job.every or job.rounds,
            rounds=job.rounds,
        )

    def _file(self, name: str, *, large: bool) -> Path:
        return self._folder / f"{name}{'-large' if large else ''}.npz"

    def _start(self, seed: int) -> Path:
        return self._results / f"start-{seed}.safetensors"

    def _state(self, name: str) -> Path:
        return self._folder / f"state-{name}"

    def _cost(self, name: str) -> Any:
        """What the device has learned of its rounds: the newest there is."""
        return list(json.loads((self._state(name) / "costs.json").read_text()).values())[-1]


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
