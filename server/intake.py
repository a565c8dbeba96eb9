"""The way of an update from a stream of bytes to a receipt: checked, stored, then acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NoReturn

from coppice.claims import check_claims
from coppice.domain import BlobRef, ClientId
from coppice.errors import (
    InvalidMessage,
    InvalidPayload,
    RoundClosed,
    UnknownTask,
    UpdateRefused,
)
from coppice.protection import Finding
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.bounds import MAX_COUNT
from coppice.wire.chunks import MAX_CHUNK_BYTES
from coppice.wire.codec import blob_from_message, check_push_header, metrics_from_message
from coppice.wire.header import largest_size_bytes
from server.records import NewEvent, TaskRecord, UpdateRecord
from server.resources import Resources
from server.verdicts import update_refused


async def take_update(
    resources: Resources,
    client_id: ClientId,
    header: pb.PushHeader,
    chunks: AsyncIterator[bytes],
    offered: TaskRecord | None,
    sent_bytes: Callable[[], int],
    stored: Callable[[TaskRecord], None],
) -> tuple[TaskRecord, UpdateRecord]:
    """Receive, check and store the answer to a task.

    What was stored before is found again: the bytes are not read a second time.

    Args:
        offered: The client's unanswered open task, which needs no look into the store.
        sent_bytes: Gives what went down to devices and is to be stored with the update.
        stored: Told of the task once its answer is stored, now or before.

    Raises:
        UpdateRefused: The update does not fit its task; that, and why, is stored in its place.
        InvalidMessage, UnknownTask, RoundClosed, TransferBroken: Nothing is stored.
    """
    check_push_header(header)
    store, threads = resources.store, resources.threads
    # Before a slow link has carried all of it.
    task, earlier = await find_task(resources, client_id, header.task_id, offered)
    if earlier is not None:
        stored(task)
        return task, earlier
    ref = blob_from_message(header.blob)
    largest = largest_size_bytes(task.expects)
    if ref.size_bytes > largest:
        finding = Finding(
            "structure",
            f"the update has {ref.size_bytes} bytes; task {task.task_id} expects {largest} at "
            "most: is the model the run's?",
            {"size_bytes": float(ref.size_bytes), "largest_bytes": float(largest)},
        )
        await _refuse(resources, task, ref, finding)
    await _receive(resources, client_id, ref, header.offset, chunks)
    if (found := await threads.compute(partial(_check, resources, task, ref, header))) is not None:
        await _refuse(resources, task, ref, found)
    event = NewEvent(
        "update_stored",
        f"round {task.round_number}: update of {client_id} stored",
        task.run_id,
        task.round_number,
        client_id,
    )
    metrics = metrics_from_message(header.metrics)

    async def keep() -> tuple[TaskRecord, UpdateRecord]:
        update = await resources.write(
            partial(store.store_update, sent_bytes=sent_bytes()),
            task.task_id,
            ref,
            header.num_examples,
            header.steps,
            metrics,
            events=[event],
        )
        stored(task)
        return task, update

    # The connection may break off in these milliseconds: what is stored is told all the same.
    return await asyncio.shield(keep())


async def find_task(
    resources: Resources, client_id: ClientId, task_id: int, offered: TaskRecord | None
) -> tuple[TaskRecord, UpdateRecord | None]:
    """A client's task, and its answer if that is stored.

    UnknownTask when it is none of this client's; UpdateRefused or RoundClosed when it takes no
    answer any more. `offered` is as for `take_update`.
    """
    if task_id >= MAX_COUNT:
        raise UnknownTask(f"there is no task {task_id}")
    if offered is not None and offered.task_id == task_id:
        return offered, None
    store, threads = resources.store, resources.threads
    task = await threads.store(partial(store.task, task_id))
    if task.client_id != client_id:
        raise UnknownTask(f"task {task_id} is not a task of {client_id}")
    earlier = await threads.store(partial(store.update, task_id))
    if earlier is not None:
        return task, earlier
    refusal = await threads.store(partial(store.refusal, task_id))
    if refusal is not None:
        raise UpdateRefused(refusal.finding.reason)
    if task.closed:
        raise RoundClosed(f"round {task.round_number} is over; the update does not count")
    return task, None


async def _receive(
    resources: Resources,
    client_id: ClientId,
    ref: BlobRef,
    offset: int,
    chunks: AsyncIterator[bytes],
) -> None:
    transfer = resources.threads.transfer
    upload = await transfer(partial(resources.uploads.receive, client_id, ref, offset))
    # Where the link is slow, its first bytes take a while.
    resources.presence.uploading(client_id, upload.share)
    try:
        async for chunk in chunks:
            if len(chunk) > MAX_CHUNK_BYTES:
                raise InvalidMessage(f"a chunk may have {MAX_CHUNK_BYTES} bytes at most")
            await transfer(partial(upload.write, chunk))
            resources.presence.uploading(client_id, upload.share)
        await transfer(upload.commit)
    except BaseException as error:
        upload.failed(error)
        raise


def _check(
    resources: Resources, task: TaskRecord, ref: BlobRef, header: pb.PushHeader
) -> Finding | None:
    try:
        wire.check(resources.blobs.read(ref.digest), task.expects)
    except InvalidPayload as error:
        return Finding("structure", str(error))
    return check_claims(header.num_examples, header.steps, task.most_examples, task.most_steps)


async def _refuse(
    resources: Resources, task: TaskRecord, ref: BlobRef, finding: Finding
) -> NoReturn:
    """Store why an update is refused, then say it."""
    resources.refused_clients.add(task.client_id)
    event = update_refused(task.run_id, task.round_number, task.client_id, finding)
    store = resources.store
    # Breaking the connection off does not undo it.
    await asyncio.shield(resources.write(store.refuse_update, task, ref, finding, events=[event]))
    raise UpdateRefused(finding.reason)
