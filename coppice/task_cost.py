"""What a task means to a device that knows its costs."""

from __future__ import annotations

from coppice.device_cost import DeviceCost
from coppice.method import Task
from coppice.sparse import Mask
from coppice.tensors import masks_of, weight_group


def kept_of(task: Task) -> dict[str, int]:
    """Kept weights of what a task brings, by the names of those that are on masks."""
    return {name: mask.count for name, mask in masks_in(task).items()}


def masks_in(task: Task) -> dict[str, Mask]:
    """The masks of the weights that a task brings, by name."""
    return masks_of(weight_group(task.payload, "parameters"))


def parts_of(task: Task, cost: DeviceCost | None) -> int:
    """Parts of its batches with which a task fits, as far as that is known."""
    ones = kept_of(task)
    if cost is None or ones.keys() != cost.time.layers.keys():
        return 1
    return cost.fewest_parts(ones)
