"""How the values of tensors travel: as they are, or float32 in two bytes or in one."""

from __future__ import annotations

import torch
from torch import Tensor

from coppice.domain import ValueType
from coppice.errors import InvalidPayload
from coppice.tensors import DTYPES

#: How the values of float32 tensors travel.
VALUE_TYPES: tuple[ValueType, ...] = ("float32", "float16", "bfloat16", "int8")

#: Values that share one scale when float32 travels as int8.
BLOCK = 128
_STEPS = 127
_SLICE = 2**20
#: The largest scale whose every step is finite: the quotient, which was rounded up, is one over.
_LARGEST_SCALE = torch.nextafter(
    torch.tensor(torch.finfo(torch.float32).max) / _STEPS, torch.tensor(0.0)
)


def values_bytes(dtype: str, travels: str, count: int) -> int:
    """Bytes of `count` values of type `dtype` that travel as `travels`."""
    scales = 4 * -(-count // BLOCK) if _is_scaled(dtype, travels) else 0
    return scales + count * DTYPES[travels].itemsize


def write_values(
    values: Tensor, travels: str, raw: Tensor, generator: torch.Generator | None, label: str
) -> None:
    """Write values into the bytes `raw`.

    Values that cannot travel so are refused as InvalidPayload.
    """
    flat = values.detach().reshape(-1)
    kind = DTYPES[travels]
    if flat.dtype == kind:
        raw.view(kind).copy_(flat)
        return
    if kind is torch.int8:
        fits = _write_scaled(flat, raw, generator)
    else:
        fits = _is_finite(raw.view(kind).copy_(flat))
    if not fits:
        raise InvalidPayload(f"{label} has values that {travels} cannot hold")


def check_values(raw: Tensor, dtype: str, travels: str, finite: bool, label: str) -> None:
    """Refuse, as InvalidPayload, bytes that are no values, and with `finite` NaN and infinity."""
    if raw.numel() == 0:
        return
    if _is_scaled(dtype, travels):
        scales, steps = _split(raw)
        # Not negative, as integers floats are in the order of their values, and NaN is above all.
        bits = scales.view(torch.int32)
        if int(bits.min()) < 0 or int(bits.max()) > int(_LARGEST_SCALE.view(torch.int32)):
            raise InvalidPayload(f"{label} has a scale that no block can have")
        if int(steps.min()) < -_STEPS:
            raise InvalidPayload(f"{label} has the byte -128")
    elif dtype == "bool":
        if int(raw.max()) > 1:
            raise InvalidPayload(f"{label} has a bool that is neither 0 nor 1")
    elif finite and not _is_finite(raw.view(DTYPES[travels])):
        raise InvalidPayload(f"{label} has values that are not finite")


def read_values(raw: Tensor, dtype: str, travels: str) -> Tensor:
    """The values that checked bytes hold, one-dimensional; they share memory where they can."""
    if not _is_scaled(dtype, travels):
        return raw.view(DTYPES[travels]).to(DTYPES[dtype])
    scales, steps = _split(raw)
    values = steps.to(torch.float32)
    whole = len(values) // BLOCK
    values[: whole * BLOCK].view(whole, BLOCK).mul_(scales[:whole, None])
    values[whole * BLOCK :].mul_(scales[whole:])
    return values


def _is_scaled(dtype: str, travels: str) -> bool:
    return dtype == "float32" and travels == "int8"


def _split(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The scales, and the bytes that they scale."""
    # Every block but the last has BLOCK + 4 bytes, and that has more than 4.
    blocks = -(-raw.numel() // (BLOCK + 4))
    return raw[: 4 * blocks].view(torch.float32), raw[4 * blocks :].view(torch.int8)


def _write_scaled(flat: Tensor, raw: Tensor, generator: torch.Generator | None) -> bool:
    scales, steps = _split(raw)
    for start in range(0, len(flat), _SLICE):
        values = flat[start : start + _SLICE]
        count = len(values)
        blocks = torch.zeros(-(-count // BLOCK), BLOCK)
        blocks.view(-1)[:count] = values
        largest = torch.linalg.vector_norm(blocks, ord=torch.inf, dim=1)
        if not _is_finite(largest):
            return False
        scale = torch.minimum(largest / _STEPS, _LARGEST_SCALE)
        scales[start // BLOCK :][: len(scale)] = scale
        # Magnitudes that even the smallest scale is too large for become 0.
        blocks /= torch.where(scale == 0, torch.inf, scale)[:, None]
        lower = blocks.floor()
        blocks -= lower
        lower += torch.rand(blocks.shape, generator=generator) < blocks
        # Where the scale itself was rounded, the largest may come out a little over.
        steps[start : start + count] = lower.clamp_(-_STEPS, _STEPS).view(-1)[:count]
    return True


def _is_finite(values: Tensor) -> bool:
    if not values.is_floating_point() or values.numel() == 0:
        return True
    # One pass and no second array: the extremes of values with a NaN are NaN.
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))
