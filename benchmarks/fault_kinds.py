"""The faults that are tried, each a function that submits a run and lets it happen."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.doomed import LINES, UPLOADING, WAITING
from benchmarks.fault_cluster import NAMES, ROUNDS, SERVER, TEXT, UPDATE_BYTES, Trial
from benchmarks.faulty_link import Fault as Break
from benchmarks.faulty_link import FaultyLink, Kind, Way, random_cuts
from benchmarks.program import PATIENCE_SECONDS

DAY_SECONDS = 86400
_MIGRATING = "migrating"
#: A phase of its own orders.
_PHASES = [*LINES["edge_client"], UPLOADING, WAITING]
_SERVER_PHASES = [phase for phase in LINES["server"] if phase != _MIGRATING]
#: What a process ends with that says what is wrong with this machine.
_MACHINE = 7
_LEASE_SECONDS = 15.0
_GOODBYE_SECONDS = 5.0


@dataclass(frozen=True)
class FaultKind:
    """A row of the table."""

    name: str
    happen: Callable[[Trial], None]
    #: The folders of all processes are small disks of their own.
    needs_disks: bool = False
    #: A client may come too late by it.
    may_miss: bool = False


# ---- kill -9 ----


def _device_killed(phase: str, trial: Trial) -> None:
    name = trial.device()
    _order_device(trial, name, phase)
    trial.submit()
    trial.dies(name)
    trial.pause(2.0)
    trial.cluster.start(name)


def _order_device(trial: Trial, name: str, phase: str) -> None:
    if phase == WAITING:
        number, seconds = trial.chance.randint(1, ROUNDS), trial.chance.uniform(0.0001, 0.02)
        trial.cluster.order(name, phase, number, seconds)
    else:
        trial.order(name, phase)


def _server_killed(phase: str, trial: Trial) -> None:
    trial.order(SERVER, phase)
    trial.submit()
    trial.dies(SERVER)
    trial.pause(2.0)
    trial.cluster.start(SERVER)


def _killed_migrating(trial: Trial) -> None:
    """A newer version is installed in mid-run, and killed while it changes the tables."""
    trial.submit()
    trial.wait_for_round()
    trial.cluster.kill(SERVER)
    trial.cluster.make_old()
    trial.order(SERVER, _MIGRATING)
    with suppress(AssertionError):
        trial.cluster.start(SERVER)
    trial.dies(SERVER)
    trial.cluster.start(SERVER)


def _both_killed(trial: Trial) -> None:
    name, phase = trial.device(), trial.chance.choice(_PHASES)
    _order_device(trial, name, phase)
    trial.order(SERVER, trial.chance.choice(_SERVER_PHASES))
    trial.submit()
    waiting = {SERVER, name}
    while waiting:
        # In either order: the one may have to be back for the other to come so far.
        first = trial.cluster.until(lambda: trial.cluster.first_dead(waiting), "one of them dies")
        trial.dies(first)
        trial.cluster.start(first)
        waiting.remove(first)


# ---- links ----


def _link_cut(trial: Trial) -> None:
    before = sum(len(link.happened) for link in trial.cluster.links.values())
    for name in NAMES:
        seed = trial.chance.randrange(2**32)
        trial.cluster.links[name].add(*random_cuts(seed, 3, UPDATE_BYTES))
    trial.submit()
    trial.cluster.ended(trial.run_id)
    cuts = sum(len(link.happened) for link in trial.cluster.links.values())
    trial.notes.append(f"{cuts - before} cuts")
    if cuts == before:
        raise AssertionError("no link was cut")


def _link_held(trial: Trial) -> None:
    """Nothing comes through for a while, without a word."""
    way = trial.chance.choice(list(Way))
    broken = Break(way, trial.chance.randrange(UPDATE_BYTES), Kind.HOLD)
    link = _submitted_and_broken(trial, trial.device(), broken)
    trial.pause(15.0)
    link.release()


def _back_too_late(trial: Trial) -> None:
    """The round has gone on without it."""
    # So much goes up with an update only.
    sent_bytes = trial.chance.randrange(UPDATE_BYTES // 4, UPDATE_BYTES)
    text = TEXT.replace(
        "quorum = 3, gather_seconds = 300",
        "quorum = 2, gather_seconds = 5, lost_after_seconds = 10",
    )
    broken = Break(Way.UP, sent_bytes, Kind.HOLD)
    link = _submitted_and_broken(trial, trial.device(), broken, text)
    trial.cluster.ended(trial.run_id)
    link.release()


def _submitted_and_broken(trial: Trial, name: str, broken: Break, text: str = TEXT) -> FaultyLink:
    """The device's link, once that has happened to it."""
    link = trial.cluster.links[name]
    count = len(link.happened) + 1
    link.add(broken)
    trial.submit(text)
    if not link.wait_for(count, PATIENCE_SECONDS):
        raise AssertionError("the link was not used so much")
    return link


# ---- disks ----


def _server_disk_full(trial: Trial) -> None:
    """It refuses updates for as long, or ends where it cannot write at all."""
    trial.submit()
    trial.wait_for_round()
    with _filled(trial, SERVER, trial.cluster.server.data):
        trial.pause(3.0)
    _back_if_ended(trial, SERVER)


def _device_disk_full(trial: Trial) -> None:
    name = trial.device()
    trial.submit()
    trial.wait_for_round()
    with _filled(trial, name, trial.cluster.devices[name].state):
        pass
    _back_if_ended(trial, name)


def _back_if_ended(trial: Trial, name: str) -> None:
    # What says why it ends may not have ended yet.
    with suppress(subprocess.TimeoutExpired):
        trial.cluster.program(name).wait(_GOODBYE_SECONDS)
    is_running = trial.cluster.program(name).is_running
    trial.notes.append(f"{name} {'went on' if is_running else 'ended'}")
    if not is_running:
        _ends(trial, name)
        trial.cluster.start(name)


@contextmanager
def _filled(trial: Trial, name: str, folder: Path) -> Iterator[None]:
    """Until somebody notices. A few bytes are left, for something to begin and not to end."""
    filler = folder / "filler"
    free = os.statvfs(folder)
    left = trial.chance.randrange(UPDATE_BYTES // 8, UPDATE_BYTES // 2)
    program = trial.cluster.program(name)
    said = trial.cluster.printed.count("disk")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))
    try:
        trial.cluster.until(
            lambda: not program.is_running or trial.cluster.printed.count("disk") > said,
            f"the disk of {name} is noticed to be full",
        )
        yield
    finally:
        filler.unlink()


def _ends(trial: Trial, name: str) -> None:
    code = trial.cluster.exit_code(name)
    if code != _MACHINE:
        raise AssertionError(f"{name} ended with {code}")


# ---- what a crash or a bad card leaves behind ----


def _outbox_damaged(trial: Trial) -> None:
    name = trial.device()
    trial.order(name, UPLOADING)
    trial.submit()
    trial.dies(name)
    _damage_all(trial, trial.cluster.devices[name].state.glob("outbox/*.update"))
    trial.cluster.start(name)


def _download_damaged(trial: Trial) -> None:
    name = trial.device()
    _submitted_and_broken(trial, name, Break(Way.DOWN, UPDATE_BYTES // 2))
    trial.cluster.kill(name)
    _damage_all(trial, trial.cluster.devices[name].state.glob("downloads/*.part"))
    trial.cluster.start(name)


def _upload_damaged(trial: Trial) -> None:
    trial.order(SERVER, "receiving")
    trial.submit()
    trial.dies(SERVER)
    _damage_all(trial, trial.cluster.server.data.glob("blobs/partial/*"))
    trial.cluster.start(SERVER)


def _update_damaged(trial: Trial) -> None:
    """One that the server has receipted."""
    name, late = trial.chance.sample(NAMES, 2)
    # Its round is open for as long as another device's answer is on its way.
    link = _submitted_and_broken(trial, late, Break(Way.UP, UPDATE_BYTES // 2, Kind.HOLD))
    server = trial.cluster.server
    server.wait_for("update_stored", run_id=trial.run_id, client_id=name)
    trial.cluster.kill(SERVER)
    with server.store() as store:
        newest = max(
            (
                update
                for number in range(1, ROUNDS + 1)
                for update in store.updates(trial.run_id, number)
                if update.client_id == name
            ),
            key=lambda update: update.task_id,
        )
    _damage(trial, server.data / "blobs" / newest.blob.digest)
    trial.cluster.start(SERVER)
    link.release()


def _state_damaged(trial: Trial) -> None:
    """Refused, with the file's name; with a copy of it the run goes on."""
    trial.submit()
    trial.wait_for_round()
    trial.cluster.kill(SERVER)
    server = trial.cluster.server
    with server.store() as store:
        state = store.run(trial.run_id).state_blob
    assert state is not None
    blob = server.data / "blobs" / state.digest
    _refused_until_put_back(trial, blob, partial(_damage, trial, blob))


def _database_cut(trial: Trial) -> None:
    """Refused; with a copy of it the run goes on."""
    trial.submit()
    trial.wait_for_round()
    trial.cluster.kill(SERVER)
    database = trial.cluster.database
    # As a copy of the folder has it; what is in the log file beside it is brought in by that.
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size_bytes = trial.chance.randrange(database.stat().st_size)
    _refused_until_put_back(trial, database, lambda: os.truncate(database, size_bytes))


def _refused_until_put_back(trial: Trial, path: Path, harm: Callable[[], None]) -> None:
    copy = trial.cluster.folder / "copy"
    shutil.copyfile(path, copy)
    harm()
    with suppress(AssertionError):
        trial.cluster.start(SERVER)
    _ends(trial, SERVER)
    last = trial.cluster.server.program.printed.splitlines()[-1]
    if path.name not in last:
        raise AssertionError(f"the server does not name {path.name}: {last}")
    shutil.copyfile(copy, path)
    trial.cluster.start(SERVER)


def _lock_left(trial: Trial) -> None:
    """What says that somebody is there, and nobody is."""
    name = trial.device()
    device = trial.cluster.devices[name]
    trial.submit()
    trial.wait_for_round()
    trial.cluster.kill(SERVER)
    trial.cluster.kill(name)
    (device.state / "lock").write_text(str(os.getpid()))
    (trial.cluster.server.data / "server.json").write_text(f'{{"pid": {os.getpid()}}}')
    kind = trial.chance.choice(["of another host", "from the future"])
    trial.notes.append(f"lease {kind}")
    renewed_at = time.time() + (0.0 if kind == "of another host" else 300 * DAY_SECONDS)
    with closing(sqlite3.connect(trial.cluster.database)) as connection, connection:
        connection.execute(
            "UPDATE lease SET host = 'other', process_table = 'other', renewed_at = ?",
            (renewed_at,),
        )
    if kind == "of another host":
        with suppress(AssertionError):
            trial.cluster.start(SERVER)
        _ends(trial, SERVER)
        time.sleep(max(0.0, renewed_at + _LEASE_SECONDS + 0.5 - time.time()))
    trial.cluster.start(SERVER)
    trial.cluster.start(name)


# ---- clocks ----


def _clock_wrong(trial: Trial) -> None:
    """A device without a clock of its own comes up in another year."""
    name = trial.device()
    trial.submit()
    trial.wait_for_round()
    trial.cluster.kill(name)
    days = trial.chance.choice([-1, 1]) * trial.chance.randint(1, 3000)
    trial.notes.append(f"{name}: {days} days")
    trial.cluster.start(name, **_off_by(days))


def _off_by(days: int) -> dict[str, str]:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        raise RuntimeError("clocks are set wrong by libfaketime: sudo apt-get install faketime")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{days:+d}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


# ---- small things ----


def _damage_all(trial: Trial, paths: Iterator[Path]) -> None:
    for path in paths:
        _damage(trial, path)


def _damage(trial: Trial, path: Path) -> None:
    """One bit of it, anywhere."""
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        return
    at = trial.chance.randrange(size_bytes)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0] ^ 1 << trial.chance.randrange(8)
        file.seek(at)
        file.write(bytes([byte]))
    trial.notes.append(f"{path.name[:20]}: bit in byte {at}")


KINDS = (
    *(FaultKind(f"device killed, {phase}", partial(_device_killed, phase)) for phase in _PHASES),
    *(
        FaultKind(f"server killed, {phase}", partial(_server_killed, phase))
        for phase in _SERVER_PHASES
    ),
    FaultKind(f"server killed, {_MIGRATING}", _killed_migrating),
    FaultKind("server and device killed", _both_killed),
    FaultKind("links cut at random bytes", _link_cut),
    FaultKind("link silent for a while", _link_held),
    FaultKind("device back too late", _back_too_late, may_miss=True),
    FaultKind("server's disk full", _server_disk_full, needs_disks=True),
    FaultKind("device's disk full", _device_disk_full, needs_disks=True),
    FaultKind("finished update damaged", _outbox_damaged),
    FaultKind("download damaged", _download_damaged),
    FaultKind("upload damaged", _upload_damaged),
    FaultKind("stored update damaged", _update_damaged),
    FaultKind("state damaged", _state_damaged),
    FaultKind("database truncated", _database_cut),
    FaultKind("stale locks", _lock_left),
    FaultKind("device's clock wrong", _clock_wrong),
)
