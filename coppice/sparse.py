"""Masks, and tensors that have values only where a mask has ones.

A mask is a value of its own and is never recovered from zeros: an entry that grew back begins at 0
and is as much a part of the model as any other.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, eq=False)
class Mask:
    """Which entries of a tensor are kept, one bit each. Two masks are equal when their bits are."""

    shape: tuple[int, ...]
    #: uint8 `[ceil(n / 8)]`: entry i, in row-major order, is bit i % 8 (the lowest first) of byte
    #: i // 8; bits that no entry has are 0.
    packed: Tensor

    def __post_init__(self) -> None:
        if self.packed.dtype != torch.uint8 or self.packed.shape != (-(-self.size // 8),):
            raise ValueError(f"a mask of shape {list(self.shape)} has {-(-self.size // 8)} bytes")
        if self.size % 8 and int(self.packed[-1]) >> self.size % 8:
            raise ValueError("a mask has bits beyond its last entry")

    @staticmethod
    def of(bits: Tensor) -> Mask:
        """The mask of a bool tensor."""
        flat = bits.detach().contiguous().reshape(-1).numpy()
        return Mask(tuple(bits.shape), torch.from_numpy(np.packbits(flat, bitorder="little")))

    @staticmethod
    def full(shape: tuple[int, ...]) -> Mask:
        """The mask that keeps everything."""
        return Mask.of(torch.ones(shape, dtype=torch.bool))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self is other or (
            self.shape == other.shape and torch.equal(self.packed, other.packed)
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def size(self) -> int:
        """Entries of the tensor, kept or not."""
        return math.prod(self.shape)

    @cached_property
    def count(self) -> int:
        """Entries that are kept."""
        return int(np.bitwise_count(self.packed.numpy()).sum(dtype=np.int64))

    @property
    def density(self) -> float:
        """Share of the entries that are kept; 1 of a tensor without entries."""
        return self.count / self.size if self.size else 1.0

    @cached_property
    def fingerprint(self) -> str:
        """Names the mask: the first 16 hexadecimal digits of SHA-256 over shape and bits."""
        digest = hashlib.sha256(",".join(map(str, self.shape)).encode() + b";")
        digest.update(self.packed.numpy().data)
        return digest.hexdigest()[:_FINGERPRINT_DIGITS]

    @property
    def bits(self) -> Tensor:
        """Bool, of the tensor's shape; made anew at each call."""
        flat = np.unpackbits(self.packed.numpy(), count=self.size, bitorder="little")
        return torch.from_numpy(flat.view(np.bool_)).reshape(self.shape)

    @cached_property
    def positions(self) -> Tensor:
        """Row-major positions of the kept entries, ascending; int32 where that is enough.

        Held for as long as the mask is: to find them costs more than all that is done with them.
        """
        found = np.flatnonzero(self.bits.numpy())
        kind = np.int32 if self.size < 2**31 else np.int64
        return torch.from_numpy(found.astype(kind, copy=False))

    def complement(self) -> Mask:
        """The mask of the entries that this one leaves out."""
        packed = self.packed.bitwise_not()
        if self.size % 8:
            packed[-1] &= (1 << self.size % 8) - 1
        return Mask(self.shape, packed)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """A tensor that is zero outside a mask, held as exactly as many values as the mask has ones."""

    mask: Mask
    #: One-dimensional, in row-major order of the kept entries.
    values: Tensor

    def __post_init__(self) -> None:
        if self.values.shape != (self.mask.count,):
            raise ValueError(
                f"{list(self.values.shape)} values do not fit a mask with {self.mask.count} ones"
            )

    @staticmethod
    def take(tensor: Tensor, mask: Mask) -> SparseTensor:
        """The entries of a dense tensor that the mask keeps."""
        if tuple(tensor.shape) != mask.shape:
            raise ValueError(f"shape {list(tensor.shape)} does not fit {list(mask.shape)}")
        return SparseTensor(mask, tensor.detach().reshape(-1).index_select(0, mask.positions))

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense tensor's."""
        return self.mask.shape

    @property
    def dtype(self) -> torch.dtype:
        """The values'."""
        return self.values.dtype

    def dense(self) -> Tensor:
        """The whole tensor, zeros outside the mask."""
        result = torch.empty(self.shape, dtype=self.dtype)
        self.into(result)
        return result

    def into(self, tensor: Tensor) -> None:
        """Write the whole tensor into one of its shape and type."""
        tensor.zero_()
        # Of an exotic layout no flat view can be had; `put_` needs none, and 64-bit positions.
        if tensor.is_contiguous():
            tensor.view(-1)[self.mask.positions] = self.values
        else:
            tensor.put_(self.mask.positions.long(), self.values)


#: One thing that a payload may name.
Item: TypeAlias = Tensor | SparseTensor | Mask
