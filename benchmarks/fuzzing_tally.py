"""What came of the cases of a fuzzed surface, and what the process behind it held meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

#: Examples of findings that are shown; all are counted.
_SHOWN = 20
#: Samples of a process that are told.
_TOLD = 40
_MB = 2**20
#: Share of the time that a process may take to become as large as it is at work.
WARM_UP = 0.25
_SAMPLE_SECONDS = 0.25


@dataclass
class Tally:
    """One surface: every case ends in exactly one of the four."""

    surface: str
    accepted: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    #: How often each refusal came, by class or status.
    kinds: dict[str, int] = field(default_factory=dict)
    #: The case, and what was wrong with its end.
    findings: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """All that were tried."""
        return self.accepted + self.refused + self.crashes + self.hangs

    def accept(self) -> None:
        """The case was good after all."""
        self.accepted += 1

    def refuse(self, kind: str) -> None:
        """Refused in one of the ways that are allowed."""
        self.refused += 1
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def crash(self, case: str, what: str) -> None:
        """Ended in a way that is not allowed."""
        self.crashes += 1
        self._find(case, what)

    def hang(self, case: str, what: str) -> None:
        """Took longer than anything may."""
        self.hangs += 1
        self._find(case, what)

    def _find(self, case: str, what: str) -> None:
        if len(self.findings) < _SHOWN:
            self.findings.append(f"{self.surface}: {what} [{case[:300]}]")

    def add(self, other: Tally) -> None:
        """The cases of another one of this surface."""
        self.accepted += other.accepted
        self.refused += other.refused
        self.crashes += other.crashes
        self.hangs += other.hangs
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        self.findings = (self.findings + other.findings)[:_SHOWN]


@dataclass(frozen=True)
class Held:
    """What a process held at one time."""

    #: Since the first sample.
    seconds: float
    resident_bytes: int
    threads: int
    files: int


class Watch:
    """Samples of a process, taken by a thread of the fuzzer or by hand."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._began = time.monotonic()
        self._over = threading.Event()
        self.samples: list[Held] = []

    def sample(self) -> None:
        """Look once; nothing where the process has ended."""
        try:
            with self._process.oneshot():
                self.samples.append(
                    Held(
                        time.monotonic() - self._began,
                        self._process.memory_info().rss,
                        self._process.num_threads(),
                        self._process.num_fds(),
                    )
                )
        except psutil.Error:
            pass

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again meanwhile."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.sample()

    def told(self, cases: int) -> dict[str, Any]:
        """Memory after the warm-up and at the end, and what a thousand cases add between them."""
        return told(self.samples, cases)


def told(samples: Sequence[Held], cases: int) -> dict[str, Any]:
    """The same of samples that were taken elsewhere."""
    if not samples:
        return {}
    last = samples[-1].seconds
    warm = [held for held in samples if held.seconds >= WARM_UP * last] or list(samples)
    per_second = _slope([(held.seconds, held.resident_bytes / _MB) for held in warm])
    return {
        "warm_mb": warm[0].resident_bytes / _MB,
        "end_mb": warm[-1].resident_bytes / _MB,
        "peak_mb": max(held.resident_bytes for held in samples) / _MB,
        "mb_per_1000_cases": per_second * last / cases * 1000 if cases else 0.0,
        "warm_threads": warm[0].threads,
        "end_threads": warm[-1].threads,
        "warm_files": warm[0].files,
        "end_files": warm[-1].files,
        "mb_over_time": [
            (round(held.seconds), round(held.resident_bytes / _MB, 1))
            for held in samples[:: max(1, len(samples) // _TOLD)]
        ],
    }


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that is nearest to the points."""
    count = len(points)
    mean_x, mean_y = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
