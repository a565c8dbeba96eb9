"""What rounds cost a device, corrected by each round that it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from coppice.device_cost import DeviceCost, MemoryCost, RoundCost, StepMemory
from coppice.domain import Section

#: Of what a round says about seconds, so much is believed at once: a device that got slower does
#: fewer steps in the next round, one hiccup does not turn everything around.
_BELIEF = 0.5
#: No round says that steps take so many times longer or shorter than they did.
_MOST_CHANGE = 8.0
#: A peak that was higher than predicted is believed at once, a lower one slowly.
_BELIEF_IN_LESS = 0.1
#: Of transfers with fewer bytes, most of the time is not the bytes'.
_LEAST_BYTES = 64 * 1024
_BYTES_PER_VALUE = 4


@dataclass(frozen=True, kw_only=True)
class MeasuredRound:
    """What one round took on a device."""

    steps: int
    #: Kept weights by the name of the parameter.
    ones: Mapping[str, int]
    #: Of the steps alone, 0 where it is not known; and of all the work on the task.
    step_seconds: float
    work_seconds: float
    download_bytes: int
    download_seconds: float
    upload_bytes: int
    upload_seconds: float
    #: Resident memory of the process at its peak.
    peak_bytes: int
    #: Parts of each batch.
    parts: int = 1
    #: Whether it was a round of plain training, which is what the model is of.
    is_plain: bool = True


@dataclass(frozen=True, kw_only=True)
class LearnedCost(Section):
    """What rounds of one run cost a device, as far as it knows."""

    time: RoundCost
    memory: StepMemory
    #: Seconds of a byte on the link, down and up; 0 before the first round.
    down_seconds_per_byte: float = 0.0
    up_seconds_per_byte: float = 0.0
    #: Rounds that were learned from.
    rounds: int = 0

    def cost(self, limit_bytes: float) -> DeviceCost:
        """With the memory that there is now."""
        return DeviceCost(
            time=self.time, memory=MemoryCost(training=self.memory), limit_bytes=limit_bytes
        )

    def compute_seconds(self, ones: Mapping[str, int], steps: int) -> float:
        """Predicted, of the work on a task."""
        without_link = replace(self.time, seconds_per_value=0.0)
        return without_link.seconds(ones, steps)

    def peak_bytes(self, ones: Mapping[str, int], parts: int = 1) -> float:
        """Predicted, of a round of plain training with batches in so many parts at least."""
        return self.memory.in_parts(parts).peak_bytes(ones, self.time.dense_layers(ones))

    def after(self, measured: MeasuredRound) -> LearnedCost:
        """What is known after one more round."""
        down = _per_byte(
            self.down_seconds_per_byte, measured.download_bytes, measured.download_seconds
        )
        up = _per_byte(self.up_seconds_per_byte, measured.upload_bytes, measured.upload_seconds)
        return replace(
            self,
            time=replace(self._time(measured), seconds_per_value=_BYTES_PER_VALUE * (down + up)),
            memory=self._memory(measured),
            down_seconds_per_byte=down,
            up_seconds_per_byte=up,
            rounds=self.rounds + 1,
        )

    def _time(self, measured: MeasuredRound) -> RoundCost:
        time = self.time
        if not measured.is_plain:
            return time
        predicted = time.seconds(measured.ones, 1) - time.seconds(measured.ones, 0)
        # A single step cannot be told from what comes before it.
        steps_seconds = measured.step_seconds or measured.steps * predicted
        rest = max(0.0, measured.work_seconds - steps_seconds)
        # The first round's is the first that is known.
        constant = rest if self.rounds == 0 else _between(time.round_seconds, rest, _BELIEF)
        if measured.steps == 0 or predicted <= 0 or measured.step_seconds <= 0:
            return replace(time, round_seconds=constant)
        found = measured.step_seconds / measured.steps / predicted
        factor = min(max(found, 1 / _MOST_CHANGE), _MOST_CHANGE) ** _BELIEF
        return replace(
            time,
            round_seconds=constant,
            step_seconds=factor * time.step_seconds,
            layers={name: layer.times(factor) for name, layer in time.layers.items()},
        )

    def _memory(self, measured: MeasuredRound) -> StepMemory:
        if not measured.is_plain:
            return self.memory
        missing = measured.peak_bytes - self.peak_bytes(measured.ones, measured.parts)
        belief = 1.0 if missing > 0 else _BELIEF_IN_LESS
        base = max(0.0, self.memory.base_bytes + belief * missing)
        return replace(self.memory, base_bytes=base)


def _per_byte(known: float, size_bytes: int, seconds: float) -> float:
    if size_bytes < _LEAST_BYTES or not 0 < seconds < math.inf:
        return known
    found = seconds / size_bytes
    return found if known == 0 else _between(known, found, _BELIEF)


def _between(known: float, found: float, belief: float) -> float:
    return known + belief * (found - known)
