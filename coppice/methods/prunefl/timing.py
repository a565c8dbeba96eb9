"""What a round takes on the slowest client, from the rounds that were timed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coppice.budget import RoundSample, RoundTime, fit_round_time
from coppice.domain import WORK_SECONDS
from coppice.errors import RunFileError
from coppice.method import Update
from coppice.sparse import SparseTensor
from coppice.tensors import Weights, masks_of

#: Of so many masks the timings are kept, the newest.
MAX_SAMPLES = 64


#: A weight that cost no time at all would never be pruned.
_LEAST_SECONDS = 1e-6


@dataclass(frozen=True)
class TimedRound:
    """The slowest client of a round."""

    #: Training on the device.
    work_seconds: float
    #: All the rest: parameters down, the update up, and what the server does in between.
    link_seconds: float


@dataclass(frozen=True)
class Timing:
    """What was timed so far."""

    #: Rounds under the present masks.
    rounds: tuple[TimedRound, ...] = ()
    #: Median work under each earlier set of masks.
    samples: tuple[RoundSample, ...] = ()

    def with_round(
        self, updates: Sequence[Update], work_share: float = 1.0, link_share: float = 1.0
    ) -> Timing:
        """Add a round, of whose work and link these shares are what an ordinary one would take.

        The round lasted as long as its slowest client. What of that is the link's the median of all
        clients says, so that no single one can.
        """
        timed = [item for item in updates if item.seconds is not None]
        if not timed:
            return self
        link = statistics.median(_link_seconds(item) for item in timed)
        work = max(item.seconds or 0.0 for item in timed) - link
        newest = TimedRound(max(work, _LEAST_SECONDS) * work_share, link * link_share)
        return Timing((*self.rounds, newest), self.samples)

    def under_new_masks(self, old: Weights) -> Timing:
        """The rounds so far become one sample, of the masks that they had."""
        if not self.rounds:
            return self
        return Timing((), (*self.samples, self._sample(old))[-MAX_SAMPLES:])

    def round_time(self, weights: Weights) -> RoundTime:
        """Work and link under the present masks and, as far as can be told, under others.

        The link's time grows with the values that it carries. So does the work where the samples
        are many enough to say and a line explains them; else it is the same under any mask.
        """
        if not self.rounds:
            raise RunFileError(
                "PruneFL needs to know what a round takes, and none was timed (a simulation has no "
                "clock): give method.round_time"
            )
        kept = sum(mask.count for mask in masks_of(weights).values())
        dense = sum(item.numel() for item in weights.values() if not isinstance(item, SparseTensor))
        link = statistics.median(item.link_seconds for item in self.rounds) / max(1, kept + dense)
        work = self._work(self._sample(weights))
        return RoundTime(
            constant_seconds=work.constant_seconds + link * dense,
            seconds_per_weight={
                name: seconds + link for name, seconds in work.seconds_per_weight.items()
            },
        )

    def _sample(self, weights: Weights) -> RoundSample:
        ones = {name: mask.count for name, mask in masks_of(weights).items()}
        return RoundSample(
            ones=ones, seconds=statistics.median(item.work_seconds for item in self.rounds)
        )

    def _work(self, newest: RoundSample) -> RoundTime:
        try:
            fit = fit_round_time([*self.samples, newest])
        except ValueError:
            # Too few masks so far to tell the layers apart.
            fit = None
        if fit is not None and fit.is_usable:
            return fit.round_time
        same: Mapping[str, float] = dict.fromkeys(newest.ones, 0.0)
        return RoundTime(constant_seconds=newest.seconds, seconds_per_weight=same)


def _link_seconds(update: Update) -> float:
    """The time that was not spent at work, by what the device says, within what the server saw."""
    seconds = update.seconds or 0.0
    work = min(max(update.metrics.get(WORK_SECONDS, 0.0), 0.0), seconds)
    return max(seconds - work, _LEAST_SECONDS)
