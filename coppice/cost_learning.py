"""What rounds cost a device, corrected by each round that it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from coppice.device_cost import DeviceCost, MemoryCost, RoundCost, StepMemory
from coppice.section import Section

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
#: No round's rest takes less: it is divided by.
_LEAST_SECONDS = 1e-4

#: What a round does besides training: it reports importance, or is no round of plain training.
Besides: TypeAlias = Literal["nothing", "report", "other"]


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
    #: Whether the masks were others than in the round before.
    is_new: bool = True
    #: What it did besides training.
    besides: Besides = "nothing"


@dataclass(frozen=True, kw_only=True)
class Overhead(Section):
    """Seconds of a round besides its steps and the link: `fixed + per_weight · kept` on new masks.

    Values are decoded and encoded; on new masks, layers are made and what goes with them.
    """

    fixed_seconds: float
    seconds_per_weight: float
    #: By how much longer that takes in rounds than was measured before them.
    new_factor: float = 1.0
    #: The same, on the masks of the round before; None before there was such a round.
    same_factor: float | None = None
    #: What a report of importance adds; 0 before there was one.
    report_seconds: float = 0.0

    @property
    def steady_factor(self) -> float:
        """Of a round on the masks of the one before, as most are."""
        return self.new_factor / 2 if self.same_factor is None else self.same_factor

    def seconds(self, kept: int, is_new: bool, reports: bool) -> float:
        """Of a round with so many weights."""
        factor = self.new_factor if is_new else self.steady_factor
        return factor * self._measured(kept) + self.report_seconds * reports

    def after(self, kept: int, seconds: float, is_new: bool, reports: bool) -> Overhead:
        """What is known after a round in which it took so long."""
        if reports:
            more = max(0.0, seconds - self.seconds(kept, is_new, reports=False))
            is_first = self.report_seconds == 0
            found = more if is_first else _between(self.report_seconds, more, _BELIEF)
            return replace(self, report_seconds=found)
        factor = seconds / self._measured(kept)
        if is_new:
            return replace(self, new_factor=_between(self.new_factor, factor, _BELIEF))
        same = factor if self.same_factor is None else self.same_factor
        return replace(self, same_factor=_between(same, factor, _BELIEF))

    def _measured(self, kept: int) -> float:
        return max(_LEAST_SECONDS, self.fixed_seconds + self.seconds_per_weight * kept)


@dataclass(frozen=True, kw_only=True)
class LearnedCost(Section):
    """What rounds of one run cost a device, as far as it knows."""

    #: Of the steps; neither the rest of a round nor the link is in it.
    time: RoundCost
    overhead: Overhead
    memory: StepMemory
    #: Memory that there was to use when it was probed.
    probed_bytes: int = 0
    #: Seconds of a byte on the link, down and up; 0 before the first round.
    down_seconds_per_byte: float = 0.0
    up_seconds_per_byte: float = 0.0
    #: Rounds that were learned from.
    rounds: int = 0

    def cost(self, limit_bytes: float) -> DeviceCost:
        """With the memory that there is now."""
        factor, link = self.overhead.steady_factor, self.down_seconds_per_byte
        link += self.up_seconds_per_byte
        time = replace(
            self.time,
            round_seconds=factor * self.overhead.fixed_seconds,
            seconds_per_value=factor * self.overhead.seconds_per_weight + _BYTES_PER_VALUE * link,
        )
        return DeviceCost(
            time=time, memory=MemoryCost(training=self.memory), limit_bytes=limit_bytes
        )

    def compute_seconds(
        self, ones: Mapping[str, int], steps: int, *, is_new: bool = False, reports: bool = False
    ) -> float:
        """Predicted, of the work on a task: on masks that are new or not, with a report or not."""
        kept = sum(ones.values())
        return self.time.seconds(ones, steps) + self.overhead.seconds(kept, is_new, reports)

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
            time=self._time(measured),
            overhead=self._overhead(measured),
            memory=self._memory(measured),
            down_seconds_per_byte=down,
            up_seconds_per_byte=up,
            rounds=self.rounds + 1,
        )

    def _time(self, measured: MeasuredRound) -> RoundCost:
        time, predicted = self.time, self.time.seconds(measured.ones, 1)
        seconds = measured.step_seconds
        if measured.steps == 1:
            # What came before it is not known, but it took no longer than all of the work.
            seconds = min(measured.work_seconds, predicted)
        if measured.besides != "nothing" or measured.steps == 0 or min(seconds, predicted) <= 0:
            return time
        found = seconds / measured.steps / predicted
        # Few steps say less: under a quota, each waits for a share that comes at intervals.
        belief = _BELIEF * (1 - 1 / (1 + measured.steps))
        factor = min(max(found, 1 / _MOST_CHANGE), _MOST_CHANGE) ** belief
        return replace(
            time,
            step_seconds=factor * time.step_seconds,
            layers={name: layer.times(factor) for name, layer in time.layers.items()},
        )

    def _overhead(self, measured: MeasuredRound) -> Overhead:
        if measured.besides == "other":
            return self.overhead
        # A single step cannot be told from what comes before it.
        steps_seconds = measured.step_seconds or self.time.seconds(measured.ones, measured.steps)
        rest = measured.work_seconds - steps_seconds
        if rest <= 0:
            return self.overhead
        kept, reports = sum(measured.ones.values()), measured.besides == "report"
        return self.overhead.after(kept, rest, measured.is_new, reports)

    def _memory(self, measured: MeasuredRound) -> StepMemory:
        if measured.besides != "nothing":
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
