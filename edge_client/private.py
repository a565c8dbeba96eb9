"""What a method keeps on this device from round to round and never sends, on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from coppice import tree
from coppice.errors import InvalidPayload, StoreUnusable
from coppice.files import reporting, sync_folder, write_file
from edge_client.state_folder import REMEDY

State = TypeVar("State")


class PrivateState:
    """One run's private state: the version of each task that counted, the next one beside them.

    ```
    folder/<task>.safetensors    the newest is the one that counts; the one before it is kept
    folder/staged.safetensors    what the receipt of the update that is being sent promotes
    ```

    A version is one file with a value of each type, and every change is one rename: a process that
    is killed at any moment leaves the one or the other. The version before stays because a server
    may refuse an update that it has receipted, when its round closes. It says so no later than it
    offers a task of the next round, so that one version is enough.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is this run's and this method's own; it is made when something is written."""
        self._folder = folder
        self._staged = folder / "staged.safetensors"
        #: Values of the next version, by the names of their types.
        self._next: dict[str, bytes] = {}

    def read(self, kind: type[State]) -> State | None:
        """The last committed value of this type, or None."""
        data = self._values().get(kind.__name__)
        return None if data is None else tree.load(kind, data)

    def stage(self, value: object) -> None:
        """Hold a value of the next version."""
        self._next[type(value).__name__] = tree.save(value)

    def write(self) -> str:
        """Put the next version on disk before its update is sent.

        Returns its digest; empty when nothing was staged.
        """
        if not self._next:
            return ""
        values = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for name, data in (self._values() | self._next).items()
        }
        with reporting(self._folder, REMEDY):
            self._folder.mkdir(parents=True, exist_ok=True)
        data = save(values)
        write_file(self._staged, data, remedy=REMEDY)
        # Not before: with a full disk this is tried again.
        self._next = {}
        return hashlib.sha256(data).hexdigest()

    def holds(self, task_id: int, digest: str) -> bool:
        """Whether the version of this task and digest is here, staged or promoted."""
        for path in (self._staged, self._version(task_id)):
            with suppress(OSError):
                if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                    return True
        return False

    def promote(self, task_id: int) -> None:
        """The receipt of this task is there: the staged version, if any, is the one that counts."""
        # Where its version is here already, what is staged is another task's.
        if self._staged.exists() and not self._version(task_id).exists():
            with reporting(self._staged, REMEDY):
                os.replace(self._staged, self._version(task_id))
                sync_folder(self._folder)
                for old in self._versions()[:-2]:
                    self._version(old).unlink(missing_ok=True)

    def take_back(self, task_id: int) -> None:
        """The server refused this task's update after its receipt: the version before counts."""
        if self._versions()[-1:] == [task_id]:
            with reporting(self._folder, REMEDY):
                self._version(task_id).unlink(missing_ok=True)
                sync_folder(self._folder)

    def rewind(self, task_id: int) -> None:
        """This task is still to be done: versions of it and of later ones do not count.

        There are some where the server has lost answers, or was put back to an older copy.
        """
        for lost in self._versions():
            if lost >= task_id:
                with reporting(self._folder, REMEDY):
                    self._version(lost).unlink(missing_ok=True)
                    sync_folder(self._folder)

    def drop(self) -> None:
        """The staged version does not count: its update was refused, or its task starts again."""
        self._next = {}
        with reporting(self._staged, REMEDY):
            self._staged.unlink(missing_ok=True)

    def forget(self) -> None:
        """The run is over: nothing of it is needed any more."""
        if self._folder.exists():
            with reporting(self._folder, REMEDY):
                shutil.rmtree(self._folder)

    def _version(self, task_id: int) -> Path:
        return self._folder / f"{task_id}.safetensors"

    def _versions(self) -> list[int]:
        """The tasks whose versions are here, the newest last: a run's tasks are counted up."""
        names = (path.stem for path in self._folder.glob("*.safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _values(self) -> dict[str, bytes]:
        versions = self._versions()
        if not versions:
            return {}
        newest = self._version(versions[-1])
        try:
            data = newest.read_bytes()
        except OSError as error:
            raise StoreUnusable(f"{newest} cannot be read: {error.strerror}") from None
        try:
            return {name: value.numpy().tobytes() for name, value in load(data).items()}
        except SafetensorError as error:
            raise InvalidPayload(f"{newest} is damaged: {error}") from None
