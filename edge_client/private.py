"""What a method keeps on this device from round to round and never sends, on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

from coppice import tree
from coppice.errors import StoreUnusable
from coppice.files import reporting, sync_folder, write_file
from edge_client.state_folder import REMEDY

State = TypeVar("State")


class PrivateState:
    """One run's private state: a committed version, and the next one staged beside it.

    Every change is one rename: a process that is killed at any moment leaves the one or the other.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is this run's and this method's own; it is made when something is staged."""
        self._folder = folder
        self._committed = folder / "committed.safetensors"
        self._staged = folder / "staged.safetensors"

    def read(self, kind: type[State]) -> State | None:
        """The last committed version, or None; `kind` is the type that was staged."""
        try:
            data = self._committed.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnusable(f"{self._committed} cannot be read: {error.strerror}") from None
        return tree.load(kind, data)

    def stage(self, value: object) -> None:
        """Hold the next version until the server has receipted the update it belongs to."""
        with reporting(self._folder, REMEDY):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._staged, tree.save(value), remedy=REMEDY)

    def promote(self) -> None:
        """The receipt is there: the staged version, if any, becomes the committed one."""
        if self._staged.exists():
            with reporting(self._committed, REMEDY):
                os.replace(self._staged, self._committed)
                sync_folder(self._folder)

    def drop(self) -> None:
        """The staged version does not count: its update was refused, or its task starts again."""
        with reporting(self._staged, REMEDY):
            self._staged.unlink(missing_ok=True)

    def forget(self) -> None:
        """The run is over: nothing of it is needed any more."""
        if self._folder.exists():
            with reporting(self._folder, REMEDY):
                shutil.rmtree(self._folder)
