"""How much of its weights' importance a device can report: what its link and its memory afford."""

from __future__ import annotations

import math
from dataclasses import replace

from coppice.device_cost import DeviceCost
from coppice.methods.prunefl.choice import Choice, choose
from coppice.methods.prunefl.profile import Profile
from coppice.methods.prunefl.sample import MOST_EVERY
from coppice.methods.prunefl.terms import Terms

#: Of each value that is reported, its square and the bytes of that as they are sent.
_COPIES = 2
#: What is measured is more by up to so much: allocators leave gaps.
_MARGIN = 1.1
_BYTES_PER_VALUE = 4 * _MARGIN


def choose_with_report(
    terms: Terms, cost: DeviceCost, pace: float, chosen: Choice, parts: int = 1
) -> tuple[Choice, int]:
    """The choice of a round with a report, and of one weight in how many that is; 0 for none.

    Sending the report takes no longer than the pace or, before there is one, than the round does
    without. In memory the report has room beside the choice or, where there is none, makes some:
    but then it is no larger than the gradient that it takes. A device without memory for even that
    keeps its choice and reports nothing.

    Args:
        terms: What the device chooses from.
        cost: Its own.
        pace: Seconds that a round may take without a report.
        chosen: What it does in a round without one.
        parts: Of each batch.
    """
    sizes = _sizes(terms.profile)
    gradients = _gradients(sizes, parts)
    room = cost.limit_bytes - chosen.peak_bytes
    every = max(
        _every_on_link(sizes, cost, terms.pace_seconds or chosen.seconds),
        _every_in_memory(sizes, gradients, room),
    )
    if every > MOST_EVERY:
        return chosen, 0
    needed = report_bytes(terms.profile, every, parts)
    if needed <= room:
        return chosen, every
    reserved = replace(cost, limit_bytes=max(0.0, cost.limit_bytes - needed))
    smaller = choose(terms.profile, reserved, pace, terms.max_steps)
    return (chosen, 0) if smaller is None else (smaller, every)


def report_bytes(profile: Profile, every: int, parts: int = 1) -> float:
    """What a report of one weight in so many takes beside training in parts, at most."""
    sizes = _sizes(profile)
    return _BYTES_PER_VALUE * (_gradients(sizes, parts) + _COPIES * _values(sizes, every))


def _every_on_link(sizes: list[int], cost: DeviceCost, seconds: float) -> int:
    per_value = cost.time.seconds_per_value
    if per_value == 0:
        # Not known before the first round.
        return 1
    return _every(sizes, seconds / per_value)


def _every_in_memory(sizes: list[int], gradients: int, room_bytes: float) -> int:
    copies = max(room_bytes / _BYTES_PER_VALUE - gradients, gradients)
    return _every(sizes, copies / _COPIES)


def _every(sizes: list[int], values: float) -> int:
    """Such that a report has so many values at most."""
    if sum(sizes) <= values:
        return 1
    # Of each layer one is reported in any case.
    spare = values - len(sizes)
    return math.ceil(min(sum(sizes) / spare, 2.0 * MOST_EVERY)) if spare > 0 else 2 * MOST_EVERY


def _values(sizes: list[int], every: int) -> int:
    return sum(-(-size // every) for size in sizes)


def _gradients(sizes: list[int], parts: int) -> int:
    """Entries of the dense gradients that are there at a time.

    That is one layer's or, with batches in parts, all of them, until the last part has added its
    own.
    """
    return max(sizes, default=0) if parts == 1 else sum(sizes)


def _sizes(profile: Profile) -> list[int]:
    return [layer.kept[-1] for layer in profile.layers.values()]
