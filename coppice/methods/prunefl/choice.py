"""How many steps a device does and how many weights of each layer it keeps: its own choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coppice.device_cost import MOST_BYTES, Counts, DeviceCost, Floats
from coppice.methods.prunefl.paths import INSIDE, Options, Paths
from coppice.methods.prunefl.profile import Profile
from coppice.section import Section

#: What a device does it changes for more than this share of gain only: a step more or less may turn
#: its density around.
WORTH_A_CHANGE = 0.05
#: Memory is the bound when without its limit there were so much more to gain.
_BOUND = 0.01

#: A round with one step may last so many paces.
_LATE = 1.2
#: With steps that gain less than this share of what others do, no better counts are looked for.
_HOPELESS = 0.85
#: Gains of a smaller share of what is kept are rounding.
_ROUNDING = 1e-12

Cells: TypeAlias = tuple[NDArray[np.intp], ...]

#: What keeps a device from doing more; "capped": nothing does, it does all
#: steps and keeps all that is worth anything.
Why = Literal["memory", "pace", "capped"]


@dataclass(frozen=True, kw_only=True)
class Choice(Section):
    """What one device does in a round."""

    steps: int
    #: Weights kept, by the name of the parameter.
    kept: Mapping[str, int]
    #: Share of the steps that are done times the importance that is kept (Δ_i); inside the core
    #: next to nothing of it (`paths.INSIDE`).
    gain: float
    #: As predicted.
    seconds: float
    peak_bytes: float
    why: Why


def choose(
    profile: Profile,
    cost: DeviceCost,
    pace: float,
    max_steps: int,
    previous: Choice | None = None,
) -> Choice | None:
    """The steps and counts of the largest gain in a round that holds the pace and the memory limit.

    It stays with the previous steps and counts, as far as there still are such counts, while that
    is allowed and no other gains more by a twentieth. None where not even one step with the fewest
    weights is allowed; `obstacle` says why.

    Args:
        profile: What weights are worth.
        cost: Of the same model.
        pace: Seconds of the round.
        max_steps: Steps of a device that has the time for all, at least 1.
        previous: What the device did so far.

    Raises:
        ValueError: The two are of different models, or the pace is no time.
    """
    return chosen(Paths(Options.of(profile, cost), max_steps), pace, previous)


def chosen(paths: Paths, pace: float, previous: Choice | None = None) -> Choice | None:
    """As `choose`, from what is worked out already."""
    options, max_steps = paths.options, paths.max_steps
    if not 0 <= pace < math.inf:
        raise ValueError(f"the pace is {pace} seconds; allowed is 0 or more, and finite")
    best = _best(paths, pace)
    if best is None:
        return None
    best = replace(best, why=_why(paths, best, pace))
    if previous is None or previous.kept.keys() != set(options.names):
        return best
    steps = min(previous.steps, max_steps)
    stay = _choice(options, steps, _snapped(options, previous), max_steps)
    allowed = steps > 0 and options.cost.allows(stay.kept, steps, pace)
    # Where nothing is known to gain anything, what was done says nothing either.
    is_enough = 0 < best.gain <= (1 + WORTH_A_CHANGE) * stay.gain
    return replace(stay, why=best.why) if allowed and is_enough else best


def held(cost: DeviceCost, pace: float, max_steps: int, previous: Choice) -> Choice | None:
    """The same counts, and as many steps as the pace allows by now.

    New masks take a while to be set up: within one pace only the steps follow what is measured.
    None where that is not enough: without the memory, or with one step that is late by more than
    what rounds vary by.
    """
    peak_bytes = cost.peak_bytes(previous.kept)
    if peak_bytes > cost.limit_bytes:
        return None
    steps = cost.time.steps_within(pace, previous.kept, max_steps)
    if steps == 0 and cost.time.seconds(previous.kept, 1) <= _LATE * pace:
        steps = 1
    if steps == 0:
        return None
    seconds = cost.time.seconds(previous.kept, steps)
    return replace(previous, steps=steps, seconds=seconds, peak_bytes=peak_bytes)


def obstacle(profile: Profile, cost: DeviceCost, pace: float) -> Literal["memory", "pace"] | None:
    """The limit that not even one step with the fewest weights holds; None where there is none."""
    least = Paths(Options.of(profile, cost), 1).least_seconds
    if least == math.inf:
        return "memory"
    return "pace" if least > pace else None


def _best(paths: Paths, pace: float) -> Choice | None:
    options, max_steps = paths.options, paths.max_steps
    # Paths add up in another order than what is checked in the end.
    within = pace * (1 - 1e-12)
    points = paths.best(within)
    enough = _HOPELESS * max((gain for _, _, gain in points), default=0.0)
    found = [
        _choice(options, steps, _improved(options, steps, chosen_l, within), max_steps)
        for steps, chosen_l, gain in points
        if gain >= enough
    ]
    if not found:
        return None
    best = max(found, key=lambda choice: (choice.gain, choice.steps))
    steps = max(best.steps, options.cost.time.steps_within(pace, best.kept, max_steps))
    gain, seconds = best.gain * steps / best.steps, options.cost.time.seconds(best.kept, steps)
    return replace(best, steps=steps, gain=gain, seconds=seconds)


def _improved(options: Options, steps: int, chosen_l: Counts, pace: float) -> Counts:
    """With what is left of both limits, and what one layer can give another for the better.

    While there is one, the move is made that gains the most: a layer to a larger count, and perhaps
    another to a smaller one.
    """
    if (chosen_l < options.core).any():
        # Inside the core the layers stay in proportion.
        return chosen_l
    costs = [options.seconds_lp(steps), *options.bytes_klp]
    room = options.cost.limit_bytes - options.base_bytes_k
    limits = [pace - options.base_seconds(steps), *room]
    index = np.arange(options.kept_lp.shape[1])
    layers = np.arange(chosen_l.size)
    while True:
        here = (layers, chosen_l)
        up = np.nonzero(index > chosen_l[:, None])
        down = np.nonzero((index >= options.core) & (index < chosen_l[:, None]))
        gains = _both(options.gains_lp, here, up, down)
        fits = np.ones(gains.shape, dtype=np.bool_)
        for values_lp, limit in zip(costs, limits, strict=True):
            fits &= values_lp[here].sum() + _both(values_lp, here, up, down) <= limit
        # Together they are two changes of one layer, of which there is none.
        fits[:, 1:] &= up[0][:, None] != down[0]
        gains[~fits] = 0.0
        if gains.max(initial=0.0) <= _ROUNDING * options.gains_lp[here].sum():
            return chosen_l
        raised, lowered = np.unravel_index(int(gains.argmax()), gains.shape)
        chosen_l = chosen_l.copy()
        chosen_l[up[0][raised]] = up[1][raised]
        if lowered > 0:
            chosen_l[down[0][lowered - 1]] = down[1][lowered - 1]


def _both(values_lp: Floats, here: Cells, up: Cells, down: Cells) -> Floats:
    """What each pair of moves changes; the first column is of the move up alone."""
    now_l = values_lp[here]
    raised, lowered = values_lp[up] - now_l[up[0]], values_lp[down] - now_l[down[0]]
    changes: Floats = raised[:, None] + np.concatenate([[0.0], lowered])
    return changes


def _choice(options: Options, steps: int, chosen_l: Counts, max_steps: int) -> Choice:
    kept = options.kept(chosen_l)
    gain = options.base_gain + options.gains_lp[np.arange(chosen_l.size), chosen_l].sum()
    counts = INSIDE if (chosen_l < options.core).any() else 1.0
    return Choice(
        steps=steps,
        kept=kept,
        gain=counts * steps / max_steps * float(gain),
        seconds=options.cost.time.seconds(kept, steps),
        peak_bytes=options.cost.peak_bytes(kept),
        why="pace",
    )


def _snapped(options: Options, previous: Choice) -> Counts:
    """The largest counts there are that are no larger than the previous ones."""
    before = np.array([previous.kept[name] for name in options.names])
    last: Counts = (options.kept_lp <= before[:, None]).sum(axis=1) - 1
    return last.clip(min=0)


def _why(paths: Paths, best: Choice, pace: float) -> Why:
    options = paths.options
    most = options.base_gain + float(options.gains_lp[:, -1].sum())
    everything = options.kept(np.full(len(options.names), options.kept_lp.shape[1] - 1))
    # Before anything was measured nothing gains anything.
    if best.kept == everything or (most > 0 and best.gain >= (1 - _ROUNDING) * most):
        return "capped" if best.steps == paths.max_steps else "pace"
    if options.cost.time.seconds(everything, paths.max_steps) <= pace:
        return "memory"
    if options.may_lack_memory:
        unlimited = replace(options, cost=replace(options.cost, limit_bytes=MOST_BYTES))
        without = _best(Paths(unlimited, paths.max_steps), pace)
        if without is not None and without.gain > (1 + _BOUND) * best.gain:
            return "memory"
    return "pace"
