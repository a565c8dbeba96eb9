"""What each client keeps of a run that has ended: the best round's model, or the last one's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from coppice.domain import BlobRef, ClientId, Participant, TaskKind
from coppice.errors import DiskFull, StoreUnusable
from server.answers import blobs_of
from server.records import ClientRecord, NewTask, RunRecord
from server.resources import Resources
from server.run_work import RunWork

_LOG = logging.getLogger(__name__)


class Keepsakes:
    """Made from the stored state when the first client asks; held for one run at a time."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._run_id = 0
        self._tasks: dict[ClientId, NewTask] = {}
        self._making = asyncio.Lock()

    async def of(
        self, record: RunRecord, client_id: ClientId, clients: Sequence[ClientRecord]
    ) -> NewTask | None:
        """The task of kind KEEP for one client; None when the run has no state to keep."""
        async with self._making:
            if self._run_id != record.run_id:
                self._tasks = await self._make(record, clients)
                self._run_id = record.run_id
        return self._tasks.get(client_id)

    def offers(self, client_id: ClientId, digest: str) -> bool:
        """Whether the client was told to keep this blob."""
        task = self._tasks.get(client_id)
        return task is not None and digest in blobs_of(task)

    @property
    def digests(self) -> set[str]:
        """Blobs that must stay."""
        return {digest for task in self._tasks.values() for digest in blobs_of(task)}

    async def _make(
        self, record: RunRecord, clients: Sequence[ClientRecord]
    ) -> dict[ClientId, NewTask]:
        state = record.best_blob or record.state_blob
        find = partial(self._resources.store.committed_round, record.run_id)
        # A model that no round has changed is not worth keeping.
        if state is None or not await self._resources.threads.store(find):
            return {}
        round_number = record.best_round or record.round_number
        cohort = [
            Participant(client.client_id, client.capability, 0, None, client.labels)
            for client in clients
        ]
        plan = partial(self._plan, record, state, cohort, round_number)
        try:
            tasks = await self._resources.threads.compute(plan)
        except (DiskFull, StoreUnusable):
            raise
        except Exception:  # a method's own mistake, which may be why the run failed: no way to stay
            _LOG.exception("run %s leaves no model to its clients", record.spec.name)
            return {}
        return {task.client_id: task for task in tasks}

    def _plan(
        self, record: RunRecord, state: BlobRef, cohort: Sequence[Participant], round_number: int
    ) -> list[NewTask]:
        work = RunWork(record.spec, self._resources.blobs)
        work.load_state(state)
        return work.plan(TaskKind.KEEP, cohort, round_number)
