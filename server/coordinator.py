"""Clients and runs brought together: who is there, which run is open, what a poll is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from functools import partial

from coppice.domain import ClientId, Participant, RunSpec
from coppice.errors import (
    AppMismatch,
    CoppiceError,
    DiskFull,
    NotJoined,
    StoreUnusable,
    UnknownBlob,
    UnknownRun,
)
from coppice.wire import coordination_pb2 as pb
from server.access_records import SERVER, Actor, Line
from server.answers import Answer, CheckIn, EndedRun, OpenRun, blobs_of
from server.bell import Bell
from server.keepsakes import Keepsakes
from server.reception import Reception
from server.records import (
    ClientRecord,
    NewEvent,
    ReportRecord,
    RunRecord,
    RunState,
    Snapshot,
    Stored,
    TaskRecord,
    Wait,
)
from server.refusals import Refusals
from server.reports import Reports
from server.resources import Resources
from server.run_driver import RunDriver
from server.verdicts import untold

_LOG = logging.getLogger(__name__)

#: How long a poll without an answer is held.
POLL_SECONDS = 20.0
_WATCH_SECONDS = 1.0


class Coordinator:
    """Belongs to the event loop's thread. One run is open at a time; the others queue."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._store = resources.store
        self._bell = Bell()
        self._submitted = asyncio.Event()
        self._driver: RunDriver | None = None
        self._clients: dict[ClientId, ClientRecord] = {}
        #: The newest poll of each client; an older one gives way to it.
        self._polls: dict[ClientId, object] = {}
        self._keepsakes = Keepsakes(resources)
        self._refusals = Refusals(resources)
        self._reports = Reports(resources)
        self._reception = Reception(resources, lambda: self._driver)
        self._absent: set[ClientId] = set()
        self.untold = partial(untold, resources)
        #: Held while the next run is chosen, and while one that waits is stopped.
        self._choosing = asyncio.Lock()
        self._failures: asyncio.Queue[CoppiceError] = asyncio.Queue()

    # ---- life ----

    async def run(self) -> None:
        """Drive run after run, until cancelled."""
        await self._reports.load()
        clients = await self._resources.threads.store(self._store.clients)
        self._clients = {client.client_id: client for client in clients if client.left_at is None}
        refused = await self._resources.threads.store(self._store.refused_clients)
        self._resources.refused_clients.update(refused)
        works = (self._drive_all(), self._watch(), self._raise_failures())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            # None ends by itself: what one raises stops the server.
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive_all(self) -> None:
        while True:
            self._submitted.clear()
            async with self._choosing:
                record = await self._resources.threads.store(self._next_run)
            # No pause from here to the driver: who stops a run finds it waiting, or driven.
            if record is None:
                await self._submitted.wait()
            else:
                await self._drive(record)

    async def _raise_failures(self) -> None:
        raise await self._failures.get()

    def give_up(self, failure: CoppiceError) -> None:
        """A call met a store that cannot be used: `run` raises this."""
        self._failures.put_nowait(failure)

    def _next_run(self) -> RunRecord | None:
        return self._store.open_run() or self._store.next_run()

    async def _drive(self, record: RunRecord) -> None:
        try:
            self._driver = RunDriver(
                record, self._resources, self._bell, lambda: self._keepsakes.digests
            )
            self._bell.ring()
            await self._driver.run()
        except (DiskFull, StoreUnusable):
            # Nothing can be written: the server stops, and the run goes on where it was.
            raise
        except CoppiceError as error:
            await self._fail(record, str(error))
        except (
            Exception
        ) as error:  # the outermost loop of a run: a method's or an app's own mistake
            _LOG.exception("run %s failed", record.spec.name)
            await self._fail(record, f"{type(error).__name__}: {error}")
        finally:
            self._driver = None
            self._bell.ring()

    async def _fail(self, record: RunRecord, reason: str) -> None:
        event = NewEvent("run_ended", f"run {record.spec.name} failed: {reason}", record.run_id)
        await self._resources.write(
            self._store.end_run, record.run_id, RunState.FAILED, reason, events=[event]
        )

    async def _watch(self) -> None:
        """Notice who has fallen silent."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for live in self.snapshot().clients.values():
                if live.presence == "suspect":
                    await self._note_silence(live.client_id, live.seconds_silent)
                elif live.presence in ("lost", "left") and self._driver is not None:
                    self._driver.gone(live.client_id)
                elif live.presence in ("idle", "working"):
                    self._absent.discard(live.client_id)

    async def _note_silence(self, client_id: ClientId, seconds: float) -> None:
        if client_id not in self._absent:
            self._absent.add(client_id)
            text = f"{client_id} has been silent for {seconds:.0f} s"
            event = NewEvent("client_suspected", text, client_id=client_id)
            await self._resources.write(self._store.append, events=[event])

    # ---- runs ----

    async def submit(self, spec: RunSpec, by: Actor = SERVER) -> int:
        """Queue a run, which was checked."""
        event = NewEvent("run_submitted", f"run {spec.name} submitted")
        lines: list[Line] = [event, by.did("submit run", spec.name)]
        run_id: int = await self._resources.write(self._store.submit_run, spec, events=lines)
        self._submitted.set()
        return run_id

    async def stop_run(self, run_id: int) -> None:
        """End a run that is queued or running; UnknownRun when it is neither."""
        async with self._choosing:
            if self._driver is not None and self._driver.run_id == run_id:
                self._driver.stop()
                return
            record = await self._resources.threads.store(partial(self._store.run, run_id))
            if record.ended_at is not None:
                raise UnknownRun(f"run {run_id} has ended already ({record.state})")
            event = NewEvent("run_ended", f"run {record.spec.name} stopped before it began", run_id)
            end = partial(self._store.end_run, run_id, RunState.STOPPED, "stopped by an operator")
            await self._resources.write(end, events=[event])

    def snapshot(self) -> Snapshot:
        """The present moment."""
        driver = self._driver
        lost_after = driver.spec.cohort.lost_after_seconds if driver else 60.0
        clients = self._resources.presence.snapshot(lost_after)
        return Snapshot(
            run_id=driver.run_id if driver else None,
            round_number=driver.machine.round_number if driver else 0,
            phase=driver.machine.phase if driver else "idle",
            wait=driver.wait(clients) if driver else Wait(),
            clients=clients,
            refusals=self._refusals.count,
        )

    # ---- clients ----

    @property
    def newest_reports(self) -> Mapping[ClientId, ReportRecord]:
        """What each client measured of its last round."""
        return self._reports.newest

    async def join(self, client: ClientRecord) -> None:
        """Take a client in; NameTaken or AppMismatch when that cannot be."""
        if self._driver is not None:
            _check_app(self._driver.spec, client.app_digest)
        event = NewEvent("client_joined", f"{client.client_id} joined", client_id=client.client_id)
        await self._resources.write(self._store.join_client, client, events=[event])
        self._clients[client.client_id] = client
        self._resources.presence.told(client.client_id, client.capability)

    async def leave(self, client_id: ClientId, reason: str) -> None:
        """A client's goodbye."""
        self.require_joined(client_id)
        text = f"{client_id} left" + (f": {reason}" if reason else "")
        event = NewEvent("client_left", text, client_id=client_id)
        await self._resources.write(self._store.leave_client, client_id, reason, events=[event])
        self._forget(client_id)

    async def expel(self, client_id: ClientId) -> None:
        """A client was revoked, whether or not it is here."""
        if client_id in self._clients:
            # Others wait for it no longer, whatever the store takes for its note.
            self._forget(client_id)
            await self._resources.write(self._store.leave_client, client_id, "revoked")

    def _forget(self, client_id: ClientId) -> None:
        self._clients.pop(client_id, None)
        if self._polls.pop(client_id, None) is not None:
            self._bell.ring()
        self._resources.presence.left(client_id)
        if self._driver is not None:
            self._driver.gone(client_id)

    def sent(self, client_id: ClientId, size_bytes: int) -> None:
        """Bytes went down to this client: as good as a heartbeat."""
        self._resources.presence.fetching(client_id)
        if self._driver is not None:
            self._driver.sent(size_bytes)

    def require_joined(self, client_id: ClientId) -> ClientRecord:
        """The client's record; NotJoined when it has none."""
        try:
            return self._clients[client_id]
        except KeyError:
            raise NotJoined(f"{client_id} has not joined this server") from None

    def heartbeat(
        self,
        client_id: ClientId,
        task_id: int,
        steps: int,
        resident: int,
        fetched: float | None = None,
    ) -> bool:
        """A sign of life. Returns whether the task is still wanted."""
        self.require_joined(client_id)
        self._resources.presence.working(client_id, task_id or None, steps, resident, fetched)
        return task_id == 0 or (self._driver is not None and self._driver.wants(client_id, task_id))

    async def poll(self, check_in: CheckIn) -> Answer:
        """Wait until there is something for this client, POLL_SECONDS at most."""
        client = self.require_joined(check_in.client_id)
        self._resources.presence.told(client.client_id, check_in.capability)
        if client.client_id in self._polls:
            self._bell.ring()
        ticket = self._polls[client.client_id] = object()
        end = asyncio.get_running_loop().time() + POLL_SECONDS
        with self._resources.presence.polling(client.client_id):
            try:
                if check_in.report is not None:
                    await self._reports.take(client.client_id, check_in.run_key, check_in.report)
                if check_in.declined_task_id:
                    await self._take_back(client.client_id, check_in.declined_task_id)
                while self._polls.get(client.client_id) is ticket:
                    ring = self._bell.next_ring
                    answer = await self._answer(client, check_in)
                    if answer is not None:
                        break
                    try:
                        async with asyncio.timeout_at(end):
                            await ring.wait()
                    except TimeoutError:
                        return None
                else:
                    return None
            except asyncio.CancelledError:
                # The connection broke off: whoever was waiting here is not there any more.
                if self._driver is not None and self._polls.get(client.client_id) is ticket:
                    self._driver.gone(client.client_id)
                raise
            finally:
                if self._polls.get(client.client_id) is ticket:
                    del self._polls[client.client_id]
        if isinstance(answer, TaskRecord):
            self._resources.presence.offered(client.client_id, answer.task_id)
        return answer

    async def _answer(self, client: ClientRecord, check_in: CheckIn) -> Answer:
        driver = self._driver
        is_ready = driver is not None and driver.record.key == check_in.run_key
        if check_in.run_key and not is_ready:
            find = partial(self._store.run_of_key, check_in.run_key)
            record = await self._resources.threads.store(find)
            if record is not None and record.ended_at is not None:
                return EndedRun(
                    record,
                    await self._keepsakes.of(
                        record, client.client_id, list(self._clients.values())
                    ),
                )
        if driver is None or not driver.takes(client.client_id, client.labels):
            return None
        _check_app(driver.spec, check_in.app_digest)
        if not is_ready:
            return OpenRun(driver.record)
        if (task := driver.tasks.get(client.client_id)) is not None:
            return task
        choice = None
        if driver.terms is not None:
            if check_in.choice is None or check_in.choice[0] != driver.terms.round_number:
                return driver.terms
            choice = check_in.choice[1]
        driver.arrived(
            Participant(
                client.client_id,
                check_in.capability,
                check_in.num_examples,
                choice,
                client.labels,
            )
        )
        return None

    def may_fetch(self, client_id: ClientId, digest: str) -> None:
        """UnknownBlob unless the blob was offered to this client."""
        self.require_joined(client_id)
        offered = set()
        if self._driver is not None:
            task = self._driver.tasks.get(client_id)
            offered |= set() if task is None else blobs_of(task)
            if self._driver.terms is not None:
                offered.add(self._driver.terms.payload.digest)
        if digest not in offered and not self._keepsakes.offers(client_id, digest):
            raise UnknownBlob(f"blob {digest[:12]} is not (or no longer) offered to {client_id}")

    async def _take_back(self, client_id: ClientId, task_id: int) -> None:
        """The device cannot do its task; one that is not open needs nothing more."""
        task = self._driver.tasks.get(client_id) if self._driver is not None else None
        if self._driver is None or task is None or task.task_id != task_id:
            return
        self._driver.drop(task, is_declined=True)
        event = NewEvent(
            "task_declined",
            f"round {task.round_number}: {client_id} has not the memory for its task",
            task.run_id,
            task.round_number,
            client_id,
        )
        await self._resources.write(self._store.append, events=[event])

    async def push(
        self, client_id: ClientId, header: pb.PushHeader, chunks: AsyncIterator[bytes]
    ) -> Stored:
        """Take an update in; returns when it is stored."""
        self.require_joined(client_id)
        return await self._reception.push(client_id, header, chunks)

    async def push_status(self, client_id: ClientId, request: pb.PushStatusRequest) -> Stored | int:
        """What was stored for a task, or how many bytes of its update are here."""
        self.require_joined(client_id)
        return await self._reception.status(client_id, request)

    async def refused(self, client_id: ClientId | None, error: CoppiceError) -> None:
        """Note a refused call."""
        await self._refusals.add(client_id, error, known=client_id in self._clients)


def _check_app(spec: RunSpec, digest: str) -> None:
    wanted = spec.app.digest if spec.app is not None else ""
    if digest == wanted:
        return
    if spec.app is None:
        raise AppMismatch(f"run {spec.name} uses no app: join without --app")
    if not digest:
        raise AppMismatch(
            f"run {spec.name} uses the app {spec.app.name} ({wanted[:12]}): "
            "copy that file to this device and join with --app FILE"
        )
    raise AppMismatch(
        f"run {spec.name} uses the app {spec.app.name} ({wanted[:12]}), this device has another "
        f"({digest[:12]}): copy the server's file to this device and join again"
    )
