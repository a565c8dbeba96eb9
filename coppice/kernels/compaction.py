"""Compaction: units that do nothing any more are taken out of a model, physically.

A unit from which nobody reads is left out, and a unit that reads nothing is a constant, which goes
into the biases of who reads it. What remains computes the same outputs and has the same gradients.
What is left out rests: it is as it was received when the masks bring it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coppice.kernels.units import Reader, Units
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights

_Bits: TypeAlias = NDArray[np.bool_]

#: Entries of a mask that are unpacked at a time, into a byte each.
_BITS_AT_ONCE = 2**19


@dataclass(frozen=True)
class _Cut:
    """What is kept of one tensor."""

    rows: Tensor
    #: None of tensors of one dimension.
    columns: Tensor | None = None
    #: Of sparse tensors: the mask that is left, and which of the kept entries are on it.
    mask: Mask | None = None
    ones: Tensor | None = None

    def take(self, item: Tensor | SparseTensor) -> Tensor | SparseTensor:
        if isinstance(item, SparseTensor):
            assert self.mask is not None
            return SparseTensor(self.mask, item.values[self.ones])
        rows = item.index_select(0, self.rows)
        return rows if self.columns is None else rows.index_select(1, self.columns)

    def put(self, small: Tensor | SparseTensor, into: Tensor | SparseTensor) -> None:
        """The way back."""
        if isinstance(into, SparseTensor):
            assert self.mask is not None
            kept = small if isinstance(small, SparseTensor) else SparseTensor.take(small, self.mask)
            into.values[self.ones] = kept.values
        elif self.columns is None:
            into[self.rows] = _dense(small)
        else:
            into[self.rows[:, None], self.columns] = _dense(small)


@dataclass(frozen=True)
class _Fold:
    """Constant units, as far as one layer reads them."""

    maker: str
    units: Tensor
    reader: Reader
    #: Of each weight that reads one: its row, where its value is, and the position in `units`.
    rows: Tensor
    entries: Tensor
    positions: Tensor

    def into(self, bias: Tensor, weight: Tensor | SparseTensor, constants: Tensor) -> None:
        """Add what the constants do, from the bias of their maker."""
        assert self.reader.between is not None
        for function in self.reader.between:
            constants = function(constants)
        values = weight.values if isinstance(weight, SparseTensor) else weight.reshape(-1)
        bias.index_add_(0, self.rows, values[self.entries] * constants[self.positions])


class Compaction:
    """What is taken out of a model under these masks, and put back into it."""

    def __init__(self, cuts: Mapping[str, _Cut], folds: Sequence[_Fold] = ()) -> None:
        self._cuts = cuts
        self._folds = folds

    @staticmethod
    def of(all_units: Sequence[Units], weights: Weights) -> Compaction:
        """Everything that is dead under the masks of these weights."""
        return _Plan(all_units, weights).compaction()

    def shrink(self, weights: Weights) -> dict[str, Tensor | SparseTensor]:
        """The weights that are left."""
        whole = {**weights, **self._biases(weights)}
        return {name: self._take(name, item) for name, item in whole.items()}

    def expand(self, small: Weights, received: Weights) -> dict[str, Tensor | SparseTensor]:
        """The weights of the whole model: those of `small`, the rest as it was received."""
        result: dict[str, Tensor | SparseTensor] = {}
        biases = self._biases(received)
        for name, item in small.items():
            if name in biases:
                # What has not changed is exactly as it was: the constants go as they came.
                before, with_constants = self._take(name, received[name]), biases[name]
                item = before + (_dense(item) - self._take(name, with_constants))
            if name in self._cuts:
                whole = _copy(received[name])
                self._cuts[name].put(item, whole)
                item = whole
            result[name] = item
        return result

    def _take(self, name: str, item: Any) -> Any:
        return self._cuts[name].take(item) if name in self._cuts else item

    def _biases(self, weights: Weights) -> dict[str, Tensor]:
        """The biases of layers that read constants, with those."""
        biases: dict[str, Tensor] = {}
        for fold in self._folds:
            name = tensor_name(fold.reader.layer, "bias")
            if name not in weights:
                # Only buffers are asked for.
                continue
            if name not in biases:
                biases[name] = _dense(weights[name]).clone()
            # Makers come before readers: what is constant of constants is known by now.
            own = tensor_name(fold.maker, "bias")
            made = biases.get(own, weights.get(own))
            count = len(fold.units)
            constants = biases[name].new_zeros(count) if made is None else _dense(made)[fold.units]
            weight = weights[tensor_name(fold.reader.layer, "weight")]
            fold.into(biases[name], weight, constants)
        return biases


def tensor_name(layer: str, tensor: str) -> str:
    """As the model calls a layer's tensor."""
    return f"{layer}.{tensor}" if layer else tensor


class _Plan:
    """What is dead, by masks alone: the values may change without another plan."""

    def __init__(self, all_units: Sequence[Units], weights: Weights) -> None:
        self._all = all_units
        self._weights = weights
        self._made = {layer: units for units in all_units for layer in units.makers}
        self._read = {reader.layer: units for units in all_units for reader in units.readers}
        self._constant: dict[Units, _Bits] = {}
        self._kept: dict[Units, _Bits] = {}

    def compaction(self) -> Compaction:
        links = {layer: self._links(layer) for layer in self._made.keys() | self._read.keys()}
        for units in self._all:
            self._constant[units] = self._constants(units, links)
        for units in reversed(self._all):
            used = np.zeros(units.size, np.bool_)
            for reader in units.readers:
                kept = self._kept.get(self._made.get(reader.layer, _NO_UNITS))
                rows = links[reader.layer]
                used |= (rows if kept is None else rows[kept]).any(0)
            kept = used & ~self._constant[units]
            if not kept.any():
                kept[np.flatnonzero(~self._constant[units])[0]] = True
            self._kept[units] = kept
        return Compaction(
            self._cuts(), [fold for units in self._all for fold in self._folds(units)]
        )

    def _links(self, layer: str) -> _Bits:
        """[rows, units of the input]: from which a row reads."""
        weight = self._weights[tensor_name(layer, "weight")]
        count = self._read[layer].size if layer in self._read else 1
        if not isinstance(weight, SparseTensor):
            return np.ones((weight.shape[0], count), np.bool_)
        links = [
            np.logical_or.reduce(bits.reshape(len(bits), count, -1), axis=2)
            for bits in _rows(weight.mask)
        ]
        return np.concatenate(links)

    def _constants(self, units: Units, links: Mapping[str, _Bits]) -> _Bits:
        foldable = all(reader.between is not None for reader in units.readers)
        if not foldable or not units.readers or len(units.makers) > 1 or units.norms:
            return np.zeros(units.size, np.bool_)
        (maker,) = units.makers
        live = links[maker]
        if maker in self._read:
            live = live & ~self._constant[self._read[maker]]
        has_none: _Bits = ~np.logical_or.reduce(live, axis=1)
        # A layer without a unit is none that torch knows: one of them counts as a live one.
        has_none[0] &= not has_none.all()
        return has_none

    def _cuts(self) -> dict[str, _Cut]:
        cuts = {}
        for layer in self._made.keys() | self._read.keys():
            rows = self._kept.get(self._made.get(layer, _NO_UNITS))
            columns = self._kept.get(self._read.get(layer, _NO_UNITS))
            if (rows is None or rows.all()) and (columns is None or columns.all()):
                continue
            name = tensor_name(layer, "weight")
            cuts[name] = _cut(self._weights[name], rows, columns)
        for units, kept in self._kept.items():
            if not kept.all():
                indices = torch.from_numpy(np.flatnonzero(kept))
                own = [(layer, "bias") for layer in units.makers]
                own += [(norm, tensor) for norm in units.norms for tensor in _OF_NORMS]
                names = [tensor_name(*each) for each in own]
                cuts |= {name: _Cut(indices) for name in names if name in self._weights}
        return cuts

    def _folds(self, units: Units) -> list[_Fold]:
        constant = self._constant[units]
        folds = []
        for reader in units.readers if constant.any() else ():
            weight = self._weights[tensor_name(reader.layer, "weight")]
            if isinstance(weight, SparseTensor):
                positions = np.flatnonzero(weight.mask.bits.numpy())
            else:
                positions = np.arange(weight.numel())
            each = math.prod(weight.shape[1:]) // units.size
            row, unit = np.divmod(positions // each, units.size)
            entries = np.flatnonzero(constant[unit])
            folds.append(
                _Fold(
                    units.makers[0],
                    torch.from_numpy(np.flatnonzero(constant)),
                    reader,
                    torch.from_numpy(row[entries]),
                    torch.from_numpy(
                        entries if isinstance(weight, SparseTensor) else positions[entries]
                    ),
                    torch.from_numpy((np.cumsum(constant) - 1)[unit[entries]]),
                )
            )
        return folds


_NO_UNITS = Units(0)
_OF_NORMS = ("weight", "bias", "running_mean", "running_var")


def _cut(item: Tensor | SparseTensor, rows: _Bits | None, columns: _Bits | None) -> _Cut:
    """`columns` is of units, each of them one column or several."""
    shape = tuple(item.shape)
    kept_rows = np.ones(shape[0], np.bool_) if rows is None else rows
    kept_columns = np.ones(shape[1], np.bool_) if columns is None else columns
    kept_columns = kept_columns.repeat(shape[1] // len(kept_columns))
    mask = ones = None
    if isinstance(item, SparseTensor):
        left = np.empty((kept_rows.sum(), kept_columns.sum(), math.prod(shape[2:])), np.bool_)
        kept, begin, filled = [], 0, 0
        for bits in _rows(item.mask):
            some = kept_rows[begin : begin + len(bits)]
            left[filled : filled + some.sum()] = bits[np.ix_(some, kept_columns)]
            both = (some[:, None] & kept_columns)[:, :, None]
            kept.append(np.broadcast_to(both, bits.shape)[bits])
            begin, filled = begin + len(bits), filled + some.sum()
        mask = Mask.of(torch.from_numpy(left.reshape(*left.shape[:2], *shape[2:])))
        ones = torch.from_numpy(np.concatenate(kept))
    indices = [torch.from_numpy(np.flatnonzero(kept)) for kept in (kept_rows, kept_columns)]
    return _Cut(indices[0], indices[1], mask, ones)


def _rows(mask: Mask) -> Iterator[_Bits]:
    """[rows, columns, taps] of a few rows at a time: all at once would be a byte for each entry."""
    entries = math.prod(mask.shape[1:])
    # Whole bytes, but for the last of them.
    rows = max(8, _BITS_AT_ONCE // max(1, entries) // 8 * 8)
    packed = mask.packed.numpy()
    for begin in range(0, mask.shape[0], rows):
        count = min(rows, mask.shape[0] - begin)
        part = packed[begin * entries // 8 :][: -(-count * entries // 8)]
        flat = np.unpackbits(part, count=count * entries, bitorder="little")
        yield flat.view(np.bool_).reshape(count, mask.shape[1], -1)


def _copy(item: Tensor | SparseTensor) -> Tensor | SparseTensor:
    if isinstance(item, SparseTensor):
        return SparseTensor(item.mask, item.values.clone())
    return item.clone()


def _dense(item: Tensor | SparseTensor) -> Tensor:
    assert isinstance(item, Tensor)
    return item
