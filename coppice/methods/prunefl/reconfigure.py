"""The mask under which a second of a round reduces the risk most.

PruneFL (Jiang et al. 2022): with `G_j ≥ 0` the importance of entry j, its accumulated squared
gradient, and `t_j` the seconds that it costs a round, the entries M that are kept maximise

    Γ(M) = Σ_{j∈M} G_j / (c + Σ_{j∈M} t_j)

among the M that hold the protected core. Density is what comes of it, not a setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coppice.budget import RoundTime
from coppice.masks import largest
from coppice.sparse import Mask, SparseTensor

#: float32 or float64, one-dimensional.
Floats: TypeAlias = NDArray[Any]
Bits: TypeAlias = NDArray[np.bool_]

#: Rates that differ by a smaller share than this are equal.
_ROUNDING = 1e-12


def prune_share(round_number: int, initial: float = 0.3, half_life: float = 10_000) -> float:
    """Share of a layer's ones that a reconfiguration after this round may prune."""
    return float(initial * 0.5 ** (round_number / half_life))


@dataclass
class _Layer:
    """One prunable tensor, flat, as the choice sees it."""

    gains: Floats
    #: Of one entry.
    seconds: float
    #: Grows from the protected core to the new mask.
    kept: Bits


def reconfigure(
    weights: Mapping[str, SparseTensor],
    importance: Mapping[str, Tensor],
    base_importance: float,
    round_time: RoundTime,
    prune_share: float,
    max_density: float | None = None,
) -> dict[str, Mask]:
    """The new masks, by name.

    A layer with `a` ones may lose the ⌊`prune_share` · a⌋ of smallest magnitude (of equal ones, the
    first); its others are the protected core. Those few and all pruned entries compete, the layers
    with each other. An entry that costs no time is kept.

    Args:
        weights: The values, float32 or float64, on their present masks. A one whose value is 0 is
            as much a one as any other.
        importance: G of every entry, pruned ones too: float32 or float64, of the weight's shape.
        base_importance: Sum of G over what is never pruned: biases and norms.
        round_time: Its names are those of `weights`.
        prune_share: From 0 (nothing can go) to 1.
        max_density: Beyond this share of all entries nothing is added to the cores, which stay
            even where they are more; what is added are the entries of largest G/t.

    Raises:
        ValueError: Names or shapes differ, or an importance is negative, infinite or NaN.
    """
    _check(weights, importance, base_importance, round_time, prune_share)
    layers = {
        name: _Layer(
            gains=importance[name].detach().reshape(-1).numpy(),
            seconds=round_time.seconds_per_weight[name],
            kept=protected_core(weight, prune_share),
        )
        for name, weight in weights.items()
    }
    room = sum(layer.kept.size for layer in layers.values())
    if max_density is not None:
        room = math.floor(max_density * room)
    free = [layer for layer in layers.values() if layer.seconds == 0]
    costly = [layer for layer in layers.values() if layer.seconds > 0]
    _add(free, [~layer.kept for layer in free], room - _ones(layers.values()))
    rate = best_rate(
        gains=[layer.gains[~layer.kept] for layer in costly],
        seconds=[layer.seconds for layer in costly],
        base_gain=math.fsum([base_importance, *map(_kept_gain, layers.values())]),
        base_seconds=round_time.seconds({name: _ones([layer]) for name, layer in layers.items()}),
    )
    chosen = [~layer.kept & _exceeds(layer.gains, layer.seconds, rate) for layer in costly]
    _add(costly, chosen, room - _ones(layers.values()))
    return {
        name: Mask.of(torch.from_numpy(layer.kept).reshape(weights[name].shape))
        for name, layer in layers.items()
    }


def best_rate(
    gains: Sequence[Floats], seconds: Sequence[float], base_gain: float, base_seconds: float
) -> float:
    """Γ*, the largest gain per second that the base and any set of candidates have together.

    The set is that of the candidates whose own ratio exceeds Γ*: each of them raises the ratio of
    the rest, and no other would. The paper finds it by walking down the sorted candidates. Here all
    that exceed the rate so far join at once, and those leave that the rate, which this raises,
    overtakes (Dinkelbach 1967): the same set after a few passes and without sorting.

    Args:
        gains: Of each layer's candidates, one-dimensional, not negative.
        seconds: Of one candidate of each layer, more than 0.
        base_gain: Of what is kept in any case.
        base_seconds: Of what is kept in any case. Where it is 0, nothing joins a base that has a
            gain; beside one that has none, the candidates of largest ratio are the set.
    """
    rate = _ratio(base_gain, base_seconds)
    before = -1
    while True:
        gains = [
            gain[_exceeds(gain, second, rate)] for gain, second in zip(gains, seconds, strict=True)
        ]
        left = sum(gain.size for gain in gains)
        if left == before:
            return rate
        if left == 0 < before:
            # Beside a base of nothing the best candidates are the whole set: their rate is their
            # own, and only rounding could make them exceed it.
            return rate * (1 - _ROUNDING)
        before = left
        joint_gain = base_gain + sum(float(gain.sum(dtype=np.float64)) for gain in gains)
        joint_seconds = base_seconds + sum(
            second * gain.size for second, gain in zip(seconds, gains, strict=True)
        )
        # It never falls but by rounding, and then candidates that left would belong to the set.
        rate = max(rate, _ratio(joint_gain, joint_seconds))


def _ratio(gain: float, seconds: float) -> float:
    if seconds > 0:
        return gain / seconds
    return math.inf if gain > 0 else 0.0


def _exceeds(gains: Floats, seconds: float, rate: float) -> Bits:
    """Which gains are worth more than `rate` a second."""
    # A plain float would be rounded to the gains' type.
    return np.greater(gains, np.float64(rate * seconds))


def protected_core(weight: SparseTensor, prune_share: float) -> Bits:
    """The ones that stay in any case, flat."""
    core = weight.mask.bits.reshape(-1).numpy()
    smallness = weight.values.detach().abs().neg_().numpy()
    core[core.copy()] = ~largest(smallness, math.floor(prune_share * smallness.size))
    return core


def _add(layers: Sequence[_Layer], chosen: Sequence[Bits], room: int) -> None:
    """Keep the chosen entries; when there is not room for all, those of largest gain per second."""
    if room <= 0:
        return
    counts = [np.count_nonzero(bits) for bits in chosen]
    if sum(counts) > room:
        ratios = np.concatenate(
            [
                np.divide(layer.gains[bits], layer.seconds or 1.0, dtype=np.float64)
                for layer, bits in zip(layers, chosen, strict=True)
            ]
        )
        parts = np.split(largest(ratios, room), np.cumsum(counts)[:-1])
        for bits, best in zip(chosen, parts, strict=True):
            bits[bits.copy()] = best
    for layer, bits in zip(layers, chosen, strict=True):
        layer.kept |= bits


def _ones(layers: Iterable[_Layer]) -> int:
    return sum(int(np.count_nonzero(layer.kept)) for layer in layers)


def _kept_gain(layer: _Layer) -> float:
    return float(np.sum(layer.gains, where=layer.kept, dtype=np.float64))


def _check(
    weights: Mapping[str, SparseTensor],
    importance: Mapping[str, Tensor],
    base_importance: float,
    round_time: RoundTime,
    prune_share: float,
) -> None:
    if not 0 <= prune_share <= 1:
        raise ValueError(f"the share to prune is {prune_share}; allowed is 0 to 1")
    if not 0 <= base_importance < math.inf:
        raise ValueError(f"the importance of what is never pruned is {base_importance}")
    for what, names in (("importances", importance), ("times", round_time.seconds_per_weight)):
        if unlike := weights.keys() ^ names.keys():
            raise ValueError(f"the {what} are not those of the weights: {min(unlike)!r} differs")
    for name, weight in weights.items():
        gains = importance[name]
        if tuple(gains.shape) != weight.shape:
            raise ValueError(
                f"the importance of {name} has shape {list(gains.shape)}, not {list(weight.shape)}"
            )
        # Both limits are NaN when an entry is.
        if gains.numel() and not (gains.min() >= 0 and gains.max() < math.inf):
            raise ValueError(f"an importance in {name} is negative, infinite or NaN")
