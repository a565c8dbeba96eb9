"""The tensors of many updates in a file, read back as blocks of coordinates of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from coppice.shelf import Shelf
from coppice.sparse import SparseTensor

#: Of a block, as the float64 that it is computed in.
BLOCK_BYTES = 16 * 2**20

#: Group and name of a tensor in a payload.
Key = tuple[str, str]


@dataclass(frozen=True)
class _Stored:
    """Where one tensor of one update is."""

    values: int
    #: Bytes of the mask; None where all coordinates are held.
    mask: int | None
    dtype: np.dtype[np.float32] | np.dtype[np.float64]


class Spool:
    """Floating-point tensors, dense or on masks, by update and key. Memory is that of a block."""

    def __init__(self, folder: Path | None = None, block_bytes: int = BLOCK_BYTES) -> None:
        self._shelf = Shelf(folder)
        self._block_bytes = block_bytes
        self._stored: list[dict[Key, _Stored]] = []
        #: Shape and type of each tensor.
        self.kinds: dict[Key, tuple[tuple[int, ...], torch.dtype]] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shelf.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._stored)

    def add(self, tensors: Mapping[Key, Tensor | SparseTensor]) -> None:
        """Put one update's tensors aside."""
        self._stored.append({key: self._put(key, item) for key, item in tensors.items()})

    def _put(self, key: Key, item: Tensor | SparseTensor) -> _Stored:
        self.kinds.setdefault(key, (tuple(item.shape), item.dtype))
        mask = None
        if isinstance(item, SparseTensor):
            mask = self._shelf.put(item.mask.packed.numpy().tobytes())
        values = item.values if isinstance(item, SparseTensor) else item.detach()
        kind = torch.float64 if values.dtype == torch.float64 else torch.float32
        array = values.to(kind).contiguous().reshape(-1).numpy()
        return _Stored(self._shelf.put(array.tobytes()), mask, array.dtype)

    def blocks(self, key: Key) -> Iterator[Tensor]:
        """`[updates, coordinates]`, float64, NaN where an update does not hold a coordinate.

        All blocks side by side are the tensors in row-major order.
        """
        size = math.prod(self.kinds[key][0])
        # Masks are cut at whole bytes.
        width = max(8, self._block_bytes // (8 * max(1, len(self))) // 8 * 8)
        # Values of each update that the blocks before had.
        read = [0] * len(self)
        for start in range(0, size, width):
            rows = torch.full((len(self), min(width, size - start)), torch.nan, dtype=torch.float64)
            for number, update in enumerate(self._stored):
                if key in update:
                    read[number] += self._fill(rows[number], update[key], start, read[number])
            yield rows

    def _fill(self, row: Tensor, stored: _Stored, start: int, before: int) -> int:
        """Write a block of one tensor into a row. Returns how many values that took."""
        held: Tensor | None = None
        count = len(row)
        if stored.mask is not None:
            packed = np.frombuffer(
                self._shelf.read(stored.mask + start // 8, -(-count // 8)), np.uint8
            )
            bits = np.unpackbits(packed, count=count, bitorder="little")
            held = torch.from_numpy(bits.view(np.bool_))
            count = int(bits.sum(dtype=np.int64))
        size = stored.dtype.itemsize
        data = self._shelf.read(stored.values + before * size, count * size)
        values = torch.from_numpy(np.frombuffer(data, stored.dtype)).to(torch.float64)
        if held is None:
            row.copy_(values)
        else:
            row[held] = values
        return count
