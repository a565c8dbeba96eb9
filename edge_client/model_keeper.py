"""The newest model of this device, on disk, where it is useful without the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from coppice import __version__
from coppice.domain import Metrics
from coppice.errors import DiskFull
from coppice.method import Local, Task
from coppice.model_file import ModelInfo, save_model
from edge_client.ready import ReadyRun

#: Cards wear: between two ends of runs or processes, a model is saved this often at most.
SAVE_EVERY_SECONDS = 600.0


class ModelKeeper:
    """Holds what the newest model is made of, and saves it now and then."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._saved_at = clock()
        self._newest: tuple[ReadyRun, Task, Local, Metrics] | None = None

    def hold(self, ready: ReadyRun, task: Task, local: Local, metrics: Metrics) -> None:
        """Take a task's model as the newest; `metrics` are its evaluation here, or empty."""
        held = self._newest = (ready, task, local, metrics)
        if self._clock() - self._saved_at >= SAVE_EVERY_SECONDS:
            try:
                self.save()
            except DiskFull:
                # Later, or at the end, there may be room.
                self._newest = held

    def save(self) -> ModelInfo | None:
        """Save the newest model if it is not on disk yet; None when there was nothing to save."""
        if self._newest is None:
            return None
        ready, task, local, metrics = self._newest
        self._newest = None
        self._saved_at = self._clock()
        tensors = ready.half.model(task, local)
        if tensors is None:
            return None
        info = ModelInfo(
            workload=ready.workload,
            round_number=task.round_number,
            metrics=metrics,
            written_by=f"fedclient {__version__}",
        )
        save_model(self._path, tensors, info)
        return info
