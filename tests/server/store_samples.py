"""Small runs, clients and stores, for the tests of the store."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from coppice.cohort import CohortSpec
from coppice.domain import (
    AppSpec,
    BlobRef,
    Capability,
    ClientId,
    EvaluationSpec,
    MethodSpec,
    RunSpec,
    StopSpec,
    TaskKind,
)
from coppice.tensors import TensorSpec
from server.records import (
    ClientRecord,
    NewEvent,
    NewTask,
    TaskRecord,
)
from server.store import Store

SPEC = RunSpec(
    name="digits",
    seed=7,
    app=AppSpec(name="app.py", digest="a" * 64),
    method=MethodSpec(name="fedavg", settings={"lr": 0.1, "steps": 5}),
    cohort=CohortSpec(size=3, labels={"room": "7"}),
    stop=StopSpec(rounds=20, target=0.9),
    evaluation=EvaluationSpec(every=2, metric="loss", goal="min"),
)
EXPECTS = {"delta": {"w": TensorSpec((3, 2), "float32"), "b": TensorSpec((), "int64")}}
NOON = 43_200.5
EVENT = NewEvent("round_committed", "round 1 committed", run_id=1, round_number=1)


def blob(letter: str, size_bytes: int = 10) -> BlobRef:
    return BlobRef(letter * 64, size_bytes)


def new_task(client: str, kind: TaskKind = TaskKind.TRAIN, payload: str = "b") -> NewTask:
    return NewTask(ClientId(client), kind, blob(payload, 100), None, {"seed": 3}, EXPECTS)


def new_client(name: str = "pi-1", device_id: str = "device-1") -> ClientRecord:
    return ClientRecord(
        client_id=ClientId(name),
        device_id=device_id,
        labels={"room": "7"},
        capability=Capability(
            memory_bytes=2**31,
            num_threads=4,
            machine="aarch64",
            memory_bound_by="free memory",
            cores=4.0,
            temperature_celsius=51.5,
            throttled=("throttled",),
        ),
        app_digest="",
        software="coppice 0.1",
        joined_at=NOON,
        left_at=None,
        left_reason="",
        refusals=0,
    )


class ReopenedStore:
    """A store that is closed after every call: nothing can be true in memory only."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with contextlib.closing(Store(self._url)) as store:
                return getattr(store, name)(*arguments, **named)

        return call


#: See `fresh_store`.
KINDS_OF_STORE = ("memory", "reopened file")


@contextlib.contextmanager
def fresh_store(kind: str, folder: Path) -> Iterator[Store]:
    """An empty store, in memory or in a file that is closed after every call."""
    if kind == "memory":
        made = Store("sqlite:///:memory:")
    else:
        made = cast(Store, ReopenedStore(f"sqlite:///{folder}/coppice.db"))
    made.migrate()
    yield made
    made.close()


def start(store: Store) -> int:
    """A running run with round 1 open."""
    run_id = store.submit_run(SPEC, NOON)
    store.start_run(run_id, blob("0"), NOON + 1)
    store.open_round(run_id, 1, NOON + 2)
    return run_id


def plan(store: Store, run_id: int, *clients: str, round_number: int = 1) -> list[TaskRecord]:
    tasks = [new_task(client) for client in clients]
    return store.commit_tasks(run_id, round_number, "0" * 64, NOON + 60, tasks, NOON + 3)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory; the test is skipped where nothing may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {result.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
