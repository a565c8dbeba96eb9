"""Batch-innermost tensors, and the memory that layers share."""

from __future__ import annotations

import torch
from torch import Tensor

from coppice.kernels.library import Library, address

_scratch: dict[str, Tensor] = {}


def scratch(use: str, *shape: int) -> Tensor:
    """Memory that is good until the next call for the same use, by whichever layer."""
    size = torch.Size(shape).numel()
    if use not in _scratch or _scratch[use].numel() < size:
        _scratch.pop(use, None)
        with torch.inference_mode(False):
            _scratch[use] = floats(size)
    return _scratch[use][:size].view(shape)


def floats(*shape: int) -> Tensor:
    """Memory of float32, whatever the default is that torch was given."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def forget_scratch() -> None:
    """Give the shared memory back."""
    _scratch.clear()


def batch_first(laid_out: Tensor, count: int) -> Tensor:
    """The first `count` of [channels, height, width, batch], as (N, channels, height, width).

    The same memory and, for autograd, no view of it: the result of a function of its own may be
    changed in place.
    """
    channels, height, width, batch = laid_out.shape
    shape = (count, channels, height, width)
    strides = (1, height * width * batch, width * batch, batch)
    return floats(0).set_(laid_out.untyped_storage(), 0, shape, strides)


def is_batch_innermost(images: Tensor) -> bool:
    """Whether (N, channels, height, width) lies as [channels, height, width, N]."""
    return images.permute(1, 2, 3, 0).is_contiguous()


def to_batch_innermost(found: Library, images: Tensor, batch: int) -> Tensor:
    """[channels, height, width, batch] of (N, channels, height, width), zeros beyond N.

    The same memory where it lies so already.
    """
    count, channels, height, width = images.shape
    seen = images.permute(1, 2, 3, 0)
    if count == batch and seen.is_contiguous():
        return seen
    result = floats(channels, height, width, batch)
    if images.is_contiguous():
        threads = torch.get_num_threads()
        pixels = channels * height * width
        found.transpose(address(images), address(result), count, pixels, batch, threads)
        return result
    result[..., :count] = seen
    result[..., count:] = 0.0
    return result
