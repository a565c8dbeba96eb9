"""Where each kept weight of a layer meets its inputs: the index arrays of the C library."""

from __future__ import annotations

import math
from ctypes import byref
from dataclasses import dataclass

import torch
from torch import Tensor

from coppice.kernels.library import LayerArrays, Plan, address, library
from coppice.sparse import Mask

#: Bytes of a block's tile that the first-level cache surely holds, beside all else: a Cortex-A53
#: and A72 have 32 KiB.
_TILE_BYTES = 24 * 1024
#: A tile of outputs, at most: what FORWARD_TILE of the library is at its largest.
TILE_FLOATS = 80
#: Of so many weights a row and block should have some, to pay for loading what was summed so far.
_WEIGHTS_OF_BLOCK = 16
#: Offsets have 16 bits.
MAX_OFFSET = 2**16 - 1


@dataclass(frozen=True)
class Geometry:
    """A convolution, of images of one size. A linear layer is one of 1x1 images."""

    height: int
    width: int
    kernel_height: int
    kernel_width: int
    stride: int
    #: Rows and columns of zeros before the first; those after the last follow from the output.
    top: int
    left: int
    out_height: int
    out_width: int

    @property
    def phases(self) -> int:
        """Strided images are taken apart, so that each part is one of stride 1; parts of an axis.

        A kernel narrower than the stride meets only the first of them.
        """
        return min(self.stride, max(self.kernel_height, self.kernel_width))

    @property
    def is_packed(self) -> bool:
        """Whether backward, too, reads the padded input."""
        return self.stride > 1 or self.top >= self.kernel_height or self.left >= self.kernel_width

    @property
    def is_single(self) -> bool:
        """Whether all images have one pixel: the layer is a linear one."""
        sizes = self.height, self.width, *self.padded, self.out_height, self.out_width
        return set(sizes) == {1} and self.stride == 1

    @property
    def taps(self) -> tuple[int, int]:
        """Height and width of the kernel as one of stride 1."""
        return -(-self.kernel_height // self.stride), -(-self.kernel_width // self.stride)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the padded input."""
        taps = self.taps
        return self.out_height + taps[0] - 1, self.out_width + taps[1] - 1

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the input as backward reads it."""
        return self.padded if self.is_packed else (self.height, self.width)

    @property
    def spread(self) -> tuple[int, int]:
        """Height and width of the padded gradient of the output."""
        taps, inner = self.taps, self.inner
        return inner[0] + taps[0] - 1, inner[1] + taps[1] - 1

    @property
    def spread_border(self) -> tuple[int, int]:
        """Rows and columns of zeros before the first of the gradient of the output."""
        taps = self.taps
        return (
            taps[0] - 1 - (0 if self.is_packed else self.top),
            taps[1] - 1 - (0 if self.is_packed else self.left),
        )

    @property
    def reach(self) -> int:
        """The largest offset of a kernel within one channel, in pixels."""
        down, across = self.taps
        return (down - 1) * max(self.padded[1], self.spread[1]) + across - 1


class Structure:
    """The index arrays of one layer's mask: 8 bytes for each kept weight, of a linear layer 2."""

    def __init__(self, mask: Mask, geometry: Geometry, batch: int) -> None:
        """`mask` is of a weight (out, in, height, width), or of what has as many entries."""
        rows = mask.shape[0]
        channels = mask.size // max(1, rows * geometry.kernel_height * geometry.kernel_width)
        columns = channels * geometry.phases**2
        sizes = _block_sizes(mask, geometry, rows, columns, batch)
        blocks = (-(-columns // sizes[0]), -(-rows // sizes[1]))
        self.geometry = geometry
        self.count = mask.count
        self.rows = rows
        self._mask = mask
        by_rows = geometry.is_single
        self._plan = Plan(
            rows,
            channels,
            geometry.kernel_height,
            geometry.kernel_width,
            geometry.stride,
            geometry.phases,
            *geometry.taps,
            *geometry.padded,
            *geometry.spread,
            *sizes,
            by_rows,
        )
        self._row_ptr = torch.zeros(blocks[0], rows + 1, dtype=torch.int32)
        self._row_offset = torch.empty(mask.count, dtype=torch.uint16)
        self._column_ptr = self._column_offset = None
        #: Where the weights of the forward order lie; None where they lie in that order.
        self.stored_at: Tensor | None = None
        if not by_rows:
            self._column_ptr = torch.zeros(blocks[1], columns + 1, dtype=torch.int32)
            self._column_offset = torch.empty(mask.count, dtype=torch.uint16)
            self.stored_at = torch.empty(mask.count, dtype=torch.int32)
        found = library()
        assert found is not None
        cursors = torch.empty_like(self._row_ptr), _like(self._column_ptr)
        found.index(
            byref(self._plan),
            address(mask.packed),
            address(self._row_ptr),
            address(self._row_offset),
            address(self.stored_at),
            address(self._column_ptr),
            address(self._column_offset),
            *map(address, cursors),
        )
        self.layer = LayerArrays(
            address(self._row_ptr),
            address(self._row_offset),
            address(self.stored_at),
            address(self._column_ptr),
            address(self._column_offset),
            rows,
            columns,
            blocks[0],
            sizes[0] * math.prod(geometry.padded),
            blocks[1],
            sizes[1] * math.prod(geometry.spread),
            geometry.out_height,
            geometry.out_width,
            geometry.padded[1],
            *geometry.inner,
            geometry.spread[1],
        )

    @property
    def size_bytes(self) -> int:
        """Of the arrays."""
        arrays = (
            self._row_ptr,
            self._row_offset,
            self.stored_at,
            self._column_ptr,
            self._column_offset,
        )
        return sum(array.nbytes for array in arrays if array is not None)

    def store(self, values: Tensor, stored: Tensor) -> None:
        """Kept weights, from the order of the mask's ones into that of the library."""
        self._reorder(values.contiguous(), stored, is_back=False)

    def restore(self, stored: Tensor) -> Tensor:
        """The way back."""
        values = torch.empty_like(stored)
        self._reorder(values, stored, is_back=True)
        return values

    def _reorder(self, values: Tensor, stored: Tensor, is_back: bool) -> None:
        found = library()
        assert found is not None
        cursor = (self._row_ptr if self._column_ptr is None else self._column_ptr).clone()
        found.reorder(
            byref(self._plan),
            address(self._mask.packed),
            address(cursor),
            address(values),
            address(stored),
            is_back,
        )


def _like(array: Tensor | None) -> Tensor | None:
    return None if array is None else torch.empty_like(array)


def _block_sizes(
    mask: Mask, geometry: Geometry, rows: int, columns: int, batch: int
) -> tuple[int, int]:
    """Channels of a block, of inputs and of outputs."""
    taps, padded, spread = geometry.taps, geometry.padded, geometry.spread
    entries = max(1, rows * columns * math.prod(taps))
    density = mask.count / entries
    return (
        # By rows the gradient of the input is read along with it.
        _block_size(
            columns, geometry.out_width, padded, taps, density, batch, 1 + geometry.is_single
        ),
        _block_size(rows, geometry.inner[1], spread, taps, density, batch, 1),
    )


def _block_size(
    channels: int,
    width: int,
    read: tuple[int, int],
    taps: tuple[int, int],
    density: float,
    batch: int,
    arrays: int,
) -> int:
    """Channels of a block: what a tile reads of them, in so many arrays, fits the cache, and the
    offsets 16 bits.
    """
    tile = min(TILE_FLOATS, width * batch)
    is_gapless = width == read[1]
    floats = tile if is_gapless else taps[0] * (tile + (taps[1] - 1) * batch)
    fits = max(8, _TILE_BYTES // (4 * floats * arrays))
    worthwhile = int(_WEIGHTS_OF_BLOCK / max(density, 1e-6) / math.prod(taps))
    # The last channel's farthest offset counts, not its last pixel; this is a little less.
    return max(1, min(channels, max(fits, worthwhile), MAX_OFFSET // math.prod(read)))
