"""Which updates of a round are not like the others: their sizes against the round's own.

The size of an update is the root mean square of its change per weight that it holds and per local
step, so that neither a pruned model nor a slow device looks small. Beside it stands the root mean
square of its floating-point buffers, which are not changes but values.

**The rule.** An update is refused when the logarithm of its size is above `m + max(K s, log F)`,
where m is the median of the logarithms of all sizes of the round and s is 1.4826 times the median
of their distances from m, which for normal ones is their standard deviation.

- Medians, because a mean and its deviation are the attacker's to move: one update that is a
  thousand times too large moves both so far that it is inside them (masking). Medians hold while
  fewer than half of the updates are hostile.
- Logarithms, because sizes of honest devices differ by factors: by how far each has learnt its own
  data already, by their classes, by their learning rates' decay.
- The floor F, because rounds of much alike devices have a spread near 0, where any device would be
  an outlier. Devices that differ by less than F are never refused, however alike the others are.
- Only above: an update that is too small does no harm but its own weight's.
- Rounds of five devices at least: of fewer, a median says little. Of these, three updates at least:
  whose update was refused when it came must not keep the others from being judged.

Steps are what a device claims. They count for ten times the round's median at most, so that a
claim of many does not make a large update small. So do examples, which are an update's weight in
the mean: a claim of more than a thousand times the round's median is refused.

What it does not see: an update of an ordinary size in a harmful direction. Against these there are
the rules of `coppice.robust`, at a price.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from coppice.domain import ClientId
from coppice.method import Update
from coppice.protection import Finding
from coppice.sparse import SparseTensor

#: Devices of a round without which it is not judged, and updates of these.
FEWEST_DEVICES = 5
FEWEST_UPDATES = 3
#: K: spreads above the median.
SPREADS = 6.0
#: F: what sizes may differ by, whatever the spread.
LEAST_FACTOR = 20.0
#: Steps count for so many times the round's median at most.
STEPS_FACTOR = 10.0
#: Examples may be so many times the round's median.
EXAMPLES_FACTOR = 1000.0

#: Makes the median distance from the median the standard deviation of normal numbers.
_NORMAL = 1.4826


@dataclass(frozen=True)
class Measured:
    """What an update is judged by."""

    client_id: ClientId
    num_examples: int
    steps: int
    #: Root mean square of the change per held weight, of all steps together.
    change: float
    #: Root mean square of the floating-point buffers; 0 without any.
    buffers: float


def measure(update: Update) -> Measured:
    """One pass over an update's values."""
    return Measured(
        update.client_id,
        update.num_examples,
        update.steps,
        _root_mean_square(update.payload.get("delta", {}).values()),
        _root_mean_square(update.payload.get("buffers", {}).values()),
    )


def is_judged(devices: int, updates: int) -> bool:
    """Whether a round of so many devices, with so many updates to fold, is judged."""
    return devices >= FEWEST_DEVICES and updates >= FEWEST_UPDATES


def judge(updates: Sequence[Measured]) -> dict[ClientId, Finding]:
    """The updates of a round that are refused, and why; the round is one that is judged."""
    usual_steps = max(1.0, median(item.steps for item in updates))
    per_step = {
        item.client_id: item.change / min(max(1, item.steps), STEPS_FACTOR * usual_steps)
        for item in updates
    }
    values = {item.client_id: item.buffers for item in updates}
    # Of an update that is refused twice, the first reason counts.
    return (
        _too_large(values, "its buffers are {size:.3g} on average")
        | _too_large(per_step, "its change is {size:.3g} per weight and step")
        | _too_heavy(updates)
    )


def _too_large(sizes: dict[ClientId, float], what: str) -> dict[ClientId, Finding]:
    # Devices without examples change nothing, and say nothing of how much is ordinary.
    logs = {name: math.log(size) for name, size in sizes.items() if size > 0}
    if len(logs) < FEWEST_UPDATES:
        return {}
    middle = median(logs.values())
    spread = _NORMAL * median(abs(log - middle) for log in logs.values())
    allowed = max(SPREADS * spread, math.log(LEAST_FACTOR))
    usual = math.exp(middle)
    return {
        name: Finding(
            "size",
            f"{what.format(size=sizes[name])}, {math.exp(log - middle):.3g} times the round's "
            f"median of {usual:.3g}; up to {math.exp(allowed):.3g} times is let through",
            {
                "size": sizes[name],
                "median": usual,
                "times": math.exp(log - middle),
                "allowed_times": math.exp(allowed),
                "updates": float(len(logs)),
            },
        )
        for name, log in logs.items()
        if log - middle > allowed
    }


def _too_heavy(updates: Sequence[Measured]) -> dict[ClientId, Finding]:
    usual = max(1.0, median(item.num_examples for item in updates))
    return {
        item.client_id: Finding(
            "weight",
            f"it claims {item.num_examples} examples, {item.num_examples / usual:.3g} times the "
            f"round's median of {usual:.3g}; up to {EXAMPLES_FACTOR:.3g} times is let through",
            {
                "num_examples": float(item.num_examples),
                "median": usual,
                "times": item.num_examples / usual,
                "allowed_times": EXAMPLES_FACTOR,
                "updates": float(len(updates)),
            },
        )
        for item in updates
        if item.num_examples > EXAMPLES_FACTOR * usual
    }


def _root_mean_square(items: Iterable[object]) -> float:
    total, count = 0.0, 0
    for item in items:
        values = item.values if isinstance(item, SparseTensor) else item
        if isinstance(values, Tensor) and values.is_floating_point():
            # The squares of large float32 are infinite.
            total += float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
            count += values.numel()
    return math.sqrt(total / count) if count else 0.0
