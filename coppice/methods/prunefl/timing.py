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

    def with_round(self, updates: Sequence[Update], steps: int) -> Timing:
        """Add a round; its work counts as if it had had so many steps as an ordinary one."""
        timed = [_timed(update, steps) for update in updates if update.seconds is not None]
        if not timed:
            return self
        slowest = max(timed, key=lambda item: item.work_seconds + item.link_seconds)
        return Timing((*self.rounds, slowest), self.samples)

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


def _timed(update: Update, steps: int) -> TimedRound:
    assert update.seconds is not None
    # What a device says of itself, within what the server saw.
    work = min(max(update.metrics.get(WORK_SECONDS, 0.0), 0.0), update.seconds)
    return TimedRound(
        work_seconds=max(work, 1e-6) * steps / max(1, update.steps),
        link_seconds=update.seconds - work,
    )
