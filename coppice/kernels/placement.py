"""A model with the weights that it is given, each layer dense or sparse, and nothing dead in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from coppice.errors import InvalidPayload
from coppice.kernels.choice import CostCurve, Input, inputs_of, measure, outputs_of
from coppice.kernels.compaction import Compaction, tensor_name
from coppice.kernels.layers import SparseLayer, make_dense, make_sparse, why_dense
from coppice.kernels.library import library
from coppice.kernels.neighbours import adapt
from coppice.kernels.units import units_of
from coppice.memory import give_back
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, assign, buffers_of, masks_of, parameters_of

Measure: TypeAlias = Callable[[SparseLayer, Input], CostCurve]

#: So few weights are always faster sparse, but in small linear layers, and so many dense, but in
#: small convolutions such as first ones (docs/benchmarks.md): not worth the time and memory of
#: measuring.
_SURELY_SPARSE, _SURELY_DENSE, _SMALL = 0.25, 0.7, 2**18
_CONVOLUTION_DIMENSIONS = 3
#: Measurements are of densities in steps of one twentieth.
_DENSITY_STEPS = 20


class Placement:
    """A model whose layers are sparse where that is faster."""

    def __init__(
        self, model: nn.Module, measure: Measure = measure, *, adapts: bool = True
    ) -> None:
        """Without `adapts` the model stays whole and dense."""
        self.model = model
        #: Of the model's weights as they are now, dense or sparse, by name.
        self.masks: Mapping[str, Mask] = {}
        #: What was measured, by name, shape and density.
        self.curves: dict[tuple[str, tuple[int, ...], int], CostCurve] = {}
        self._measure = measure
        #: The layers that should be dense, where it is known.
        self._dense: Collection[str] | None = None
        self._whole = {
            name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(model).items()
        }
        self._units = units_of(model) if adapts else []
        self._compaction = Compaction({})
        self._compacted_for: Mapping[str, Mask] | None = None
        #: Whether the model does the same with fewer units and sparse layers. Those of the registry
        #: do, which may come without memory; somebody's own is tried under the masks that it gets.
        self._bears = adapts
        is_known = any(parameter.is_meta for parameter in model.parameters())
        self._tries = adapts and not is_known
        self._tried_for: Mapping[str, Mask] | None = None

    def assign(
        self,
        weights: Weights,
        batch: Tensor | None,
        *,
        whole: bool = False,
        dense: Collection[str] | None = None,
    ) -> None:
        """Give the model these weights; `batch` is an input of it, without which nothing is timed.

        Where it is known which layers should be `dense`, nothing is timed either. Dead units stay
        in a `whole` model. Raises InvalidPayload when the weights are another model's.
        """
        self._check(weights)
        self._dense = dense
        masks = masks_of(weights)
        if self._tries and batch is not None and masks and self._tried_for != masks:
            self._bears, self._tried_for = self._try(weights, batch), masks
        small = self._compact(weights, whole or not self._bears)
        new = self._place(small)
        self._fill(small)
        if new:
            # Of what it took to find all this out.
            give_back()
        if batch is not None and dense is None and self._measure_layers(new, batch):
            self._fill(small)
            give_back()

    def weights(self, received: Weights) -> Weights:
        """The floating-point parameters by name, of the whole model; `received` are those that were
        assigned. Those of sparse layers are on their masks.
        """
        return self._compaction.expand(weights_of(self.model), received)

    def buffers(self, received: Weights) -> dict[str, Tensor]:
        """The rest of the model's state likewise."""
        expanded = self._compaction.expand(buffers_of(self.model), received)
        return {name: item for name, item in expanded.items() if isinstance(item, Tensor)}

    def _compact(self, weights: Weights, whole: bool) -> Weights:
        """What is left of the weights; the model's own shapes become those."""
        masks = masks_of(weights)
        if whole:
            self._compaction, self._compacted_for = Compaction({}), None
        elif self._compacted_for != masks:
            self._compaction = Compaction.of(self._units, weights)
            self._compacted_for = masks
        small = self._compaction.shrink(weights)
        self.masks = masks_of(small)
        for name, layer in list(sparse_layers(self.model)):
            if self.masks.get(name) != layer.mask or name in (self._dense or ()):
                make_dense(layer)
        sparse = dict(sparse_layers(self.model))
        for name, tensor in _tensors(self.model).items():
            if name not in sparse and tensor.shape != small[name].shape:
                _resize(self.model, name, tuple(small[name].shape))
        return small

    def _try(self, weights: Weights, batch: Tensor) -> bool:
        """Whether the model computes the same with fewer units and sparse layers."""
        self._bears = True
        whole = self._compact(weights, whole=True)
        for _, layer in list(sparse_layers(self.model)):
            make_dense(layer)
        self._fill(whole)
        before = _Before(self.model)
        try:
            expected = outputs_of(self.model, batch)
            small = self._compact(weights, whole=False)
            new = self._place(small)
            self._fill(small)
            before.spoil(self.model)
            found = outputs_of(self.model, batch)
            inputs_of(self.model, new, batch)
            return _agree(expected, found)
        except Exception:
            # Whatever somebody's own model does when a weight is not what it expects.
            return False
        finally:
            before.restore()

    def _fill(self, weights: Weights) -> None:
        _give_memory(self.model)
        held = dict(sparse_layers(self.model))
        for name, layer in held.items():
            item = weights[name]
            assert isinstance(item, SparseTensor)
            layer.assign(item.values)
        rest = {name: item for name, item in weights.items() if name not in held}
        assign(self.model, rest, besides=held.keys())

    def _place(self, weights: Weights) -> dict[str, SparseLayer]:
        """Make all layers sparse that can be and are not known to be better dense."""
        if library() is None or not self._bears:
            return {}
        new = {}
        surely_dense = _surely_dense(self.masks) if self._dense is None else self._dense
        for name, dense in list(_dense_layers(self.model)):
            item = weights.get(name)
            if not isinstance(item, SparseTensor) or name in surely_dense:
                continue
            curve = self.curves.get(_case(name, item.mask)) if self._dense is None else None
            if curve is None or curve.is_sparse(item.mask.count):
                new[name] = make_sparse(dense, item)
        if new:
            adapt(self.model)
        return new

    def _measure_layers(self, new: Mapping[str, SparseLayer], batch: Tensor) -> bool:
        """Make layers dense that are faster so; returns whether any weight has changed for it."""
        unsure = {
            name: layer
            for name, layer in new.items()
            if _is_unsure(layer) and _case(name, layer.mask) not in self.curves
        }
        if not unsure:
            return False
        inputs = inputs_of(self.model, unsure, batch)
        for name, layer in unsure.items():
            if name in inputs:
                curve = self._measure(layer, inputs[name])
                self.curves[_case(name, layer.mask)] = curve
                if not curve.is_sparse(layer.mask.count):
                    make_dense(layer)
        return True

    def _check(self, weights: Weights) -> None:
        """Of the whole model, before anything changes."""
        if unlike := self._whole.keys() ^ weights.keys():
            raise InvalidPayload(
                f"these tensors are not this model's: {len(unlike)} names differ, "
                f"{min(unlike)!r} is one"
            )
        for name, (shape, dtype) in self._whole.items():
            item = weights[name]
            if isinstance(item, SparseTensor) and len(shape) < 2:
                raise InvalidPayload(f"{name} is {list(shape)}: only weights can be on a mask")
            if tuple(item.shape) != shape or item.dtype != dtype:
                raise InvalidPayload(
                    f"{name} is {item.dtype} {list(item.shape)}; "
                    f"this model needs {dtype} {list(shape)}"
                )


class _Before:
    """What a model's modules were and had, down to the objects."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (module, type(module), dict(module._parameters), dict(module._buffers))
            for module in model.modules()
        ]

    def spoil(self, model: nn.Module) -> None:
        """Let what the model has no more be of no use: it may refer to it without being seen to."""
        now = set(map(id, model.parameters()))
        for _, _, parameters, _ in self._modules:
            for parameter in parameters.values():
                if parameter is not None and id(parameter) not in now:
                    parameter.detach().fill_(math.nan)

    def restore(self) -> None:
        for module, kind, parameters, buffers in self._modules:
            if isinstance(module, SparseLayer):
                make_dense(module)
            module.__class__ = kind
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _agree(expected: object, found: object) -> bool:
    """Whether a model's outputs are the same; what cannot be compared is not."""
    if isinstance(expected, Tensor):
        return (
            isinstance(found, Tensor)
            and found.shape == expected.shape
            and bool(expected.isfinite().all())
            and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
        )
    if isinstance(expected, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == expected.keys()
            and all(_agree(item, found[key]) for key, item in expected.items())
        )
    if isinstance(expected, tuple | list):
        return (
            isinstance(found, tuple | list)
            and len(found) == len(expected)
            and all(map(_agree, expected, found))
        )
    return False


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """The sparse layers, by the names of their weights."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            yield tensor_name(name, "weight"), module


def weights_of(model: nn.Module) -> Weights:
    """The floating-point parameters by name, those of sparse layers on their masks."""
    held = dict(sparse_layers(model))
    return {
        name: held[name].sparse_weight() if name in held else tensor
        for name, tensor in parameters_of(model).items()
    }


def _surely_dense(masks: Mapping[str, Mask]) -> set[str]:
    """The layers that are nearly whole, by the names of their weights.

    Small convolutions on large images, such as first ones, may be faster sparse all the same. Not
    beside a large dense layer: what goes from one to the other would have to change its layout.
    """
    whole = {name for name, mask in masks.items() if mask.density > _SURELY_DENSE}
    if any(masks[name].size >= _SMALL for name in whole):
        return whole
    return {name for name in whole if len(masks[name].shape) < _CONVOLUTION_DIMENSIONS}


def _is_unsure(layer: SparseLayer) -> bool:
    is_small = isinstance(layer, nn.Linear) and layer.mask.size < _SMALL
    return is_small or layer.mask.density > _SURELY_SPARSE


def _case(name: str, mask: Mask) -> tuple[str, tuple[int, ...], int]:
    return name, mask.shape, round(mask.density * _DENSITY_STEPS)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return parameters_of(model) | buffers_of(model)


def _resize(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Let a parameter or buffer have another shape, and no memory yet."""
    owner, _, own_name = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = getattr(module, own_name)
    new = torch.empty(shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, tensor.requires_grad)
    setattr(module, own_name, new)


def _dense_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    owners = Counter(
        parameter for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    for name, module in model.named_modules():
        if why_dense(module) is None and owners[module.get_parameter("weight")] == 1:
            yield tensor_name(name, "weight"), module


def _give_memory(model: nn.Module) -> None:
    """Let parameters and buffers that are only shapes so far have values."""
    # Tensors that were shared stay shared.
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if parameter not in parameters:
                    memory = _memory_like(parameter)
                    parameters[parameter] = nn.Parameter(memory, parameter.requires_grad)
                module._parameters[name] = parameters[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = _memory_like(buffer)


def _memory_like(shape: Tensor) -> Tensor:
    # With `empty_like` torch imports sympy.
    return torch.empty(tuple(shape.shape), dtype=shape.dtype)
