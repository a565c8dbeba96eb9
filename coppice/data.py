"""A device's examples: what a file holds, read in the meaning that the run gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coppice.domain import DataSpec
from coppice.errors import DataError

Array = npt.NDArray[Any]

#: Types that torch cannot index (kind and bytes), and the next one that holds all their values.
_WIDENED = {"u2": "i4", "u4": "i8"}

_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Raw:
    """What a file or folder holds, before the run says what it means."""

    #: (N, ...), numbers of any type.
    inputs: Array
    #: (N,), integers or strings.
    labels: Array
    #: Names of the classes that integer labels count from 0; None where the file has no names.
    class_names: Sequence[str] | None = None


def labelled(inputs: Array, names: Sequence[str]) -> Raw:
    """Inputs whose labels are given as one class name each."""
    classes = sorted(set(names))
    index = {name: number for number, name in enumerate(classes)}
    return Raw(inputs, np.array([index[name] for name in names], np.int64), classes)


def as_stored(inputs: Tensor) -> Tensor:
    """The transform of inputs that a model takes as they are."""
    return inputs


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets, kept as stored and transformed batch by batch."""

    #: (N, ...), in the type of the file: bytes stay bytes.
    inputs: Tensor
    #: (N, ...).
    targets: Tensor
    #: From a batch of stored inputs to what the model takes; must not change its argument.
    transform: Callable[[Tensor], Tensor] = as_stored

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Transformed inputs and targets of these examples, copied."""
        return self.transform(self.inputs[indices]), self.targets[indices]

    def subset(self, indices: Tensor) -> Examples:
        """These examples, copied, under the same transform."""
        return Examples(self.inputs[indices], self.targets[indices], self.transform)


@dataclass(frozen=True, eq=False)
class Normalise:
    """`(x / scale - mean) / std` in float32; `mean` and `std` broadcast over a batch."""

    scale: float
    mean: Tensor
    std: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, ...) of any type → (N, ...) float32."""
        return (inputs.to(torch.float32) / self.scale).sub_(self.mean).div_(self.std)


def split(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Training part and held-out part: the same for the same seed and number of examples.

    The held-out part is `share` of the examples, rounded, but leaves one to train on.
    """
    count = len(examples)
    held_out = min(round(share * count), count - 1)
    if held_out <= 0:
        return examples, examples.subset(torch.arange(0))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (
        examples.subset(order[held_out:].sort().values),
        examples.subset(order[:held_out].sort().values),
    )


def examples_from(raw: Raw, spec: DataSpec) -> Examples:
    """The examples as the run reads them; DataError says what does not fit it."""
    if len(raw.inputs) != len(raw.labels):
        raise DataError(
            f"there are {len(raw.inputs)} inputs and {len(raw.labels)} labels; "
            "every input needs one label"
        )
    if len(raw.inputs) == 0:
        raise DataError("there are no examples; at least one is needed")
    inputs = _fit_shape(_numbers(raw.inputs), spec.input_shape)
    broadcast = (-1, *[1] * (len(spec.input_shape) - 1))
    transform = Normalise(
        spec.scale,
        torch.tensor(spec.mean, dtype=torch.float32).reshape(broadcast),
        torch.tensor(spec.std, dtype=torch.float32).reshape(broadcast),
    )
    return Examples(torch.from_numpy(inputs), torch.from_numpy(_targets(raw, spec)), transform)


def _numbers(inputs: Array) -> Array:
    """The inputs in a type that torch can hold, finite."""
    code = inputs.dtype.str[1:]
    if inputs.dtype.kind not in "biuf" or inputs.dtype.itemsize > 8 or code == "u8":
        raise DataError(
            f"inputs are of type {inputs.dtype}; "
            "allowed are bool, int8 to int64, uint8 to uint32 and float16 to float64"
        )
    inputs = inputs.astype(np.dtype("=" + _WIDENED.get(code, code)), copy=False)
    if inputs.dtype.kind == "f":
        finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{np.count_nonzero(~finite)} inputs hold NaN or infinite values, the first is "
                f"number {int(np.argmin(finite))}, counted from 0; remove them or fill them in"
            )
    return inputs


def _fit_shape(inputs: Array, wanted: tuple[int, ...]) -> Array:
    """The inputs as (N, *wanted), where that needs no guess."""
    have = inputs.shape[1:]
    channels_last = (*wanted[1:], wanted[0])
    if have == wanted:
        fitted = inputs
    elif wanted[0] == 1 and have == wanted[1:]:
        fitted = inputs[:, np.newaxis]
    elif have == channels_last:
        fitted = np.moveaxis(inputs, -1, 1)
    elif have == (int(np.prod(wanted)),):
        fitted = inputs.reshape(len(inputs), *wanted)
    else:
        raise DataError(
            f"one example has shape {list(have)}; "
            f"the run wants {list(wanted)} (data.input_shape, channels first)"
        )
    # Memory order decides which kernels torch takes, so it must not depend on the file.
    return np.require(fitted, requirements=["C", "W"])


def _targets(raw: Raw, spec: DataSpec) -> npt.NDArray[np.int64]:
    """The position of every example's class in the run's list of classes."""
    labels = raw.labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuUT":
        raise DataError(
            f"labels are of type {labels.dtype} and shape {labels.shape}; "
            "one integer or one string for each example is needed"
        )
    if labels.dtype.kind in "UT":
        names, positions = np.unique(labels, return_inverse=True)
        return _by_name([str(name) for name in names], positions, spec)
    if raw.class_names is not None:
        _check_range(labels, 0, len(raw.class_names), "the file's own list of classes")
        used, positions = np.unique(labels, return_inverse=True)
        return _by_name([raw.class_names[int(label)] for label in used], positions, spec)
    _check_range(labels, spec.first_label, len(spec.classes), "data.classes and data.first_label")
    return labels.astype(np.int64) - spec.first_label


def _by_name(
    names: Sequence[str], positions: npt.NDArray[np.intp], spec: DataSpec
) -> npt.NDArray[np.int64]:
    """Targets of labels given as positions in `names`."""
    index = {name: number for number, name in enumerate(spec.classes)}
    if unknown := sorted(set(names) - index.keys()):
        raise DataError(
            f"the run has no class {_listed(unknown)}; allowed are {_listed(spec.classes)}"
        )
    return np.array([index[name] for name in names], dtype=np.int64)[positions]


def _check_range(labels: Array, first: int, count: int, allowed_by: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < first or high >= first + count:
        raise DataError(
            f"labels go from {low} to {high}; "
            f"allowed by {allowed_by} are {first} to {first + count - 1}"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
