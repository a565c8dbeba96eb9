"""A trained model as one safetensors file that says which run, round and model it is of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from coppice.app import build_model, make_app
from coppice.domain import Workload
from coppice.errors import InvalidPayload, UnreadableData
from coppice.files import write_file
from coppice.masks import density
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, assign, dense_tensors, masks_of
from coppice.tree import from_plain, to_plain

#: Key of the file's metadata that holds a ModelInfo.
_KEY = "coppice"

#: Follows the name of a tensor in the name of its mask: uint8, packed as in `coppice.sparse.Mask`.
_MASK = "#mask"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Where a model comes from."""

    workload: Workload
    round_number: int
    #: What the model's evaluation gave.
    metrics: Mapping[str, float]
    #: Program and version, for people.
    written_by: str
    #: Share that is kept of the weights on masks, as `save_model` finds it; None without masks.
    density: float | None = None


def save_model(path: Path, weights: Weights, info: ModelInfo) -> None:
    """Write parameters and buffers as a whole file or, on DiskFull or StoreUnusable, not at all.

    Sparse tensors are written dense, for any program to read, and their masks beside them.
    """
    # safetensors refuses tensors that share memory, as those of equal masks may.
    copies = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in dense_tensors(weights).items()
    }
    masks = masks_of(weights)
    copies |= {name + _MASK: mask.packed.clone() for name, mask in masks.items()}
    info = replace(info, density=density(masks.values()) if masks else None)
    data = to_bytes(copies, metadata={_KEY: json.dumps(to_plain(info))})
    write_file(path, data, remedy="choose another path")


def read_info(path: Path) -> ModelInfo:
    """Where the model in the file comes from; UnreadableData when it is not a model of Coppice."""
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise _wrong(path, "a safetensors file that does not say which run it is of")
    try:
        return from_plain(ModelInfo, json.loads(metadata[_KEY]))
    except (ValueError, RecursionError, InvalidPayload) as error:
        raise _wrong(path, str(error)) from None


def load_weights(path: Path) -> dict[str, Tensor | SparseTensor]:
    """The tensors of any safetensors file by name, sparse those that it has masks of.

    Raises UnreadableData when it is none, or a mask does not fit.
    """
    with _reading(path):
        tensors: dict[str, Tensor] = load_file(path)
    weights: dict[str, Tensor | SparseTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_MASK) and name.removesuffix(_MASK) in tensors:
            continue
        weights[name] = tensor
        if name + _MASK in tensors:
            try:
                mask = Mask(tuple(tensor.shape), tensors[name + _MASK])
            except ValueError as error:
                raise _wrong(path, f"{name}: {error}") from None
            weights[name] = SparseTensor.take(tensor, mask)
    return weights


def load_model(path: Path, app_path: Path | None = None) -> tuple[nn.Module, ModelInfo]:
    """The model, ready to predict, and where it comes from.

    A run with an app needs the app's module. Raises UnreadableData, AppMismatch, AppError.
    """
    info = read_info(path)
    model = build_model(make_app(info.workload, app_path), seed=0)
    try:
        assign(model, load_weights(path))
    except InvalidPayload as error:
        raise _wrong(path, str(error)) from None
    return model.eval(), info


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UnreadableData(f"{path} does not exist; give the path of a model file") from None
    except OSError as error:
        raise UnreadableData(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise _wrong(path, str(error)) from None


def _wrong(path: Path, why: str) -> UnreadableData:
    return UnreadableData(
        f"{path} is not a model of Coppice: {why}; give a file that Coppice saved (.safetensors)"
    )
