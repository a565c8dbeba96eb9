"""What is damaged on the disk of a stopped server is found, and never becomes part of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coppice.domain import BlobRef
from coppice.errors import RoundClosed, StoreUnusable
from server.blobs import Blobs
from server.records import NewTask, RunState, TaskRecord
from server.soundness import check_blobs
from server.store import Store
from tests.server.store_samples import NOON, SPEC, fresh_store, new_task


class Left:
    """A store and blobs as a killed server leaves them: one update of two, in round 1."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.renewed: list[float] = []
        self.blobs = Blobs(folder / "blobs", durable=False)
        self.state = self.blobs.put(b"the state")
        self.payload = self.blobs.put(b"the payload")
        self.masks = self.blobs.put(b"the masks")
        self.update = self.blobs.put(b"an update")
        self.run_id = store.submit_run(SPEC, NOON)
        store.start_run(self.run_id, self.state, NOON)
        store.open_round(self.run_id, 1, NOON)
        new = [self._new_task("pi-1"), self._new_task("pi-2")]
        self.tasks: list[TaskRecord] = store.commit_tasks(
            self.run_id, 1, self.state.digest, NOON + 60, new, NOON
        )
        store.store_update(self.tasks[0].task_id, self.update, 10, 5, {}, NOON)

    def _new_task(self, client: str) -> NewTask:
        return replace(new_task(client), payload=self.payload, masks=self.masks)

    def check(self, now: float = NOON) -> None:
        check_blobs(self.store, self.blobs, now, lambda: self.renewed.append(now))

    def damage(self, ref: BlobRef) -> Path:
        path = self.blobs.path(ref.digest)
        data = bytearray(path.read_bytes())
        data[3] ^= 4
        path.write_bytes(data)
        return path


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    with fresh_store("memory", tmp_path) as store:
        yield Left(store, tmp_path)


def test_what_is_sound_stays(left: Left) -> None:
    left.check()
    assert left.store.update(left.tasks[0].task_id) is not None
    assert [event.kind for event in left.store.events(left.run_id)] == []
    assert len(left.renewed) == 4, "the lease, after each blob"


@pytest.mark.parametrize("is_missing", [False, True])
def test_damaged_update_is_given_up_and_its_task_is_open_again(
    left: Left, is_missing: bool
) -> None:
    path = left.damage(left.update)
    if is_missing:
        path.unlink()
    left.check()
    (task, _) = left.tasks
    assert left.store.update(task.task_id) is None
    (event,) = left.store.events(left.run_id)
    assert (event.kind, event.client_id) == ("update_damaged", "pi-1")
    assert "its task is offered again" in event.text
    left.store.store_update(task.task_id, left.update, 10, 5, {}, NOON)


def test_round_that_was_closed_already_takes_the_update_again(left: Left) -> None:
    left.store.close_tasks(left.run_id, 1, left.tasks[0].kind, 0, NOON)
    with pytest.raises(RoundClosed):
        left.store.store_update(left.tasks[1].task_id, left.update, 10, 5, {}, NOON)
    left.damage(left.update)
    left.check()
    left.store.store_update(left.tasks[0].task_id, left.update, 10, 5, {}, NOON)


def test_round_has_as_long_again_for_what_was_damaged(left: Left) -> None:
    left.damage(left.update)
    # Long after its deadline.
    left.check(now=NOON + 3600)
    tasks = left.store.tasks(left.run_id, 1)
    assert [task.deadline_at for task in tasks] == [NOON + 3660] * 2


@pytest.mark.parametrize("what", ["state", "payload", "masks"])
def test_what_cannot_be_made_again_is_named(left: Left, what: str) -> None:
    path = left.damage(getattr(left, what))
    with pytest.raises(StoreUnusable, match=what) as caught:
        left.check()
    assert str(path) in str(caught.value)
    assert "put back a copy" in str(caught.value)


def test_the_state_of_the_best_round_is_needed_too(left: Left) -> None:
    best = left.blobs.put(b"the best state")
    left.store.record_evaluation(left.run_id, 0, "server", {}, (0.5, best), now=NOON)
    left.check()
    left.damage(best)
    with pytest.raises(StoreUnusable, match="the best state"):
        left.check()


def test_a_state_that_is_missing_is_left_to_its_run(left: Left) -> None:
    left.damage(left.state).unlink()
    left.check()


def test_blobs_of_an_ended_run_are_not_read(left: Left) -> None:
    left.store.end_run(left.run_id, RunState.STOPPED, "", NOON)
    left.damage(left.state)
    left.check()


def test_blobs_of_which_the_database_knows_nothing_are_no_new_beginning(
    left: Left, tmp_path: Path
) -> None:
    with (
        fresh_store("memory", tmp_path) as empty,
        pytest.raises(StoreUnusable, match="has no run, but"),
    ):
        check_blobs(empty, left.blobs, NOON, lambda: None)
