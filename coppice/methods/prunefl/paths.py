"""All that one device could keep, worked out at once for every pace and so found fast.

For some number of steps, each layer offers a few counts of kept weights, each with a gain, seconds
and bytes: a knapsack with one item of each layer and two limits. A *path* leads from the least that
may be kept to everything, in order of gain per second. Where memory may be short, several paths put
several prices on a byte, gain / (seconds + λ · bytes) (Lagrange): for given limits the best point
is on one of them, but for what the next move, which just does not fit, leaves.

Shapes: L layers, P counts of one, K kinds of step that need memory, N paths, Q points of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coppice.device_cost import Counts, DeviceCost, Floats
from coppice.methods.prunefl.profile import Profile

#: Up to so many steps, every number of them is tried; of more, as many in geometric order.
_STEP_COUNTS = 16
#: What is gained inside the core counts only to order what lies inside it: on weights that are
#: protected every device trains that has the time and the memory, if only for a step.
INSIDE = 1e-6
#: Shares that the bytes of all weights have in the price of all.
_PRICES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class Options:
    """What each layer offers; layers with fewer counts repeat their last."""

    names: tuple[str, ...]
    #: Index of the core in every layer.
    core: int
    kept_lp: Counts
    gains_lp: Floats
    #: Of one step.
    compute_lp: Floats
    #: On the link.
    link_lp: Floats
    bytes_klp: Floats
    base_gain: float
    base_bytes_k: Floats
    cost: DeviceCost

    @staticmethod
    def of(profile: Profile, cost: DeviceCost) -> Options:
        """ValueError when the two are of different models."""
        if unlike := profile.layers.keys() ^ cost.time.layers.keys():
            raise ValueError(f"profile and cost differ in {min(unlike)!r}")
        names = tuple(profile.layers)
        width = max(len(layer.kept) for layer in profile.layers.values())
        kept_lp, gains_lp = (
            np.array([[*row, *[row[-1]] * (width - len(row))] for row in rows])
            for rows in (
                [layer.kept for layer in profile.layers.values()],
                [layer.gains for layer in profile.layers.values()],
            )
        )
        layers = [cost.time.layers[name] for name in names]
        dense = [layer.is_dense(kept) for layer, kept in zip(layers, kept_lp, strict=True)]
        return Options(
            names=names,
            core=profile.levels,
            kept_lp=kept_lp,
            gains_lp=gains_lp,
            compute_lp=np.array([x.seconds(k) for x, k in zip(layers, kept_lp, strict=True)]),
            link_lp=cost.time.seconds_per_value * kept_lp,
            bytes_klp=np.array(
                [
                    [
                        step.layers[name].needed_bytes(kept, is_dense)
                        for name, kept, is_dense in zip(names, kept_lp, dense, strict=True)
                    ]
                    for step in cost.memory.steps
                ]
            ),
            base_gain=profile.base_gain,
            base_bytes_k=np.array([step.base_bytes for step in cost.memory.steps]),
            cost=cost,
        )

    @property
    def may_lack_memory(self) -> bool:
        """Whether anything exceeds the limit."""
        most = self.base_bytes_k + self.bytes_klp.max(axis=2).sum(axis=1)
        return bool((most > self.cost.limit_bytes).any())

    def seconds_lp(self, steps: int) -> Floats:
        """Of each count, in a round of so many steps."""
        return steps * self.compute_lp + self.link_lp

    def base_seconds(self, steps: int) -> float:
        """Of a round of so many steps, besides what layers take."""
        return self.cost.time.round_seconds + steps * self.cost.time.step_seconds

    def kept(self, chosen_l: Counts) -> dict[str, int]:
        """The counts at these indices, by name."""
        counts = np.take_along_axis(self.kept_lp, chosen_l[:, None], axis=1)[:, 0]
        return dict(zip(self.names, counts.tolist(), strict=True))


class Paths:
    """The paths of one device through its options."""

    def __init__(self, options: Options, max_steps: int) -> None:
        counts = np.arange(1, max_steps + 1)
        if max_steps > _STEP_COUNTS:
            counts = np.unique(np.geomspace(1, max_steps, _STEP_COUNTS).round().astype(np.int64))
        prices = _PRICES if options.may_lack_memory else (0.0,)
        self.options = options
        self.max_steps = max_steps
        #: Of each path.
        self.steps_n: Counts = np.repeat(counts, len(prices))
        seconds_nlp = np.array([options.seconds_lp(int(steps)) for steps in self.steps_n])
        prices_n = np.tile(prices, counts.size)
        weights_nlp = _weights(options, seconds_nlp, prices_n)
        self._layers_nm, self._targets_nm, sources_nm = _moves(options, weights_nlp)
        self._follow(seconds_nlp, sources_nm)

    def _follow(self, seconds_nlp: Floats, sources_nm: Counts) -> None:
        """Add up what the points of each path are worth and cost."""
        options = self.options
        rows = np.arange(len(seconds_nlp))[:, None]
        here = (self._layers_nm, sources_nm)
        there = (self._layers_nm, self._targets_nm)

        def along(levels: Floats, changes: Floats) -> Floats:
            return np.concatenate([levels, levels[:, -1:] + np.cumsum(changes, axis=1)], axis=1)

        def level_sums(values_nlp: Floats) -> Floats:
            sums: Floats = values_nlp[:, :, : options.core + 1].sum(axis=1)
            return sums

        gains = np.broadcast_to(options.gains_lp, seconds_nlp.shape)
        base = np.array([options.base_seconds(int(steps)) for steps in self.steps_n])
        seconds = base[:, None] + along(
            level_sums(seconds_nlp), seconds_nlp[rows, *there] - seconds_nlp[rows, *here]
        )
        fits = np.ones(seconds.shape, dtype=np.bool_)
        for base_bytes, bytes_lp in zip(options.base_bytes_k, options.bytes_klp, strict=True):
            levels = level_sums(np.broadcast_to(bytes_lp, seconds_nlp.shape))
            used = base_bytes + along(levels, bytes_lp[there] - bytes_lp[here])
            fits &= used <= options.cost.limit_bytes
        shares = self.steps_n[:, None] / self.max_steps
        worth = along(level_sums(gains), options.gains_lp[there] - options.gains_lp[here])
        #: What each point counts (`INSIDE`): share of the steps times the gain, which never falls
        #: along a path.
        self.gains_nq: Floats = shares * (options.base_gain + worth)
        self.gains_nq[:, : options.core] *= INSIDE
        #: Of a round at each point; infinite where it does not fit in memory.
        self.seconds_nq: Floats = np.where(fits, seconds, math.inf)
        # The last point that a pace allows, although time may fall along a path.
        self._least_nq = np.minimum.accumulate(self.seconds_nq[:, ::-1], axis=1)[:, ::-1]

    @property
    def least_seconds(self) -> float:
        """Of the shortest round that fits in memory; infinite when none does."""
        return float(self.seconds_nq.min())

    @property
    def first_seconds(self) -> float:
        """Of the shortest round with the whole core, or with the most of it that fits in memory."""
        inside = self.seconds_nq[:, : self.options.core + 1].min(axis=0)
        fits = np.nonzero(np.isfinite(inside))[0]
        return float(inside[fits[-1]]) if fits.size else math.inf

    @property
    def most_seconds(self) -> float:
        """Beyond which nothing more can be done; 0 when nothing can at all."""
        return float(self.seconds_nq.max(where=np.isfinite(self.seconds_nq), initial=0.0))

    def gains(self, paces: Floats) -> Floats:
        """The largest gain within each pace, 0 where there is no round so short."""
        best = np.zeros(paces.shape)
        for gains, least in zip(self.gains_nq, self._least_nq, strict=True):
            last = np.searchsorted(least, paces, side="right") - 1
            best = np.maximum(best, np.where(last >= 0, gains[last], 0.0))
        return best

    def best(self, pace: float) -> list[tuple[int, Counts, float]]:
        """For each number of steps the best point: steps, index in each layer, and gain."""
        found: dict[int, tuple[float, int, int]] = {}
        for row, (steps, gains, least) in enumerate(
            zip(self.steps_n.tolist(), self.gains_nq, self._least_nq, strict=True)
        ):
            last = int(np.searchsorted(least, pace, side="right")) - 1
            if last >= 0 and (steps not in found or gains[last] > found[steps][0]):
                found[steps] = (float(gains[last]), row, last)
        return [
            (steps, self._indices(row, last), gain) for steps, (gain, row, last) in found.items()
        ]

    def _indices(self, row: int, point: int) -> Counts:
        core, layers = self.options.core, len(self.options.names)
        chosen = np.full(layers, min(point, core))
        moves = slice(0, max(0, point - core))
        np.maximum.at(chosen, self._layers_nm[row, moves], self._targets_nm[row, moves])
        return chosen


def _weights(options: Options, seconds_nlp: Floats, prices_n: Floats) -> Floats:
    """What each count costs, time and memory together."""
    bytes_lp = options.bytes_klp.max(axis=0)
    price = prices_n[:, None, None]
    time, memory = seconds_nlp / _span(seconds_nlp), bytes_lp / _span(bytes_lp)
    weights: Floats = (1 - price) * time + price * memory
    return weights


def _span(values: Floats) -> Floats:
    """What there is to choose between, all layers together."""
    span: Floats = np.ptp(values, axis=-1).sum(axis=-1)[..., None, None]
    return np.where(span > 0, span, 1.0)


def _moves(options: Options, weights_nlp: Floats) -> tuple[Counts, Counts, Counts]:
    """From the core on, the moves of each path in their order: layer, index after and before it.

    A layer moves along the upper hull of its points, always to where the gain per weight is
    largest: so its moves only get worse, and those of all layers can be sorted together.
    """
    paths, layers, counts = weights_nlp.shape
    index = np.arange(counts)
    at = np.full((paths, layers), options.core)
    gains = np.broadcast_to(options.gains_lp, weights_nlp.shape)
    rates, sources, targets = [], [], []
    worst = np.full((paths, layers), math.inf)
    while True:
        here = at[:, :, None]
        gain = gains - np.take_along_axis(gains, here, axis=2)
        weight = weights_nlp - np.take_along_axis(weights_nlp, here, axis=2)
        # What costs nothing comes first.
        rate = np.divide(gain, weight, where=weight > 0, out=np.full(gain.shape, math.inf))
        rate[(index <= here) | (gain <= 0)] = -math.inf
        to = rate.argmax(axis=2)
        best = np.take_along_axis(rate, to[:, :, None], axis=2)[:, :, 0]
        moving = best > -math.inf
        if not moving.any():
            break
        # Rounding must not put a move before the one that it goes on from.
        worst = np.where(moving, np.minimum(best, worst), -math.inf)
        to = np.where(moving, to, at)
        rates.append(worst)
        sources.append(at)
        targets.append(to)
        at = to
    if not rates:
        none = np.zeros((paths, 0), dtype=np.int64)
        return none, none, none
    order = np.argsort(-np.concatenate(rates, axis=1), axis=1, kind="stable")
    numbers = np.tile(np.arange(layers), len(rates))[order]
    after = np.take_along_axis(np.concatenate(targets, axis=1), order, axis=1)
    before = np.take_along_axis(np.concatenate(sources, axis=1), order, axis=1)
    return numbers, after, before
