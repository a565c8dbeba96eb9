"""What the server's parts share, built once in `server.app`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from coppice.domain import ClientId
from server.access_records import Line
from server.announcer import Announcer
from server.blobs import Blobs
from server.evaluation import Evaluator
from server.presence import Presence
from server.records import NewEvent
from server.store import Store
from server.threads import Threads
from server.uploads import Uploads

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """One of each."""

    store: Store
    blobs: Blobs
    uploads: Uploads
    threads: Threads
    presence: Presence
    announcer: Announcer
    evaluator: Evaluator
    #: Where the models of ended runs are saved.
    models_folder: Path
    #: Copies of the app modules of submitted runs, `<digest>.py` each.
    apps_folder: Path
    #: Clients of which the store may have refused updates in a run that is not over: others need
    #: no look at each poll.
    refused_clients: set[ClientId] = field(default_factory=set)

    async def write(
        self,
        operation: Callable[..., T],
        *arguments: Any,
        events: Sequence[Line] = (),
    ) -> T:
        """Do one operation of the store with its log lines, then announce the public ones."""
        work = partial(operation, *arguments, now=time.time(), events=events)
        result = await self.threads.store(work)
        self.announcer.publish(event for event in events if isinstance(event, NewEvent))
        return result

    def model_path(self, run_id: int, name: str, model: str = "global") -> Path:
        """Where a model of a run is once the run has ended; `name` is the run's."""
        other = "" if model == "global" else f".{model}"
        return self.models_folder / f"{run_id}-{name}{other}.safetensors"

    def model_names(self, run_id: int, name: str) -> list[str]:
        """The models that a run has left, "global" first; none before it has ended."""
        saved = self.model_path(run_id, name)
        others = sorted(
            path.name[len(saved.stem) + 1 : -len(saved.suffix)]
            for path in self.models_folder.glob(f"{saved.stem}.*{saved.suffix}")
        )
        return ["global", *others] if saved.is_file() else []

    def app_path(self, digest: str) -> Path:
        """Where the server keeps its copy of an app module."""
        return self.apps_folder / f"{digest}.py"
