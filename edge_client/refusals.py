"""Which of its refused updates this device was told of, so that a person hears of each once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from coppice.errors import DiskFull
from coppice.files import write_file
from coppice.wire import coordination_pb2 as pb
from edge_client.journal import Journal
from edge_client.state_folder import REMEDY


class Refusals:
    """Of the run that the device is in; another run's are forgotten."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._journal = journal
        self._run_key, self._seen = _read(path)
        #: The task whose refusal the device heard of in answer to its push.
        self._heard_task_id = 0

    def seen(self, run_key: str) -> int:
        """The newest refusal of this run that was told; 0 for none."""
        return self._seen if run_key == self._run_key else 0

    def heard(self, task_id: int) -> None:
        """The push of this task's answer was refused: that is told already."""
        self._heard_task_id = task_id

    def tell(self, run_key: str, refusals: Iterable[pb.Refusal]) -> None:
        """Tell a person what the server said of this device's updates in a run."""
        newest = self.seen(run_key)
        for refusal in refusals:
            if refusal.refusal_id > newest:
                newest = refusal.refusal_id
                self._journal.refused(refusal, heard=refusal.task_id == self._heard_task_id)
        if newest > self.seen(run_key):
            self._run_key, self._seen = run_key, newest
            # Not made durable: after a power cut, or on a full disk, it is said twice at worst.
            plain = {"run_key": run_key, "seen": newest}
            with suppress(DiskFull):
                write_file(self._path, json.dumps(plain).encode(), remedy=REMEDY, durable=False)


def _read(path: Path) -> tuple[str, int]:
    try:
        plain = json.loads(path.read_bytes())
        return str(plain["run_key"]), int(plain["seen"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0
