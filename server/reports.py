"""What devices measured of their rounds: kept in the store, the newest of each at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coppice.domain import ClientId, RoundReport
from server.records import NewEvent, ReportRecord
from server.resources import Resources


class Reports:
    """Belongs to the event loop's thread."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._store = resources.store
        self._newest: dict[ClientId, ReportRecord] = {}
        #: What each client sent last, kept or not: it comes again until its poll is answered.
        self._last: dict[ClientId, tuple[str, RoundReport]] = {}

    @property
    def newest(self) -> Mapping[ClientId, ReportRecord]:
        """The last report of each client that ever sent one."""
        return self._newest

    async def load(self) -> None:
        """Read what was kept before this process."""
        records = await self._resources.threads.store(self._store.newest_reports)
        self._newest = {record.client_id: record for record in records}

    async def take(self, client_id: ClientId, run_key: str, report: RoundReport) -> None:
        """Keep a report, unless it is on a round in which the client sent nothing."""
        if self._last.get(client_id) == (run_key, report):
            return
        record = await self._resources.write(self._keep, client_id, run_key, report)
        self._last[client_id] = (run_key, report)
        if record is not None:
            self._newest[client_id] = record

    def _keep(
        self,
        client_id: ClientId,
        run_key: str,
        report: RoundReport,
        now: float,
        events: Sequence[NewEvent],
    ) -> ReportRecord | None:
        # A server that was set up anew has other runs than the device speaks of.
        run = self._store.run_of_key(run_key)
        if run is None:
            return None
        return self._store.store_report(run.run_id, client_id, report, now, events)
