"""Rules by which a few hostile updates of a round do not move the model where they like.

Each is taken coordinate by coordinate over the updates that hold it, and counts every client once:
how many examples a client has is its own claim.

- `median`, `trimmed`: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal
  Statistical Rates": the coordinate-wise median, and the mean without the share `trim` of a
  coordinate's values at either end (here at least one of three values or more).
- `krum`, `multi-krum`: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine
  Tolerant Gradient Descent": of n updates with f hostile ones, the score of each is the sum of its
  squared distances to the n - f - 2 nearest others; Krum takes the update with the least,
  multi-Krum the mean of the m least. Updates on different masks are as far apart as the mean
  square difference of what both hold, which for equal masks ranks them alike.
- `clipped`: Sun et al. 2019, "Can You Really Backdoor Federated Learning?": updates longer than a
  bound are scaled down to it, and then averaged by the method as ever. Without a bound of its own
  a run takes the median of the round's, per held weight.

What is combined is the change ("delta") and, but for clipping, the floating-point buffers. Before
the method folds them, the updates get the combined values in place of their own, each on its own
mask: its mean of them is what the rule says, and all else that a method reads from updates stays.
A method that averages directions rather than updates says by `ServerHalf.unit` what it divides by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from coppice.domain import ClientId
from coppice.method import Update
from coppice.protection import ProtectionSpec
from coppice.sparse import Item, SparseTensor
from coppice.spool import Key, Spool

#: Rows of updates, NaN where one does not hold a coordinate → one value for each coordinate.
Rule = Callable[[Tensor], Tensor]

#: Reads the updates of these clients in this order, as often as it is called.
Read = Callable[[Sequence[ClientId]], Iterator[Update]]

#: What an update's change is divided by before it is compared with others.
Unit = Callable[[Update], float]

_COMBINED = ("delta", "buffers")


# ---- rules on blocks: rows are `[updates, coordinates]`, NaN where an update does not hold one ---


def mean_of(rows: Tensor) -> Tensor:
    """The mean over the holders of each coordinate."""
    return rows.nanmean(dim=0)


def median_of(rows: Tensor) -> Tensor:
    """The median over the holders of each coordinate; of an even number, the middle two's mean."""
    ordered, count = _sorted(rows)
    low = ordered.gather(0, ((count - 1).clamp(min=0) // 2)[None])
    high = ordered.gather(0, (count // 2).clamp(max=len(rows) - 1)[None])
    return ((low + high) / 2)[0]


def trimmed_mean_of(rows: Tensor, trim: float) -> Tensor:
    """The mean of a coordinate's values without a share of them at either end, rounded up."""
    ordered, count = _sorted(rows)
    # The hair's breadth: 0.2 of 5 is to be 1 whatever the floats say.
    cut = torch.ceil(trim * count - 1e-9).long()
    cut = torch.minimum(cut, ((count - 1) // 2).clamp(min=0))
    rank = torch.arange(len(rows))[:, None]
    is_kept = (rank >= cut) & (rank < count - cut)
    return torch.where(is_kept, ordered, 0.0).sum(0) / is_kept.sum(0)


def _sorted(rows: Tensor) -> tuple[Tensor, Tensor]:
    # NaN is the largest to a sort: holders come first.
    return rows.sort(dim=0).values, (~rows.isnan()).sum(dim=0)


def distances(blocks: Iterator[Tensor], count: int) -> Tensor:
    """`[N, N]`: mean square difference of what both of two updates hold; infinite without any."""
    squares, common = torch.zeros(2, count, count, dtype=torch.float64)
    for rows in blocks:
        for number in range(count - 1):
            difference = rows[number + 1 :] - rows[number]
            squares[number, number + 1 :] += difference.square().nansum(dim=1)
            common[number, number + 1 :] += (~difference.isnan()).sum(dim=1)
    squares, common = squares + squares.T, common + common.T
    return torch.where(common > 0, squares / common, torch.inf)


def krum_order(between: Tensor, hostile: int) -> tuple[list[int], int]:
    """The updates by their scores, best first, and n - f - 2.

    Of fewer than 2f + 3 updates, as many hostile ones are withstood as there can be.
    """
    count = len(between)
    near = count - min(hostile, max(0, (count - 3) // 2)) - 2
    others = between.clone().fill_diagonal_(torch.inf)
    scores = others.sort(dim=1).values[:, : max(1, near)].sum(dim=1).tolist()
    return sorted(range(count), key=lambda number: (scores[number], number)), near


# ---- the updates of a round ----------------------------------------------------------------------


def combined(
    protection: ProtectionSpec,
    clients: Sequence[ClientId],
    read: Read,
    unit: Unit,
    scratch: Path | None = None,
) -> tuple[Sequence[ClientId], Iterator[Update]]:
    """The updates as the method is to fold them, and whose these are; `scratch` is for files.

    Memory does not depend on how many there are: they are read one at a time, put aside in a file
    and combined by blocks of coordinates.
    """
    if protection.aggregate == "mean" or not clients:
        return clients, read(clients)
    if protection.aggregate == "clipped":
        return clients, _clipped(protection.clip_norm, clients, read, unit)
    with Spool(scratch) as spool:
        for update in read(clients):
            spool.add(_in_units(update, unit(update)))
        chosen, rule = _chosen(protection, spool)
        values = {key: _combine(spool, key, chosen, rule) for key in spool.kinds}
    kept = [clients[number] for number in chosen]
    return kept, (_with(update, values, unit(update)) for update in read(kept))


def _chosen(protection: ProtectionSpec, spool: Spool) -> tuple[list[int], Rule]:
    """Whose values are combined, in plan order, and by which rule."""
    everybody = list(range(len(spool)))
    match protection.aggregate:
        case "median":
            return everybody, median_of
        case "trimmed":
            return everybody, lambda rows: trimmed_mean_of(rows, protection.trim)
    if len(spool) < 3:
        # Of two there is no telling which is the hostile one.
        return everybody, mean_of
    changes = (rows for key in spool.kinds if key[0] == "delta" for rows in spool.blocks(key))
    order, near = krum_order(distances(changes, len(spool)), protection.hostile)
    count = 1 if protection.aggregate == "krum" else protection.selected or near
    return sorted(order[:count]), mean_of


def _combine(spool: Spool, key: Key, chosen: Sequence[int], rule: Rule) -> Tensor:
    shape, dtype = spool.kinds[key]
    values = torch.empty(math.prod(shape), dtype=dtype)
    start = 0
    for rows in spool.blocks(key):
        end = start + rows.shape[1]
        values[start:end] = rule(rows[chosen]).to(dtype)
        start = end
    return values.reshape(shape)


def _floating(update: Update) -> Iterator[tuple[Key, Tensor | SparseTensor]]:
    for group in _COMBINED:
        for name, item in update.payload.get(group, {}).items():
            if isinstance(item, Tensor | SparseTensor) and item.dtype.is_floating_point:
                yield (group, name), item


def _in_units(update: Update, unit: float) -> dict[Key, Tensor | SparseTensor]:
    return {
        key: _times(item, 1 / unit) if key[0] == "delta" else item
        for key, item in _floating(update)
    }


def _with(update: Update, values: Mapping[Key, Tensor], unit: float) -> Update:
    """The update with combined values where it has its own."""
    groups: dict[str, dict[str, Item]] = {
        group: dict(update.payload[group]) for group in _COMBINED if group in update.payload
    }
    for (group, name), item in _floating(update):
        value: Tensor | SparseTensor = values[group, name]
        if isinstance(item, SparseTensor):
            value = SparseTensor.take(values[group, name], item.mask)
        groups[group][name] = _times(value, unit) if group == "delta" else value
    return replace(update, payload={**update.payload, **groups})


def _times(item: Tensor | SparseTensor, factor: float) -> Tensor | SparseTensor:
    if factor == 1.0:
        return item
    if isinstance(item, SparseTensor):
        return SparseTensor(item.mask, item.values * factor)
    return item * factor


def _clipped(
    clip_norm: float | None, clients: Sequence[ClientId], read: Read, unit: Unit
) -> Iterator[Update]:
    longest = clip_norm if clip_norm is not None else median(_per_weight(read(clients), unit))
    for update in read(clients):
        norm, count = _length(update, unit)
        if clip_norm is None:
            norm /= math.sqrt(max(1, count))
        if norm > longest:
            delta = {
                name: _times(item, longest / norm)
                for (group, name), item in _floating(update)
                if group == "delta"
            }
            clipped = {**update.payload["delta"], **delta}
            update = replace(update, payload={**update.payload, "delta": clipped})
        yield update


def _per_weight(updates: Iterator[Update], unit: Unit) -> Iterator[float]:
    for update in updates:
        norm, count = _length(update, unit)
        yield norm / math.sqrt(max(1, count))


def _length(update: Update, unit: Unit) -> tuple[float, int]:
    """L2 norm of an update's change in its units, and how many weights it holds."""
    square, count = 0.0, 0
    for (group, _), item in _floating(update):
        if group == "delta":
            values = item.values if isinstance(item, SparseTensor) else item
            square += float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
            count += values.numel()
    return math.sqrt(square) / unit(update), count
