"""The HTTP API: what the store and the coordinator know, as JSON, and the page on top of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from coppice import __version__
from coppice.errors import UnknownBlob
from server.access import Access
from server.access_records import Actor
from server.audit import Audit
from server.coordinator import Coordinator
from server.dashboard.access import After, Limit, access_routes
from server.dashboard.gate import By, Caller, Gate
from server.dashboard.guard import Guard
from server.dashboard.members import Enrolments, member_routes
from server.dashboard.problems import Problem, explain_errors
from server.dashboard.session import session_routes
from server.dashboard.stream import event_stream
from server.records import (
    ClientRecord,
    EvaluationRecord,
    EventRecord,
    LedgerRow,
    LiveClient,
    RefusalRecord,
    ReportRecord,
    RoundRecord,
    RunRecord,
    Snapshot,
)
from server.resources import Resources

_STATIC = Path(__file__).with_name("static")
#: The largest number that every database takes for a key.
_MAX_KEY = 2**31 - 1
_PAGE = 1000

RunId = Annotated[int, InPath(ge=1, le=_MAX_KEY)]

ModelName = Annotated[str, Query(max_length=63)]

#: Run file, its folder, the app module and who wants it → number of the queued run
#: (`server.submission`).
Submit = Callable[[str, str, str | None, Actor], Awaitable[int]]


class NewRun(BaseModel):
    """A run file to be queued; paths are of the server's machine."""

    model_config = ConfigDict(extra="forbid")

    toml: Annotated[str, Field(max_length=2**20)]
    #: What relative paths in the run file are relative to.
    folder: Annotated[str, Field(max_length=4096)]
    #: The app module, if it is not where the run file says.
    app: Annotated[str, Field(max_length=4096)] | None = None


class QueuedRun(BaseModel):
    """A run that waits for its turn."""

    run_id: int


@dataclass(frozen=True)
class SeenClient(ClientRecord):
    """A client and its signs of life."""

    #: As in `live`; "lost" when there was no sign of life, "left" after a goodbye.
    presence: str
    #: None when it has given no sign of life since the server started.
    live: LiveClient | None
    #: What its last round took; None before the first.
    last_round: ReportRecord | None


def make_app(
    coordinator: Coordinator,
    resources: Resources,
    submit: Submit,
    enrolments: Enrolments | None = None,
    access: Access | None = None,
    audit: Audit | None = None,
) -> FastAPI:
    """The page at `/`, the API below `/api`. It runs in the coordinator's event loop.

    Without `enrolments` nobody is let in or out, and without `access` everybody may do everything:
    the server runs with --insecure.
    """
    audit = audit if audit is not None else Audit(resources)
    app = FastAPI(
        title="Coppice",
        version=__version__,
        openapi_url="/api/openapi.json",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    explain_errors(app)
    # The last one is the outermost.
    app.add_middleware(Gate, access=access, audit=audit)
    app.add_middleware(Guard)
    app.include_router(session_routes(access, resources, audit))
    app.include_router(access_routes(access, resources), prefix="/api")
    app.include_router(_present(coordinator, resources), prefix="/api")
    app.include_router(_runs(coordinator, resources, submit), prefix="/api/runs")
    app.include_router(member_routes(enrolments), prefix="/api")
    app.mount("/", StaticFiles(directory=_STATIC, html=True))
    return app


def _present(coordinator: Coordinator, resources: Resources) -> APIRouter:
    """What is now."""
    routes, store = APIRouter(), resources.store

    @routes.get("/status")
    async def status() -> Snapshot:
        """The present moment."""
        return coordinator.snapshot()

    @routes.get("/clients")
    async def clients() -> list[SeenClient]:
        """Every client that ever joined, with the capability that it told last."""
        records = await run_in_threadpool(store.clients)
        live, newest = coordinator.snapshot().clients, coordinator.newest_reports
        told = resources.presence.capability
        return [
            _seen(
                replace(record, capability=told(record.client_id) or record.capability),
                live.get(record.client_id),
                newest.get(record.client_id),
            )
            for record in records
        ]

    @routes.get("/log")
    def log(after: After = 0, limit: Limit = _PAGE, newest: bool = False) -> list[EventRecord]:
        """Lines after line `after`, in order: the first ones, or the newest."""
        return store.events(None, after, limit, newest=newest)

    @routes.get("/events", response_class=EventSourceResponse)
    async def events(caller: Caller) -> AsyncIterator[ServerSentEvent]:
        """New lines of the log as they are written, for as long as the caller may read them."""
        async for event in event_stream(resources.announcer, caller.holds):
            yield event

    return routes


def _runs(coordinator: Coordinator, resources: Resources, submit: Submit) -> APIRouter:
    """What became of each run. Asking about a run that is not there raises UnknownRun."""
    routes, store = APIRouter(), resources.store

    @routes.get("")
    def runs() -> list[RunRecord]:
        """All runs, oldest first."""
        return store.runs()

    @routes.post("", status_code=201)
    async def submit_run(new: NewRun, by: By) -> QueuedRun:
        """Check a run file and queue its run."""
        return QueuedRun(run_id=await submit(new.toml, new.folder, new.app, by))

    @routes.get("/{run_id}")
    def run(run_id: RunId) -> RunRecord:
        """One run."""
        return store.run(run_id)

    @routes.post("/{run_id}/stop", status_code=202)
    async def stop(run_id: RunId, by: By) -> None:
        """End a run; what it has reached is kept."""
        await coordinator.stop_run(run_id)
        await resources.write(store.append, events=[by.did("stop run", str(run_id))])

    @routes.get("/{run_id}/rounds")
    def rounds(run_id: RunId, after: After = 0, limit: Limit = _PAGE) -> list[RoundRecord]:
        """The first rounds after round `after`."""
        return store.rounds(store.run(run_id).run_id, after, limit)

    @routes.get("/{run_id}/evaluations")
    def evaluations(run_id: RunId, after: After = 0) -> list[EvaluationRecord]:
        """What was measured of the models after each round above `after`."""
        return store.evaluations(store.run(run_id).run_id, after)

    @routes.get("/{run_id}/ledger")
    def ledger(run_id: RunId) -> list[LedgerRow]:
        """What became of each task."""
        return store.ledger(store.run(run_id).run_id)

    @routes.get("/{run_id}/reports")
    def reports(
        run_id: RunId, after: After = 0, limit: Limit = _PAGE, newest: bool = False
    ) -> list[ReportRecord]:
        """What rounds took on devices, after report `after`: the first reports, or the newest."""
        return store.reports(store.run(run_id).run_id, after, limit, newest=newest)

    @routes.get("/{run_id}/refusals")
    def refusals(
        run_id: RunId, after: After = 0, limit: Limit = _PAGE, newest: bool = False
    ) -> list[RefusalRecord]:
        """Updates that were refused, after refusal `after`: the first ones, or the newest."""
        return store.refusals(store.run(run_id).run_id, after, limit, newest=newest)

    @routes.get("/{run_id}/log")
    def log(
        run_id: RunId, after: After = 0, limit: Limit = _PAGE, newest: bool = False
    ) -> list[EventRecord]:
        """The run's lines after line `after`, in order: the first ones, or the newest."""
        return store.events(store.run(run_id).run_id, after, limit, newest=newest)

    @routes.get("/{run_id}/models")
    def models(run_id: RunId) -> list[str]:
        """The names of the models of a run that has ended, "global" first."""
        record = store.run(run_id)
        return [] if record.ended_at is None else resources.model_names(run_id, record.spec.name)

    @routes.get("/{run_id}/model", response_class=FileResponse)
    def model(run_id: RunId, name: ModelName = "global") -> FileResponse:
        """A model of a run that has ended, as a safetensors file."""
        record = store.run(run_id)
        if record.ended_at is None:
            raise UnknownBlob(f"run {run_id} has no model yet; it is saved when the run ends")
        # A name that is not in the list never becomes part of a path.
        known = resources.model_names(run_id, record.spec.name)
        if not known:
            raise UnknownBlob(f"run {run_id} ended without a model")
        if name not in known:
            raise UnknownBlob(f"run {run_id} has no model {name!r}, but {', '.join(known)}")
        path = resources.model_path(run_id, record.spec.name, name)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    return routes


def _seen(
    record: ClientRecord, live: LiveClient | None, last_round: ReportRecord | None
) -> SeenClient:
    presence = live.presence if live is not None else "lost"
    if record.left_at is not None:
        presence = "left"
    return SeenClient(**vars(record), presence=presence, live=live, last_round=last_round)
