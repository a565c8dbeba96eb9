"""A model's units: the channels and features that one layer makes and others read."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

#: What a value of one unit becomes, of whichever shape.
Elementwise: TypeAlias = Callable[[Tensor], Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Softplus,
)  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d)
_MEAN_POOLS = (nn.AvgPool1d, nn.AvgPool2d)
_WHOLE_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_ELEMENTWISE_FUNCTIONS = (
    torch.relu, torch.tanh, torch.sigmoid, functional.relu, functional.relu6, functional.gelu,
    functional.leaky_relu, functional.elu, functional.silu, functional.hardtanh, functional.tanh,
    functional.sigmoid, functional.hardswish,
)  # fmt: skip
_ELEMENTWISE_METHODS = ("relu", "relu_", "tanh", "sigmoid")
_SUMS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Reader:
    """A layer that reads units."""

    layer: str
    #: What lies between a unit's maker and here; None where a unit that is constant can still not
    #: become a part of this layer's bias.
    between: tuple[Elementwise, ...] | None


@dataclass(eq=False)
class Units:
    """Units that can only be removed together, one by one in all of these layers."""

    size: int
    #: Layers, by name, that have a row of their weight for each unit.
    makers: list[str] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    #: Batch norms between them.
    norms: list[str] = field(default_factory=list)
    #: Something needs all of them, or cannot be seen through.
    is_fixed: bool = False


def units_of(model: nn.Module) -> list[Units]:
    """The units of which some could be removed, makers first; none of models not understood."""
    # To trace is to run somebody's own `forward`, which may do anything with what it is given, and
    # keep it: a copy is traced, in both modes, for one may do other things than the other.
    try:
        shape = _copy_of_shape(model)
        graphs = [fx.Tracer().trace(shape.train(mode)) for mode in (False, True)]
    except Exception:
        return []
    if str(graphs[0]) != str(graphs[1]):
        return []
    return _Walk(model).through(graphs[1])


def _copy_of_shape(model: nn.Module) -> nn.Module:
    """The modules and whatever else they hold, but for the parameters."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, cast(dict[int, Any], shared))


class _Axis(Enum):
    """Where a value has its units."""

    #: (N, units, …)
    SECOND = auto()
    #: (N, units), or (N, units · pixels) with those of a unit one after the other.
    FEATURES = auto()
    #: (…, units)
    LAST = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class _Value:
    units: Units
    axis: _Axis
    #: Of images: their dimensions, beside channels and batch.
    dims: int = 0
    between: tuple[Elementwise, ...] | None = ()


def _unseen() -> _Value:
    return _Value(Units(0, is_fixed=True), _Axis.UNKNOWN)


class _Walk:
    """Once through a model's operations."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._values: dict[fx.Node, _Value] = {}
        self._made: dict[str, Units] = {}
        self._read: dict[str, _Value] = {}
        self._normed: set[str] = set()
        owners = Counter(
            parameter
            for module in self._modules.values()
            for parameter in module.parameters(recurse=False)
        )
        #: Layers whose tensors something else uses, too.
        self._taken = {
            name
            for name, module in self._modules.items()
            if any(owners[parameter] > 1 for parameter in module.parameters(recurse=False))
        }

    def through(self, graph: fx.Graph) -> list[Units]:
        for node in graph.nodes:
            self._values[node] = self._value(node)
        found: list[Units] = []
        for units in self._made.values():
            layers = {*units.makers, *units.norms, *(reader.layer for reader in units.readers)}
            if units not in found and not units.is_fixed and not layers & self._taken:
                found.append(units)
        return found

    def _value(self, node: fx.Node) -> _Value:
        if node.op == "call_module":
            return self._called(node, str(node.target))
        if node.op == "call_function":
            return self._function(node)
        if node.op == "call_method":
            return self._method(node)
        if node.op == "get_attr":
            self._taken.add(str(node.target).rpartition(".")[0])
        return self._unknown(node)

    def _unknown(self, node: fx.Node) -> _Value:
        """Of what is not understood, nor anything that went into it, can any unit be spared."""
        for given in node.all_input_nodes:
            self._values[given].units.is_fixed = True
        return _unseen()

    def _called(self, node: fx.Node, name: str) -> _Value:
        module, value = self._modules[name], self._only(node)
        if value is None or _has_hooks(module):
            return self._unknown(node)
        self._see_change(node, value, getattr(module, "inplace", False))
        kind = type(module)
        if kind in (*_CONVOLUTIONS, nn.Linear) and not _owns_tensors(module):
            return self._unknown(node)
        if isinstance(module, _CONVOLUTIONS) and kind in _CONVOLUTIONS and module.groups == 1:
            return self._layer(name, value, _Axis.SECOND)
        if kind is nn.Linear:
            is_flat = value.axis is _Axis.FEATURES
            return self._layer(name, value, _Axis.FEATURES if is_flat else _Axis.LAST)
        if isinstance(module, _NORMS) and kind in _NORMS:
            is_plain = value.axis in (_Axis.SECOND, _Axis.FEATURES)
            if is_plain and module.num_features == value.units.size:
                if name in self._normed:
                    # One norm of two layers' units.
                    self._taken.add(name)
                self._normed.add(name)
                value.units.norms.append(name)
                return replace(value, between=None)
        if kind in _ELEMENTWISE_MODULES:
            return _mapped(value, module)
        if kind in _DROPOUTS:
            return replace(value, between=None)
        if value.axis is _Axis.SECOND and self._pools(module, value.dims):
            return value
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return self._flat(node)
        return self._unknown(node)

    @staticmethod
    def _pools(module: nn.Module, dims: int) -> bool:
        """Whether a module maps a constant channel to the same one."""
        # Of images of other dimensions it would take channels for pixels.
        if not type(module).__name__.endswith(f"{dims}d"):
            return False
        if isinstance(module, _MAX_POOLS):
            return not module.return_indices
        if isinstance(module, _MEAN_POOLS):
            is_mean = getattr(module, "divisor_override", None) is None
            return module.padding in (0, (0,), (0, 0)) and not module.ceil_mode and is_mean
        return isinstance(module, _WHOLE_POOLS) and not getattr(module, "return_indices", False)

    def _layer(self, name: str, value: _Value, axis: _Axis) -> _Value:
        if value.axis not in (axis, _Axis.UNKNOWN):
            value.units.is_fixed = True
        rows, columns = self._modules[name].get_parameter("weight").shape[:2]
        if name in self._made:
            # Once more: one weight has the same rows and columns for all of its uses.
            self._join(self._read[name], value)
            return _Value(self._made[name], axis, _dims(self._modules[name]), between=None)
        if value.units.size and (columns < value.units.size or columns % value.units.size):
            value.units.is_fixed = True
        between = value.between if _has_room(self._modules[name]) else None
        value.units.readers.append(Reader(name, between))
        self._read[name] = value
        self._made[name] = Units(rows, [name])
        return _Value(self._made[name], axis, _dims(self._modules[name]))

    def _function(self, node: fx.Node) -> _Value:
        function, value = node.target, self._only(node)
        if value is not None and function in _ELEMENTWISE_FUNCTIONS:
            self._see_change(node, value, True in (*node.args, *node.kwargs.values()))
            return _mapped(value, _bound(node))
        if value is not None and function is torch.flatten and _flattens(node):
            return self._flat(node)
        if function in _SUMS and len(node.args) == 2 and not node.kwargs:
            values = [self._values[arg] for arg in node.args if isinstance(arg, fx.Node)]
            self._see_change(node, values[0], function is operator.iadd)
            if len(values) == 2 and values[0].axis is values[1].axis is not _Axis.UNKNOWN:
                self._join(*values)
                return replace(self._values[node.all_input_nodes[0]], between=None)
        if function is getattr and node.args[1] == "shape" and all(map(_takes_first, node.users)):
            return _unseen()
        return self._unknown(node)

    def _method(self, node: fx.Node) -> _Value:
        method, value = node.target, self._only(node)
        if method == "size" and tuple(node.args[1:]) == (0,):
            return _unseen()
        if value is not None and method == "contiguous" and len(node.args) == 1 and not node.kwargs:
            return value
        if value is not None and method in _ELEMENTWISE_METHODS:
            self._see_change(node, value, str(method).endswith("_"))
            return _mapped(value, _bound(node))
        if value is not None and method == "flatten" and _flattens(node):
            return self._flat(node)
        if method in ("view", "reshape") and len(node.args) == 3 and node.args[2] == -1:
            images, count = node.args[:2]
            if isinstance(images, fx.Node) and _counts(count, images):
                return self._flat(node)
        return self._unknown(node)

    def _flat(self, node: fx.Node) -> _Value:
        """(N, …) → (N, features)."""
        value = self._values[node.all_input_nodes[0]]
        if value.axis is _Axis.LAST:
            # Perhaps of more than two dimensions: a unit's features are not neighbours then.
            return self._unknown(node)
        return replace(value, axis=_Axis.FEATURES)

    def _see_change(self, node: fx.Node, value: _Value, is_in_place: bool) -> None:
        """What is changed in place and then used otherwise is not what it was called."""
        if is_in_place and len(node.all_input_nodes[0].users) > 1:
            value.units.is_fixed = True

    def _only(self, node: fx.Node) -> _Value | None:
        """The one value that goes into an operation; None when there are others."""
        given = node.all_input_nodes
        is_first = len(given) == 1 and len(node.args) > 0 and node.args[0] is given[0]
        return self._values[given[0]] if is_first else None

    def _join(self, one: _Value, other: _Value) -> None:
        """The units of both are the same from now on."""
        first, second = one.units, other.units
        if first.size != second.size:
            first.is_fixed = second.is_fixed = True
            return
        # What is summed, or read by one layer in two places, is no constant of one maker.
        readers = dict.fromkeys(first.readers + second.readers)
        first.readers = [replace(reader, between=None) for reader in readers]
        if first is second:
            return
        first.makers += second.makers
        first.norms += second.norms
        first.is_fixed |= second.is_fixed
        for node, value in self._values.items():
            if value.units is second:
                self._values[node] = replace(value, units=first)
        for name, value in self._read.items():
            if value.units is second:
                self._read[name] = replace(value, units=first)
        for name, units in self._made.items():
            if units is second:
                self._made[name] = first


def _flattens(node: fx.Node) -> bool:
    """Whether it is from the second dimension to the last."""
    where = (*node.args[1:],)
    if node.kwargs:
        return not where and node.kwargs in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})
    return where in ((1,), (1, -1))


def _has_hooks(module: nn.Module) -> bool:
    """Whether something else comes before or after the module does what it does."""
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def _owns_tensors(layer: nn.Module) -> bool:
    """Whether weight and bias are its parameters, and not computed from something."""
    return layer._parameters.get("weight") is not None and "bias" in layer._parameters


def _dims(layer: nn.Module) -> int:
    return layer.get_parameter("weight").dim() - 2


def _has_room(layer: nn.Module) -> bool:
    """Whether a constant input adds the same to all pixels of an output, and to a bias."""
    is_bare = isinstance(layer, _CONVOLUTIONS) and layer.padding != "valid" and any(layer.padding)
    return layer._parameters["bias"] is not None and not is_bare


def _counts(count: object, images: fx.Node) -> bool:
    """Whether it is `images.size(0)` or `images.shape[0]`."""
    if not isinstance(count, fx.Node):
        return False
    if count.target == "size":
        return tuple(count.args) == (images, 0)
    shape = count.args[0] if _takes_first(count) else None
    return isinstance(shape, fx.Node) and tuple(shape.args) == (images, "shape")


def _takes_first(node: fx.Node) -> bool:
    return node.target is operator.getitem and tuple(node.args[1:]) == (0,)


def _bound(node: fx.Node) -> Elementwise:
    """The operation with all that it is given besides the tensor."""
    others, named, target = node.args[1:], dict(node.kwargs), node.target
    if isinstance(target, str):
        return lambda value: getattr(value, target)(*others, **named)
    assert callable(target)
    return lambda value: target(value, *others, **named)


def _mapped(value: _Value, function: Elementwise) -> _Value:
    between = None if value.between is None else (*value.between, function)
    return replace(value, between=between)
