"""What a method keeps on this device from round to round and never sends, on disk."""

from __future__ import annotations

import os
import shutil
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
    """One run's private state: a committed version, and the next one beside it.

    A version is one file with a value of each type, and every change is one rename: a process that
    is killed at any moment leaves the one or the other.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is this run's and this method's own; it is made when something is written."""
        self._folder = folder
        self._committed = folder / "committed.safetensors"
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

    def write(self) -> None:
        """Put the next version, if anything was staged, on disk before its update is sent."""
        if not self._next:
            return
        values = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for name, data in (self._values() | self._next).items()
        }
        self._next = {}
        with reporting(self._folder, REMEDY):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._staged, save(values), remedy=REMEDY)

    def promote(self) -> None:
        """The receipt is there: the staged version, if any, becomes the committed one."""
        if self._staged.exists():
            with reporting(self._committed, REMEDY):
                os.replace(self._staged, self._committed)
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

    def _values(self) -> dict[str, bytes]:
        try:
            data = self._committed.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreUnusable(f"{self._committed} cannot be read: {error.strerror}") from None
        try:
            return {name: value.numpy().tobytes() for name, value in load(data).items()}
        except SafetensorError as error:
            raise InvalidPayload(f"{self._committed} is damaged: {error}") from None
