"""What the rounds of a run cost this device: probed once, kept on disk, corrected by each round."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from coppice import __version__
from coppice.cost_learning import Besides, LearnedCost, MeasuredRound
from coppice.device_cost import DeviceCost
from coppice.domain import Forecast, RoundReport, Why, Workload
from coppice.errors import DiskFull, InvalidPayload
from coppice.files import write_file
from coppice.kernels.library import library
from coppice.method import ClientHalf, Local, Task
from coppice.sparse import SparseTensor
from coppice.task_cost import kept_of, masks_in
from coppice.tree import from_plain, to_plain
from edge_client.limits import memory_budget
from edge_client.probe import Prober
from edge_client.processor import lasting_clock
from edge_client.state_folder import REMEDY

#: Bytes that were fetched and sent.
Moved: TypeAlias = tuple[int, int]

_BYTES_PER_VALUE = 4
#: Of so many runs what was learned is kept.
_MOST_RUNS = 8


class Costs:
    """Of one run; the file is that of all runs on this device."""

    def __init__(self, path: Path, key: str, budget_bytes: Callable[[], int] | None = None) -> None:
        """`key` names all that the costs depend on (`cost_key`)."""
        self._path = path
        self._key = key
        self._budget_bytes = budget_bytes or (lambda: memory_budget().budget_bytes)
        self._known = self._read().get(key)
        #: Seconds of a byte, down and up, that were known before a second probe.
        self._link = (0.0, 0.0)
        #: Fingerprints of the masks of the last task.
        self._masks: frozenset[str] = frozenset()

    @property
    def known(self) -> LearnedCost | None:
        """What is known so far; None before the probe."""
        return self._known

    def cost(self) -> DeviceCost | None:
        """With the memory that there is now."""
        return None if self._known is None else self._known.cost(self._budget_bytes())

    def probe(self, half: ClientHalf, local: Local, workload: Workload) -> None:
        """Measure, unless it was done before."""
        if self._known is not None:
            return
        clock = lasting_clock(local.capability.num_threads)
        prober = Prober(half, local, workload.wire, self._budget_bytes, clock)
        if (found := prober.probe(lambda text: None)) is not None:
            known = LearnedCost(
                time=found.time,
                overhead=found.overhead,
                memory=found.memory.memory,
                probed_bytes=found.budget_bytes,
                down_seconds_per_byte=self._link[0],
                up_seconds_per_byte=self._link[1],
            )
            self._keep(known)

    def forget(self) -> bool:
        """Know nothing but the link until the next probe, if memory is what it was at the last.

        Returns whether it is so: with less, a probe could take what is not there.
        """
        if self._known is None or self._budget_bytes() < self._known.probed_bytes:
            return False
        self._link = (self._known.down_seconds_per_byte, self._known.up_seconds_per_byte)
        self._known = None
        return True

    def forecast(
        self, task: Task, download_bytes: int, why: Why, parts: int = 1
    ) -> Forecast | None:
        """What a task to train in so many parts will take, of which so many bytes were fetched."""
        known, ones = self._known, kept_of(task)
        if known is None or ones.keys() != known.time.layers.keys():
            return None
        steps = int(task.settings.get("steps", 0))
        return Forecast(
            download_seconds=known.down_seconds_per_byte * download_bytes,
            compute_seconds=known.compute_seconds(
                ones, steps, is_new=self._is_new(task), reports=_reports(task)
            ),
            upload_seconds=known.up_seconds_per_byte * _answer_bytes(task),
            peak_bytes=round(known.peak_bytes(ones, parts)),
            why=why,
        )

    def learn(
        self,
        task: Task,
        report: RoundReport,
        seconds_per_step: float,
        moved: Moved,
        parts: int = 1,
    ) -> None:
        """A task to train is done, in so many parts; `moved` was fetched and sent for it."""
        known, ones = self._known, kept_of(task)
        if known is None or ones.keys() != known.time.layers.keys():
            return
        measured = MeasuredRound(
            steps=report.steps,
            ones=ones,
            step_seconds=seconds_per_step * report.steps,
            work_seconds=report.compute_seconds,
            download_bytes=moved[0],
            download_seconds=report.download_seconds,
            upload_bytes=moved[1],
            upload_seconds=report.upload_seconds,
            peak_bytes=report.peak_bytes,
            parts=parts,
            is_new=self._is_new(task),
            besides=_besides(task),
        )
        self._masks = _fingerprints(task)
        self._keep(known.after(measured))

    def _is_new(self, task: Task) -> bool:
        return _fingerprints(task) != self._masks

    def _keep(self, known: LearnedCost) -> None:
        self._known = known
        others = {key: cost for key, cost in self._read().items() if key != self._key}
        newest = list(others.items())[1 - _MOST_RUNS :]
        plain = {key: to_plain(cost) for key, cost in [*newest, (self._key, known)]}
        # Not made durable: what a power cut takes, or a full disk, is measured again.
        with suppress(DiskFull):
            write_file(self._path, json.dumps(plain).encode(), remedy=REMEDY, durable=False)

    def _read(self) -> dict[str, LearnedCost]:
        try:
            plain = json.loads(self._path.read_bytes())
            return {key: from_plain(LearnedCost, value) for key, value in plain.items()}
        except (OSError, ValueError, AttributeError, InvalidPayload):
            return {}


def _fingerprints(task: Task) -> frozenset[str]:
    return frozenset(f"{name} {mask.fingerprint}" for name, mask in masks_in(task).items())


def _reports(task: Task) -> bool:
    return bool(task.settings.get("report", False))


def _besides(task: Task) -> Besides:
    # Rounds that report, and initial pruning, hold more than their training does.
    if "passes" in task.settings:
        return "other"
    return "report" if _reports(task) else "nothing"


def _answer_bytes(task: Task) -> int:
    """About what the answer has: as many values as were received, and what is reported."""
    items = [item for group in task.payload.values() for item in group.values()]
    values = sum(
        item.mask.count if isinstance(item, SparseTensor) else math.prod(item.shape)
        for item in items
    )
    if task.settings.get("report", False):
        every = int(task.settings.get("report_every", 1))
        values += sum(item.mask.size for item in items if isinstance(item, SparseTensor)) // every
    return _BYTES_PER_VALUE * values


def cost_key(workload: Workload, num_threads: int, kernels: bool) -> str:
    """Names what a step's cost depends on; it changes when any of that does."""
    found = library() if kernels else None
    parts = [
        __version__,
        # Neither name nor seed of a run cost anything.
        to_plain(replace(workload, name="any", seed=0)),
        num_threads,
        found.variant if found else "",
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
