"""The way of an update from a stream of bytes to a receipt: checked, stored, then acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from coppice.domain import BlobRef, ClientId
from coppice.errors import (
    InvalidMessage,
    InvalidPayload,
    RoundClosed,
    UnknownTask,
    UpdateRefused,
)
from coppice.wire import coordination_pb2 as pb
from coppice.wire import payload as wire
from coppice.wire.bounds import MAX_COUNT
from coppice.wire.chunks import MAX_CHUNK_BYTES
from coppice.wire.codec import blob_from_message, check_push_header, metrics_from_message
from coppice.wire.header import largest_size_bytes
from server.records import NewEvent, TaskRecord, UpdateRecord
from server.resources import Resources


async def take_update(
    resources: Resources,
    client_id: ClientId,
    header: pb.PushHeader,
    chunks: AsyncIterator[bytes],
    offered: TaskRecord | None,
    sent_bytes: Callable[[], int],
    stored: Callable[[TaskRecord], None],
) -> UpdateRecord:
    """Receive, check and store the answer to a task.

    What was stored before is found again: the bytes are not read a second time.

    Args:
        offered: The client's unanswered open task, which needs no look into the store.
        sent_bytes: Gives what went down to devices and is to be stored with the update.
        stored: Told of the task once its answer is stored, now or before.

    Raises:
        UpdateRefused, InvalidMessage, UnknownTask, RoundClosed, TransferBroken: Nothing is stored.
    """
    check_push_header(header)
    if header.task_id >= MAX_COUNT:
        raise UnknownTask(f"there is no task {header.task_id}")
    store, threads = resources.store, resources.threads
    if offered is not None and offered.task_id == header.task_id:
        task = offered
    else:
        task = await threads.store(partial(store.task, header.task_id))
        if task.client_id != client_id:
            raise UnknownTask(f"task {header.task_id} is not a task of {client_id}")
        earlier = await threads.store(partial(store.update, task.task_id))
        if earlier is not None:
            stored(task)
            return earlier
        if task.closed:
            # Before a slow link has carried all of it.
            raise RoundClosed(f"round {task.round_number} is over; the update does not count")
    ref = blob_from_message(header.blob)
    largest = largest_size_bytes(task.expects)
    if ref.size_bytes > largest:
        raise UpdateRefused(
            f"the update has {ref.size_bytes} bytes; task {task.task_id} expects {largest} at "
            "most: is the model the run's?"
        )
    if header.offset != 0:
        raise InvalidMessage(f"the update starts at byte {header.offset}; it must start at 0")
    await _receive(resources, client_id, ref, chunks)
    await threads.compute(partial(_check, resources, task, ref))
    event = NewEvent(
        "update_stored",
        f"round {task.round_number}: update of {client_id} stored",
        task.run_id,
        task.round_number,
        client_id,
    )
    metrics = metrics_from_message(header.metrics)

    async def keep() -> UpdateRecord:
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
        return update

    # The connection may break off in these milliseconds: what is stored is told all the same.
    return await asyncio.shield(keep())


async def _receive(
    resources: Resources, client_id: ClientId, ref: BlobRef, chunks: AsyncIterator[bytes]
) -> None:
    transfer = resources.threads.transfer
    with resources.blobs.receive(ref) as incoming:
        async for chunk in chunks:
            if len(chunk) > MAX_CHUNK_BYTES:
                raise InvalidMessage(f"a chunk may have {MAX_CHUNK_BYTES} bytes at most")
            resources.presence.saw(client_id)
            await transfer(partial(incoming.write, chunk))
        await transfer(incoming.commit)


def _check(resources: Resources, task: TaskRecord, ref: BlobRef) -> None:
    try:
        wire.check(resources.blobs.read(ref.digest), task.expects)
    except InvalidPayload as error:
        raise UpdateRefused(str(error)) from None
