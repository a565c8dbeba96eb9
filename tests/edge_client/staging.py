"""A method that keeps the number of its last round on the device: what is kept, and when."""

from __future__ import annotations

import pytest

from coppice.domain import BlobRef
from coppice.method import ClientHalf, Local, Task, Update, client_half
from edge_client.private import PrivateState
from edge_client.state_folder import StateFolder
from tests.edge_client.fake_server import WORKLOAD, FakeServer, run_key
from tests.edge_client.test_private import Other

PRIVATE = f"{run_key(1)}-fedavg"


def note_training(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rounds in which something was trained; each keeps its number on the device."""
    rounds: list[int] = []
    half = type(client_half(WORKLOAD.method))
    run = half.run

    def noted(self: ClientHalf, task: Task, local: Local) -> Update:
        rounds.append(task.round_number)
        local.private.stage(Other(task.round_number))
        return run(self, task, local)

    monkeypatch.setattr(half, "run", noted)
    return rounds


def kept(folder: StateFolder) -> int | None:
    """Of which round the private state on the device is."""
    found = PrivateState(folder.private / PRIVATE).read(Other)
    return None if found is None else found.number


def offer(server: FakeServer, ref: BlobRef, *tasks: int) -> None:
    """A run, and a round for each of these tasks."""
    server.offer_run()
    for task_id in tasks:
        server.offer_task(ref, task_id=task_id, round_number=task_id)
