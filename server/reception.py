"""Where the devices' answers come in: who brings what, how far it is, and what the run learns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from coppice.domain import ClientId
from coppice.errors import UpdateRefused
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import blob_from_message
from server.intake import find_task, take_update
from server.records import Stored, TaskRecord, UpdateRecord
from server.resources import Resources
from server.run_driver import RunDriver
from server.uploads import share_of


class Reception:
    """Between the calls of devices and the run that is open."""

    def __init__(self, resources: Resources, driver: Callable[[], RunDriver | None]) -> None:
        """`driver` gives that of the open run; None while there is none."""
        self._resources = resources
        self._driver = driver

    async def push(
        self, client_id: ClientId, header: pb.PushHeader, chunks: AsyncIterator[bytes]
    ) -> Stored:
        """Take an update in; returns when it is stored."""
        self._resources.presence.saw(client_id)
        offered = self._offered(client_id)
        try:
            task, update = await take_update(
                self._resources,
                client_id,
                header,
                chunks,
                offered,
                self._take_sent_bytes,
                self._tell_stored,
            )
        except UpdateRefused:
            driver = self._driver()
            if driver is not None and offered is not None and offered.task_id == header.task_id:
                driver.drop(offered, is_refused=True)
            raise
        return await self._stored(task, update)

    async def status(self, client_id: ClientId, request: pb.PushStatusRequest) -> Stored | int:
        """What was stored for a task, or how many bytes of its update are here."""
        self._resources.presence.saw(client_id)
        ref = blob_from_message(request.blob)
        offered = self._offered(client_id)
        task, update = await find_task(self._resources, client_id, request.task_id, offered)
        if update is not None:
            self._tell_stored(task)
            return await self._stored(task, update)
        uploads = self._resources.uploads
        received = partial(uploads.received_bytes, client_id, ref)
        received_bytes = await self._resources.threads.transfer(received)
        if received_bytes:
            presence, share = self._resources.presence, share_of(received_bytes, ref)
            presence.uploading(client_id, share)
        return received_bytes

    async def _stored(self, task: TaskRecord, update: UpdateRecord) -> Stored:
        driver = self._driver()
        if driver is not None and driver.run_id == task.run_id:
            run = driver.record
        else:
            read = partial(self._resources.store.run, task.run_id)
            run = await self._resources.threads.store(read)
        return Stored(
            client_id=task.client_id,
            run_key=run.key,
            task_id=task.task_id,
            base=task.base,
            digest=update.blob.digest,
            stored_at=int(update.received_at),
        )

    def _offered(self, client_id: ClientId) -> TaskRecord | None:
        driver = self._driver()
        return driver.tasks.get(client_id) if driver is not None else None

    def _take_sent_bytes(self) -> int:
        driver = self._driver()
        return driver.take_sent_bytes() if driver is not None else 0

    def _tell_stored(self, task: TaskRecord) -> None:
        driver = self._driver()
        if driver is not None and driver.run_id == task.run_id:
            driver.update_stored(task)
