"""Finished updates that the server has not receipted yet, on disk.

```
folder/<run key>.update   the magic, the length of a header in JSON, the header, the payload
```

An entry is one file that is there whole or not at all. It names what the method keeps on the device
for the next round by digest: that lies in the private state's folder, and is on disk before.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from coppice.domain import BlobRef
from coppice.errors import InvalidMessage
from coppice.files import reporting, write_file
from coppice.wire.chunks import blob_ref
from coppice.wire.codec import valid_run_key
from edge_client.state_folder import REMEDY

#: Runs of other servers may wait for their server; of more than so many, the oldest are given up.
MOST_ENTRIES = 4
_HEAD = struct.Struct("<8sI")
_MAGIC = b"COPPUPD1"
_LONGEST_HEADER_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Parcel:
    """A finished update, ready to be sent as often as it takes."""

    run_key: str
    task_id: int
    round_number: int
    num_examples: int
    steps: int
    metrics: Mapping[str, float]
    #: Digest of the private state that its receipt promotes; empty when there is none.
    private: str
    ref: BlobRef
    data: bytearray


class Outbox:
    """One entry a run at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, parcel: Parcel) -> None:
        """Keep a finished update; when this returns, a power cut does not lose it."""
        plain = {
            "run_key": parcel.run_key,
            "task_id": parcel.task_id,
            "round_number": parcel.round_number,
            "num_examples": parcel.num_examples,
            "steps": parcel.steps,
            "metrics": dict(parcel.metrics),
            "private": parcel.private,
            "digest": parcel.ref.digest,
            "size_bytes": parcel.ref.size_bytes,
        }
        header = json.dumps(plain).encode()
        with reporting(self._folder, REMEDY):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        head = _HEAD.pack(_MAGIC, len(header))
        write_file(
            self._path(parcel.run_key), head, header, parcel.data, remedy=REMEDY, secret=True
        )
        self._trim()

    def get(self, run_key: str) -> Parcel | None:
        """The update that waits for a run's server; one that is damaged is given up."""
        try:
            with self._path(run_key).open("rb") as file:
                parcel = _read(file)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError, struct.error):
            parcel = None
        if parcel is None or parcel.run_key != run_key or blob_ref(parcel.data) != parcel.ref:
            self.drop(run_key)
            return None
        return parcel

    def drop(self, run_key: str) -> None:
        """The server has answered, or nobody wants it any more."""
        path = self._path(run_key)
        # Not made durable: if a power cut brings it back, the server says that it has it.
        with reporting(path, REMEDY):
            path.unlink(missing_ok=True)

    def _path(self, run_key: str) -> Path:
        if not run_key:
            raise InvalidMessage("an update is of a run")
        return self._folder / f"{valid_run_key(run_key)}.update"

    def _trim(self) -> None:
        entries = sorted(self._folder.glob("*.update"), key=_age, reverse=True)
        for path in entries[MOST_ENTRIES:]:
            with reporting(path, REMEDY):
                path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(file: BufferedReader) -> Parcel:
    magic, length = _HEAD.unpack(file.read(_HEAD.size))
    if magic != _MAGIC or length > _LONGEST_HEADER_BYTES:
        raise ValueError
    plain = json.loads(file.read(length))
    size_bytes = int(plain["size_bytes"])
    if os.fstat(file.fileno()).st_size != _HEAD.size + length + size_bytes:
        raise ValueError
    data = bytearray(size_bytes)
    file.readinto(data)
    return Parcel(
        run_key=str(plain["run_key"]),
        task_id=int(plain["task_id"]),
        round_number=int(plain["round_number"]),
        num_examples=int(plain["num_examples"]),
        steps=int(plain["steps"]),
        metrics={str(name): float(value) for name, value in plain["metrics"].items()},
        private=str(plain["private"]),
        ref=BlobRef(str(plain["digest"]), size_bytes),
        data=data,
    )
