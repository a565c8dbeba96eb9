"""What a running client tells `fedclient status`, through a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from coppice.domain import Forecast, RoundReport
from coppice.errors import DiskFull
from coppice.files import write_file
from edge_client.state_folder import REMEDY
from edge_client.wear import bytes_written

WRITE_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Status:
    """What a client is doing."""

    pid: int
    server: str
    name: str
    #: Name of the run that the device is ready for; empty for none.
    run: str = ""
    round_number: int = 0
    #: "joining", "waiting", "preparing", "measuring", "fetching", "training", "evaluating",
    #: "pushing", "reconnecting" or "left".
    phase: str = "joining"
    #: Local steps done in the current task.
    step: int = 0
    last_error: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    #: To this device's disk, since the process began; None where the kernel does not count.
    bytes_written: int | None = None
    #: What the last round took that this device finished.
    last_round: RoundReport | None = None
    #: When the device's certificate expires, by its clock; None for a server without TLS.
    certificate_until: float | None = None
    #: When the phase began, in seconds since the epoch, by the device's clock.
    since: float = 0.0


class StatusFile:
    """Keeps the file up to date, sparing the card: every change of phase, else every 2 seconds."""

    def __init__(
        self,
        path: Path,
        status: Status,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        disk: Callable[[], int | None] = bytes_written,
    ) -> None:
        self._path = path
        self._clock = clock
        self._wall_clock = wall_clock
        self._disk = disk
        self.status = replace(status, since=wall_clock())
        self._write()

    def update(self, **changes: Any) -> None:
        """Change some fields of the status."""
        before = self.status.phase
        self.status = replace(self.status, **changes)
        if self.status.phase != before:
            self.status = replace(self.status, since=self._wall_clock())
        elif self._clock() - self._written_at < WRITE_EVERY_SECONDS:
            return
        self._write()

    def _write(self) -> None:
        self._written_at = self._clock()
        self.status = replace(self.status, bytes_written=self._disk())
        # Not made durable: after a power cut the status would be wrong anyway.
        data = json.dumps(asdict(self.status)).encode()
        # On a full disk an older one stays: no reason to end the work.
        with suppress(DiskFull):
            write_file(self._path, data, remedy=REMEDY, durable=False)


def read_status(path: Path) -> Status | None:
    """The last status that was written; None when there is none that can be read."""
    try:
        plain = json.loads(path.read_bytes())
        told = {item.name: plain[item.name] for item in fields(Status)}
        return Status(**told | {"last_round": _report_of(told["last_round"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _report_of(plain: dict[str, Any] | None) -> RoundReport | None:
    if plain is None:
        return None
    forecast = plain["forecast"]
    return RoundReport(**plain | {"forecast": None if forecast is None else Forecast(**forecast)})
