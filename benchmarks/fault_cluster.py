"""A secure server and three devices on links of their own, one run after the other, and verdicts.

All of them run in `benchmarks.doomed`, so that they can be killed at any place.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.doomed import Doom, Order
from benchmarks.fault_verdict import Verdict, verdict_of
from benchmarks.faulty_link import FaultyLink
from benchmarks.fleet import Device, Server
from benchmarks.program import ROOT, Program, until
from coppice.model_file import load_weights
from coppice.partition import IidPartitioner
from coppice.tensors import dense_tensors
from edge_client.receipts import Receipts
from edge_client.status import read_status

SERVER = "server"
NAMES = ("pi-1", "pi-2", "pi-3")
ROUNDS = 3
#: Devices that come back wait before they try again, and longer each time.
RUN_SECONDS = 300.0
_GLANCE_SECONDS = 0.1
#: What the newest migration has made, and which was the one before it.
_NEWEST_TABLES = ("access_tokens", "audit")
_BEFORE = "0006"

#: Updates of half a megabyte; what rounding takes away is kept on the devices from round to round,
#: so that a state that were promoted twice, or not, would show in the parameters.
TEXT = f"""\
name = "faults"
seed = 7
model = {{ name = "mlp", hidden = [1000] }}
data = {{ classes = {list("0123456789")}, input_shape = [1, 16, 16], scale = 16.0 }}
method = {{ name = "fedavg", local_steps = 5, batch_size = 8 }}
wire = {{ up = "float16" }}
cohort = {{ size = 3, quorum = 3, gather_seconds = 300 }}
stop = {{ rounds = {ROUNDS} }}
"""
#: What the server leaves free on its disk: little, for small disks.
RESERVE_MB = 8
UPDATE_BYTES = 2 * (256 * 1000 + 1000 + 1000 * 10 + 10)


def deal_digits(folder: Path) -> dict[str, Path]:
    """A file of digits for each device, drawn twice as large so that every model takes them."""
    with np.load(ROOT / "deploy" / "demo" / "digits.npz", allow_pickle=False) as file:
        x, y = file["x"].repeat(2, axis=-1).repeat(2, axis=-2), file["y"]
    parts = IidPartitioner(num_partitions=len(NAMES)).partition(y, seed=3)
    paths = {name: folder / f"{name}.npz" for name in NAMES}
    for path, part in zip(paths.values(), parts, strict=True):
        np.savez(path, x=x[part], y=y[part])
    return paths


@dataclass(frozen=True)
class Reference:
    """What a run without faults ends with, and how long the phases of its processes were."""

    #: Tensors as bytes.
    parameters: Mapping[str, bytes]
    #: By the name of the process.
    lengths: Mapping[str, Counter[str]]


class Cluster:
    """Runs from the first block to the last; a process that is dead is started by `mend`."""

    def __init__(self, folder: Path, data: Mapping[str, Path]) -> None:
        """Everything is in `folder`; what is mounted there stays the caller's."""
        self.folder = folder
        self.server = Server(
            folder,
            secure=True,
            flags=("--disk-reserve-mb", RESERVE_MB),
            module="-m benchmarks.doomed server",
            DOOM=str(folder / f"{SERVER}.doom"),
        )
        self.devices = {
            name: Device(
                name,
                folder,
                path,
                "--no-kernels",
                module="-m benchmarks.doomed edge_client",
                DOOM=str(folder / f"{name}.doom"),
            )
            for name, path in data.items()
        }
        self.links: dict[str, FaultyLink] = {}
        self._orders = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.callback(self.server.kill)
        self.server.start()
        for name, device in self.devices.items():
            self.links[name] = self._open.enter_context(FaultyLink(self.server.address))
            self.start(name)
            self._open.callback(device.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def doom(self, name: str) -> Doom:
        """By which a process is killed."""
        return Doom(self.folder / f"{name}.doom")

    def order(self, name: str, phase: str = "", at: int = 0, seconds: float = 0.0) -> None:
        """See `Order`."""
        self._orders += 1
        self.doom(name).order(Order(self._orders, phase, at, seconds))

    def start(self, name: str, **variables: str) -> None:
        """Start a process that is not running."""
        if name == SERVER:
            self.server.start()
        else:
            address = self.links[name].address
            self.devices[name].start(self.server, address=address, **variables)

    def kill(self, name: str) -> None:
        """At once."""
        self.program(name).kill()

    @property
    def database(self) -> Path:
        """The file."""
        return self.server.data / "coppice.sqlite"

    def make_old(self) -> None:
        """Give the stopped server's database the tables of the version before the last one."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            for table in _NEWEST_TABLES:
                connection.execute(f"DROP TABLE {table}")
            connection.execute("UPDATE alembic_version SET version_num = ?", (_BEFORE,))

    def program(self, name: str) -> Program:
        """The process of this name."""
        return (self.server if name == SERVER else self.devices[name]).program

    def exit_code(self, name: str) -> int:
        """Of a process, once it has ended by itself."""
        return self.program(name).wait()

    def first_dead(self, names: Iterable[str]) -> str | None:
        """Any of these that does not run."""
        return next((name for name in names if not self.program(name).is_running), None)

    def dies(self, name: str) -> str:
        """Where; waits until a process has died of what it was ordered."""
        code = self.exit_code(name)
        if code != -signal.SIGKILL:
            raise AssertionError(f"{name} ended with {code}")
        return self.doom(name).died()

    def until(self, glance: Callable[[], Any], what: str) -> Any:
        """What `glance` gives, once it gives something."""
        return until(glance, what)

    def calm(self) -> None:
        """No fault is still to come."""
        for name in (SERVER, *NAMES):
            self.doom(name).withdraw()
        for link in self.links.values():
            link.clear()

    def wait_for_all(self) -> None:
        """Until nobody is at work for an earlier run any more, nor away."""
        self.until(self._all_are_here, "all devices are here")

    def _all_are_here(self) -> bool:
        """Whether all devices wait for work, and the server hears them."""
        clients = self.server.api.get("/clients")
        heard = sum(client["presence"] == "idle" for client in clients)
        told = (read_status(device.state / "status.json") for device in self.devices.values())
        return heard == len(NAMES) and all(
            status is not None and status.phase == "waiting" for status in told
        )

    def run_once(self) -> Reference:
        """The reference; phases are as long as in a process that has done all of it before."""
        run = self.ended(self.server.submit(TEXT))
        self.wait_for_all()
        for name in (SERVER, *NAMES):
            self.order(name)
        self.ended(self.server.submit(TEXT))
        lengths = {name: self.doom(name).counted() for name in (SERVER, *NAMES)}
        parameters = self.parameters(run)
        self.kill(SERVER)
        self.make_old()
        self.order(SERVER)
        self.start(SERVER)
        lengths[SERVER] += self.doom(SERVER).counted()
        return Reference(parameters, lengths)

    def ended(self, run_id: int) -> dict[str, Any]:
        """The run, once it is over."""
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            run: dict[str, Any] = self.server.api.get(f"/runs/{run_id}")
            if run["ended_at"] is not None:
                return run
            time.sleep(_GLANCE_SECONDS)
        raise AssertionError(f"run {run_id} is not over after {RUN_SECONDS:.0f} s")

    def parameters(self, run: Mapping[str, Any]) -> dict[str, bytes]:
        """What a run ended with."""
        weights = dense_tensors(load_weights(self.server.model(run)))
        return {name: item.numpy().tobytes() for name, item in weights.items()}

    def verdict(self, run_id: int, reference: Reference) -> Verdict:
        """What became of a run that is over, by the ledger, the receipts and the parameters."""
        run = self.ended(run_id)
        if run["state"] != "finished":
            raise AssertionError(f"run {run_id} {run['state']}: {run['reason']}")
        with self.server.store() as store:
            run_key = store.run(run_id).key
        receipts = [
            kept.receipt
            for device in self.devices.values()
            for kept in Receipts(device.state / "receipts.jsonl").newest_last()
            if kept.receipt.run_key == run_key
        ]
        wanted = [(number, name) for number in range(1, ROUNDS + 1) for name in NAMES]
        is_same = self.parameters(run) == reference.parameters
        return verdict_of(self.server.ledger(run_id), receipts, wanted, is_same=is_same)

    def tracebacks(self) -> list[str]:
        """Logs in which one was printed, which none should be."""
        return [log.name for log in self._logs if "Traceback" in log.read_text()]

    @property
    def printed(self) -> str:
        """All that all of them have written to their terminals."""
        return "".join(log.read_text() for log in self._logs)

    @property
    def _logs(self) -> list[Path]:
        return [self.server.log, *(device.log for device in self.devices.values())]


class Trial:
    """One run, and a fault in it."""

    def __init__(self, cluster: Cluster, reference: Reference, chance: random.Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.run_id = 0
        self._reference = reference
        #: What happened, for who has to repeat it.
        self.notes: list[str] = []

    def submit(self, text: str = TEXT) -> None:
        """The run begins."""
        self.run_id = self.cluster.server.submit(text)

    def device(self) -> str:
        """Any of them."""
        return self.chance.choice(NAMES)

    def order(self, name: str, phase: str) -> None:
        """Have a process killed somewhere in this phase, in any round."""
        length = self._reference.lengths[name][phase]
        if not length:
            raise AssertionError(f"{name} was never {phase}")
        # Not in the very last part: runs differ a little.
        self.cluster.order(name, phase, self.chance.randint(1, max(1, int(0.9 * length))))

    def dies(self, name: str) -> None:
        """Wait until it has, and note where."""
        self.notes.append(f"{name}: {self.cluster.dies(name)}")

    def pause(self, most_seconds: float) -> None:
        """As long as chance wants."""
        time.sleep(self.chance.uniform(0.0, most_seconds))

    def wait_for_round(self, kind: str = "tasks_committed") -> int:
        """Any round of the run, once so much has happened in it."""
        number = self.chance.randint(1, ROUNDS)
        self.cluster.server.wait_for(kind, run_id=self.run_id, round_number=number)
        return number

    def verdict(self) -> Verdict:
        """Once the run is over."""
        return self.cluster.verdict(self.run_id, self._reference)
