"""The pace of a fleet: how long a round should last for all together to gain the most per second.

PruneFL's rule maximises gain per second for one type of device, and is blind to how fast that is as
a whole. Where a round lasts until the slowest is done, what counts is

    F(τ) = Σ_i p_i Δ_i(τ) / (τ + c),   Δ_i(τ) the most that device i can do in τ seconds (`choose`),

where c is what passes between two rounds, in which no device trains. For devices that are all
alike, F is largest at the round time of PruneFL's one mask.

While a fast device waits for others, more weights cost no time, and it would keep all there are:
weights that only it trains, that the server has to fold, and that others have to hold once they are
protected. So nobody keeps more than PruneFL's rule would have some device keep that is alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coppice.device_cost import DeviceCost, Floats
from coppice.domain import ClientId
from coppice.methods.prunefl.choice import Choice, chosen, obstacle
from coppice.methods.prunefl.paths import Options, Paths
from coppice.methods.prunefl.profile import Profile
from coppice.section import Section

_GRID = 256
#: Of a round that costs nothing; any gain would be infinite.
_LEAST_SECONDS = 1e-9
_HALVINGS = 6
#: Sums in another order must not make a round too long by their last bit.
_ROUNDED_UP = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class Pace(Section):
    """How long a round should last, and what devices would then do."""

    #: Of devices; what passes between two rounds is not in it.
    seconds: float
    #: F, of the choices.
    gain_per_second: float
    #: Of those that take part; a device that sits out has none.
    choices: Mapping[ClientId, Choice]


class Fleet:
    """Devices that train together, and what they would gain at any pace."""

    def __init__(
        self,
        profile: Profile,
        devices: Mapping[ClientId, DeviceCost],
        shares: Mapping[ClientId, float],
        max_steps: int,
        longest: float = math.inf,
        pause: float = 0.0,
    ) -> None:
        """`shares` are the clients' weights in the aggregate; they need not add up to 1.

        No pace is longer than `longest` seconds, whatever that leaves out; `pause` seconds pass
        between two rounds.
        """
        if unlike := devices.keys() ^ shares.keys():
            raise ValueError(f"{min(unlike)} is a device without a share or a share without device")
        able = {name: Paths(Options.of(profile, c), max_steps) for name, c in devices.items()}
        able = {
            name: paths
            for name, paths in able.items()
            if math.isfinite(paths.least_seconds) and paths.least_seconds <= longest
        }
        if not able:
            raise ValueError(
                f"no device has the memory for the fewest weights and does a step in {longest} s"
            )
        self._longest = longest
        self._pause = pause
        self._paths = able
        self._shares = shares

    def rate(self, paces: Floats) -> Floats:
        """F at each pace, but for what filling up (`choose`) would add."""
        total = np.zeros(paces.shape)
        for name, paths in self._paths.items():
            total += self._shares[name] * paths.gains(paces)
        return total / (paces + self._pause)

    def shortest(self, taking_part: int | None) -> float:
        """The shortest round in which so many take part, by default all, as they should.

        That is with a step on the whole core at least, if there is the memory for it: what only
        some devices train drifts to their data.
        """
        least = sorted(paths.first_seconds for paths in self._paths.values())
        needed = least[min(taking_part or len(least), len(least)) - 1]
        return max(min(needed, self._longest), _LEAST_SECONDS)

    def best_pace(self, shortest: float) -> float:
        """The pace, no shorter than that, at which F is largest.

        Between two points of the devices' paths nothing is gained and time goes by, so the best one
        is at a point. What is gained never falls with the pace: that bounds F between two paces,
        and leaves few points to try.
        """
        most = max(paths.most_seconds for paths in self._paths.values())
        longest = max(shortest, min(most, self._longest))
        ends = np.geomspace(shortest, longest, _GRID)
        low, high, best = ends[:-1], ends[1:], self.rate(ends).max()
        for _ in range(_HALVINGS):
            hopeful = self.rate(high) * (high + self._pause) / (low + self._pause) > best
            low, high = low[hopeful], high[hopeful]
            middle = (low + high) / 2
            best = max(best, self.rate(middle).max(initial=0.0))
            low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        if not low.size:
            return shortest
        tried = np.concatenate([[shortest], self._points(low, high)])
        return float(tried[self.rate(tried).argmax()])

    def at(self, pace: float) -> Pace:
        """What devices do at a pace."""
        found = {name: chosen(paths, pace) for name, paths in self._paths.items()}
        choices = {name: choice for name, choice in found.items() if choice is not None}
        gain = math.fsum(self._shares[name] * choice.gain for name, choice in choices.items())
        rate = gain / (pace + self._pause)
        return Pace(seconds=pace, gain_per_second=rate, choices=choices)

    def _points(self, low: Floats, high: Floats) -> Floats:
        """Of all paths, those between such paces."""
        seconds = np.concatenate([paths.seconds_nq.ravel() for paths in self._paths.values()])
        order = np.argsort(low)
        low, high = low[order], high[order]
        # Of the intervals that may hold a point, only the last that begins before it.
        last = np.searchsorted(low, seconds, side="right") - 1
        return np.unique(seconds[(last >= 0) & (seconds <= high[last])])


def useful(
    profile: Profile,
    devices: Mapping[ClientId, DeviceCost],
    max_steps: int,
    longest: float = math.inf,
    pause: float = 0.0,
) -> Profile:
    """The profile up to what the device would keep that by PruneFL's rule, alone, keeps the most.

    Arguments as of `find_pace`.
    """
    most = dict.fromkeys(profile.layers, 0)
    for name, cost in devices.items():
        if obstacle(profile, cost, longest) is not None:
            continue
        alone = Fleet(profile, {name: cost}, {name: 1.0}, max_steps, longest, pause)
        seconds = alone.best_pace(alone.shortest(None))
        for choice in alone.at(seconds * _ROUNDED_UP).choices.values():
            most = {layer: max(count, choice.kept[layer]) for layer, count in most.items()}
    return profile.up_to(most)


def find_pace(
    profile: Profile,
    devices: Mapping[ClientId, DeviceCost],
    shares: Mapping[ClientId, float],
    max_steps: int,
    include: Literal["all", "quorum"] = "all",
    quorum: int | None = None,
    longest: float = math.inf,
    pause: float = 0.0,
) -> Pace:
    """The pace at which these devices gain the most per second, and their choices at it.

    Raises ValueError for names that differ, and where no device has memory for the fewest weights
    and time for one step with them.

    Args:
        profile: What weights are worth.
        devices: What rounds cost each.
        shares: Their weights in the aggregate (p_i).
        max_steps: Steps of a device that has the time for all.
        include: With "all", a round is never shorter than any device's step on the core. With
            "quorum", who cannot keep the pace sits out. One without the memory for the fewest
            weights does so in any case.
        quorum: So many devices take part at least; by default one.
        longest: Seconds that no round may exceed: devices that need longer count for nothing.
        pause: Seconds between two rounds, which count like the pace's.
    """
    fleet = Fleet(profile, devices, shares, max_steps, longest, pause)
    shortest = fleet.shortest(None if include == "all" else quorum or 1)
    seconds = fleet.best_pace(shortest)
    return fleet.at(seconds * _ROUNDED_UP)
