"""One device of a simulated federation: what it holds, and what keeps its place of a disk."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from coppice import tree
from coppice.app import App
from coppice.data import Examples
from coppice.device_cost import DeviceCost
from coppice.domain import WORK_SECONDS, Capability, ClientId, derive_seed
from coppice.method import Local, Task, Update
from coppice.sparse import Mask, SparseTensor
from coppice.task_cost import parts_of

#: What every simulated device says of itself.
CAPABILITY = Capability(memory_bytes=2**40, num_threads=1, machine="simulated")


@dataclass
class MemoryPrivate:
    """Private state of a simulated device; `commit` stands for the receipt."""

    _committed: dict[type[Any], bytes] = field(default_factory=dict)
    _staged: dict[type[Any], bytes] = field(default_factory=dict)
    #: What was committed before the last task; None when that changed nothing.
    _before: dict[type[Any], bytes] | None = None

    def read(self, kind: type[Any]) -> Any:
        """The last committed version."""
        return tree.load(kind, self._committed[kind]) if kind in self._committed else None

    def stage(self, value: object) -> None:
        """Hold the next version."""
        self._staged[type(value)] = tree.save(value)

    def commit(self) -> None:
        """The staged version is the committed one from now on."""
        self._before = self._committed if self._staged else None
        self._committed = self._committed | self._staged
        self._staged = {}

    def take_back(self) -> None:
        """The last task's update was refused when its round closed."""
        if self._before is not None:
            self._committed, self._before = self._before, None

    def drop(self) -> None:
        """The staged version does not count: its update was refused."""
        self._staged = {}


class _Unmetered:
    def step_done(self) -> None:
        """Nobody takes a simulated task back."""


@dataclass
class Device:
    """One simulated client."""

    client_id: ClientId
    app: App
    train: Examples
    held_out: Examples
    kernels: bool
    cost: DeviceCost | None
    private: MemoryPrivate = field(default_factory=MemoryPrivate)
    #: The masks that it holds, as they were sent.
    masks: bytearray | None = None

    def take_masks(self, masks: bytearray | None) -> int:
        """Hold these masks. Returns the bytes that had to be sent for it."""
        if masks is None or self.masks is masks:
            return 0
        self.masks = masks
        return len(masks)

    def local(self, seed: int, round_number: int, task: Task | None = None) -> Local:
        """What it brings to a round and its task."""
        generator = torch.Generator()
        generator.manual_seed(derive_seed(seed, self.client_id, round_number))
        return Local(
            client_id=self.client_id,
            app=self.app,
            seed=seed,
            train=self.train,
            held_out=self.held_out,
            capability=CAPABILITY,
            private=self.private,
            meter=_Unmetered(),
            generator=generator,
            kernels=self.kernels,
            cost=self.cost,
            parts=1 if task is None else parts_of(task, self.cost),
        )

    def timed(self, task: Task, update: Update) -> Update:
        """The update with the times that the server and the device would have measured."""
        if self.cost is None:
            return update
        ones = kept_weights(task, self.cost.time.layers.keys())
        seconds = self.cost.time.seconds(ones, update.steps)
        work = replace(self.cost.time, seconds_per_value=0.0).seconds(ones, update.steps)
        return replace(update, seconds=seconds, metrics={**update.metrics, WORK_SECONDS: work})


def kept_weights(task: Task, names: Collection[str]) -> dict[str, int]:
    """Weights that a task brings of each of these parameters."""
    return {
        name: item.mask.count if isinstance(item, SparseTensor) else item.numel()
        for group in task.payload.values()
        for name, item in group.items()
        if name in names and not isinstance(item, Mask)
    }
