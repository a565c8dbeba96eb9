"""What a stopped server has left behind, checked before it is believed.

A bit that flipped on the disk would otherwise become part of the model without a word. Of the blobs
only those of the open run are read: of an ended one nothing is computed any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from coppice.domain import BlobRef, TaskKind
from coppice.errors import StoreUnusable
from server.blobs import Blobs
from server.records import NewEvent, RunRecord, TaskRecord, UpdateRecord
from server.store import Store

_READ_BYTES = 2**20


def check_blobs(store: Store, blobs: Blobs, now: float, renew: Callable[[], None]) -> None:
    """Give up stored updates of the open run that are damaged: their tasks are offered again.

    `renew` is called after each blob: on a slow disk all take longer than a lease lasts.

    StoreUnusable when what is damaged cannot be made again, and when the database knows nothing of
    the blobs that are there.
    """
    if blobs.count() and not store.runs():
        raise StoreUnusable(
            f"the database has no run, but {blobs.folder} holds blobs of some: is it the right "
            "one? Put back a copy of it, or choose another folder with --data; if it never had a "
            "run, empty that folder"
        )
    run = store.open_run()
    if run is None:
        return
    for update in _updates(store, run):
        if not _is_sound(blobs, update.blob):
            _give_up(store, run, update, now)
        renew()
    for ref, what in _needed(store, run).items():
        # One that is missing fails the run, which is a way out where there is no copy.
        if blobs.has(ref.digest) and not _is_sound(blobs, ref):
            raise StoreUnusable(
                f"{blobs.path(ref.digest)} is damaged, {what} of run {run.spec.name}: put back a "
                "copy of it, or delete it, and the run fails; then start again"
            )
        renew()


def _give_up(store: Store, run: RunRecord, update: UpdateRecord, now: float) -> None:
    task = store.task(update.task_id)
    text = f"round {task.round_number}: the stored update of {task.client_id} is damaged"
    event = NewEvent(
        "update_damaged",
        f"{text}; its task is offered again",
        run.run_id,
        task.round_number,
        task.client_id,
    )
    store.forget_update(task, now, events=[event])


def _is_sound(blobs: Blobs, ref: BlobRef) -> bool:
    hashed = hashlib.sha256()
    if not blobs.has(ref.digest):
        return False
    with blobs.open(ref.digest) as file, blobs.disk_errors():
        while piece := file.read(_READ_BYTES):
            hashed.update(piece)
    return hashed.hexdigest() == ref.digest


def _updates(store: Store, run: RunRecord) -> list[UpdateRecord]:
    return store.updates(run.run_id, run.round_number + 1)


def _needed(store: Store, run: RunRecord) -> dict[BlobRef, str]:
    """What each is: devices often share a payload."""
    found = {run.best_blob: "the best state", run.spec.warm_start: "the warm start"}
    found[run.state_blob] = "the state"
    for task in _open_tasks(store, run):
        found[task.payload] = f"a payload of round {task.round_number}"
        found[task.masks] = f"the masks of round {task.round_number}"
    return {ref: what for ref, what in found.items() if ref is not None}


def _open_tasks(store: Store, run: RunRecord) -> list[TaskRecord]:
    planned = store.tasks(run.run_id, run.round_number + 1)
    return [*planned, *store.tasks(run.run_id, run.round_number, TaskKind.EVALUATE)]
