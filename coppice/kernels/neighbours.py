"""What stands between sparse layers, at its best where tensors lie batch-innermost.

Where they do not, each is exactly what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from coppice.kernels.layout import batch_first, floats, is_batch_innermost, to_batch_innermost
from coppice.kernels.library import address, library

#: `which` counts the pixels of a window in a byte.
_MAX_WINDOW = 15


class BatchInnermostMaxPool2d(nn.MaxPool2d):
    """Pools without a change of layout; torch's own takes several times as long on this one."""

    def forward(self, input: Tensor) -> Any:
        """(N, C, height, width) → (N, C, height', width')."""
        sizes = _square(self.kernel_size), _square(self.stride)
        is_plain = (
            _square(self.padding) == 0
            and _square(self.dilation) == 1
            and not self.ceil_mode
            and not self.return_indices
            and sizes[0] is not None
            and sizes[0] <= _MAX_WINDOW
            and sizes[1] is not None
        )
        if is_plain and self._fits(input) and is_batch_innermost(input):
            apply: Callable[..., Tensor] = _MaxPool.apply
            return apply(input, *sizes)
        return super().forward(input)

    def _fits(self, images: Tensor) -> bool:
        window = _square(self.kernel_size)
        assert window is not None
        return (
            images.dim() == 4
            and images.dtype == torch.float32
            and len(images) > 0
            and min(images.shape[2:]) >= window
        )


class BatchInnermostBatchNorm2d(nn.BatchNorm2d):
    """A channel is one run of memory: the same numbers as one image of a batch of one."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, height, width) → the same."""
        if input.dim() != 4 or not is_batch_innermost(input):
            return super().forward(input)
        seen = input.permute(1, 2, 3, 0)
        wide = super().forward(seen.flatten(2)[None])
        return wide.view(seen.shape).permute(3, 0, 1, 2)


class BatchInnermostBatchNorm1d(nn.BatchNorm1d):
    """The same for features."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C) → the same."""
        if input.dim() != 2 or not input.t().is_contiguous():
            return super().forward(input)
        return super().forward(input.t()[None])[0].t()


_INSTEAD: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: BatchInnermostMaxPool2d,
    nn.BatchNorm2d: BatchInnermostBatchNorm2d,
    nn.BatchNorm1d: BatchInnermostBatchNorm1d,
}


def adapt(model: nn.Module) -> None:
    """Let what stands between sparse layers keep the layout of their tensors."""
    for module in model.modules():
        # The same object with the same tensors under the same names: only how it goes forward is
        # another thing. A user's own class stays what it is.
        module.__class__ = _INSTEAD.get(type(module), type(module))


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, size: int, stride: int) -> Tensor:
        found = library()
        assert found is not None
        count, channels, height, width = images.shape
        laid_out = to_batch_innermost(found, images, count)
        out = ((height - size) // stride + 1, (width - size) // stride + 1)
        maxima = floats(channels, *out, count)
        which = torch.empty(channels, *out, count, dtype=torch.uint8)
        ctx.sizes = channels, height, width, size, stride, *out, count
        threads = torch.get_num_threads()
        found.max_pool(address(laid_out), address(maxima), address(which), *ctx.sizes, threads)
        ctx.save_for_backward(which)
        return batch_first(maxima, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = library()
        assert found is not None
        (which,) = ctx.saved_tensors
        channels, height, width, *_, count = ctx.sizes
        gradient = to_batch_innermost(found, gradients[0], count)
        d_images = floats(channels, height, width, count)
        threads = torch.get_num_threads()
        found.max_pool_backward(
            address(gradient), address(which), address(d_images), *ctx.sizes, threads
        )
        return batch_first(d_images, count), None, None


def _square(size: int | tuple[int, ...]) -> int | None:
    """The one size of all sides; None when they differ."""
    sides = {size} if isinstance(size, int) else set(size)
    return sides.pop() if len(sides) == 1 else None
