"""Everything that can go wrong, tried with real processes: what was lost, what counted twice."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_cluster import NAMES, SERVER, Cluster, Reference, Trial, deal_digits
from benchmarks.fault_kinds import KINDS, FaultKind
from coppice.errors import CoppiceError
from coppice.table import table

DESCRIPTION = "processes killed, links cut, disks full, files damaged, clocks wrong: what is lost"

_DISK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Case:
    """One schedule: a run with a fault in it."""

    fault: str
    number: int
    #: "same parameters", "ledger", or what went wrong.
    outcome: str
    lost: int
    counted_twice: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, and the run ended as it should."""
        return self.outcome in ("same parameters", "ledger") and not (
            self.lost or self.counted_twice
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--tries", type=int, default=9, help="schedules of each fault (9)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where logs and data stay (a temporary one)")
    parser.add_argument("--only", metavar="TEXT", default="", help="faults with this in their name")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All schedules, then the table. Returns a case a schedule."""
    kinds = [kind for kind in KINDS if arguments.only in kind.name]
    if os.geteuid() != 0 and any(kind.needs_disks for kind in kinds):
        print("full disks are left out: mounting small ones needs root", file=sys.stderr)
        kinds = [kind for kind in kinds if not kind.needs_disks]
    cases: list[Case] = []
    with ExitStack() as opened:
        folder = arguments.folder
        if folder is None:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data = deal_digits(folder)
        with open_cluster(folder / "reference", data) as cluster:
            reference = cluster.run_once()
        for kind in kinds:
            for case in tried(kind, arguments.tries, arguments.seed, folder, data, reference):
                cases.append(case)
                print(
                    f"{case.fault} {case.number}: {case.outcome}, {case.seconds:.0f} s  "
                    + "; ".join(case.notes),
                    file=sys.stderr,
                    flush=True,
                )
    print(_table(kinds, cases))
    return [asdict(case) for case in cases]


def tried(
    kind: FaultKind,
    tries: int,
    seed: int,
    folder: Path,
    data: dict[str, Path],
    reference: Reference,
) -> Iterator[Case]:
    """So many schedules of a fault, one after the other in one cluster."""
    number = 0
    while number < tries:
        name = f"{kind.name.replace(' ', '-').replace(',', '')}-{number + 1}"
        with open_cluster(folder / name, data, needs_disks=kind.needs_disks) as cluster:
            while number < tries:
                number += 1
                case = try_once(kind, number, seed, cluster, reference)
                yield case
                if not case.is_good:
                    # What is left may not be fit for the next.
                    break


def try_once(
    kind: FaultKind, number: int, seed: int, cluster: Cluster, reference: Reference
) -> Case:
    """One schedule: this one for this seed."""
    trial = Trial(cluster, reference, random.Random(f"{seed}/{kind.name}/{number}"))
    began, lost, twice = time.monotonic(), 0, 0
    try:
        cluster.wait_for_all()
        kind.happen(trial)
        verdict = trial.verdict()
        lost, twice = verdict.lost, verdict.counted_twice
        if verdict.missing:
            outcome = "ledger" if kind.may_miss else f"{verdict.missing} missing"
        else:
            outcome = "same parameters" if verdict.is_same else "other parameters"
        if logs := cluster.tracebacks():
            outcome = f"traceback in {', '.join(logs)}"
    except (AssertionError, CoppiceError, subprocess.TimeoutExpired) as error:
        outcome = f"failed: {str(error).splitlines()[0]}"
    cluster.calm()
    seconds = time.monotonic() - began
    return Case(kind.name, number, outcome, lost, twice, tuple(trial.notes), seconds)


@contextmanager
def open_cluster(
    folder: Path, data: dict[str, Path], *, needs_disks: bool = False
) -> Iterator[Cluster]:
    """One in a new folder."""
    folder.mkdir()
    with ExitStack() as opened:
        for name in (SERVER, *NAMES) if needs_disks else ():
            opened.enter_context(_disk(folder / name))
        yield opened.enter_context(Cluster(folder, data))


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """A small disk of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "coppice-faults", str(folder)]
    subprocess.run(mount, check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


def _table(kinds: Sequence[FaultKind], cases: Sequence[Case]) -> str:
    rows = []
    for name in [*(kind.name for kind in kinds), "all"]:
        here = [case for case in cases if name in ("all", case.fault)]
        ends = [case.outcome for case in here]
        same, ledger = ends.count("same parameters"), ends.count("ledger")
        rows.append(
            (
                name,
                len(here),
                same,
                ledger,
                len(here) - same - ledger,
                sum(case.lost for case in here),
                sum(case.counted_twice for case in here),
            )
        )
    heads = ("fault", "tries", "same parameters", "ledger says so", "else", "lost", "counted twice")
    return table(heads, rows)
