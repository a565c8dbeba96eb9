"""Which layers of a model are sparse, and what becomes of its weights when that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from coppice.app import Classification, bare_model, build_model
from coppice.domain import DataSpec, ModelSpec
from coppice.errors import InvalidPayload
from coppice.kernels import choice, library
from coppice.kernels.choice import CostCurve, Input, inputs_of, measure
from coppice.kernels.layers import SparseLayer, SparseLinear
from coppice.kernels.placement import Placement, sparse_layers
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, assign, dense_tensors, masks_of, parameters_of
from tests.coppice.kernels.nets import Twice, convolutions, images, start
from tests.coppice.toys import ToyApp

APP = ToyApp(convolutions)
NAMES = ["0.weight", "3.weight", "7.weight", "9.weight"]


def parameters_only(weights: Weights) -> dict[str, Tensor]:
    names = parameters_of(build_model(APP, 0))
    return {name: tensor for name, tensor in dense_tensors(weights).items() if name in names}


def assert_holds(placement: Placement, weights: Weights) -> None:
    """The model's weights are these, to the last bit."""
    found = dense_tensors(placement.weights(weights))
    expected = parameters_only(weights)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def sparse_names(model: nn.Module) -> list[str]:
    return [name for name, _ in sparse_layers(model)]


def timed(
    curves: Mapping[int, CostCurve],
) -> tuple[list[int], Callable[[SparseLayer, Input], CostCurve]]:
    """A clock of layers by the sizes of their weights, and what it was asked for."""
    asked: list[int] = []

    def of_layer(layer: SparseLayer, given: Input) -> CostCurve:
        asked.append(layer.mask.size)
        return curves.get(layer.mask.size, CostCurve(fixed=1.0, per_weight=0.0, dense=2.0))

    return asked, of_layer


def test_a_next_task_on_the_same_masks_has_its_values_in_the_same_layers() -> None:
    placement = Placement(build_model(APP, 0))
    weights = start(placement.model, 0.3)
    placement.assign(weights, None)
    layers = dict(sparse_layers(placement.model))
    placement.model(images(4).inputs)
    doubled = {
        name: SparseTensor(item.mask, 2 * item.values) if isinstance(item, SparseTensor) else item
        for name, item in weights.items()
    }
    placement.assign(doubled, None)
    assert dict(sparse_layers(placement.model)) == layers
    assert_holds(placement, doubled)


def test_new_masks_make_new_layers_and_dense_weights_dense_ones() -> None:
    placement = Placement(build_model(APP, 0))
    placement.assign(start(placement.model, 0.3), None)
    assert sparse_names(placement.model) == NAMES
    other = start(build_model(APP, 1), 0.2, seed=1)
    placement.assign(other, None)
    assert_holds(placement, other)
    assert masks_of(placement.weights(other)) == masks_of(other)
    placement.assign(dense_tensors(other), None)
    assert sparse_names(placement.model) == []
    assert_holds(placement, other)


def test_a_model_of_the_registry_has_no_memory_until_it_has_weights() -> None:
    data = DataSpec(input_shape=(1, 8, 8), classes=("a", "b"))
    app = Classification(ModelSpec(name="conv2", norm="batch"), data)
    bare, whole = bare_model(app, 0), build_model(app, 0)
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    weights = start(whole, 0.3)
    placement = Placement(bare)
    placement.assign(weights, None)
    assert not any(tensor.is_meta for tensor in bare.state_dict().values())
    assign(whole, weights)
    inputs = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(bare.eval()(inputs), whole.eval()(inputs))
    # What a user's module does when it is made may need values.
    assert not any(tensor.is_meta for tensor in bare_model(APP, 0).state_dict().values())


def test_layers_that_are_faster_dense_are_dense_until_their_masks_change() -> None:
    size = 12 * 8 * 9
    asked, measure_layer = timed({size: CostCurve(fixed=1.2, per_weight=0.0, dense=1.0)})
    placement = Placement(build_model(APP, 0), measure_layer)
    batch = images(4).inputs
    weights = start(placement.model, 0.3)
    for _ in range(2):
        placement.assign(weights, batch, whole=True)
        assert sparse_names(placement.model) == [NAMES[0], *NAMES[2:]]
        assert_holds(placement, weights)
    # Once for each layer and mask.
    assert sorted(asked) == sorted(masks_of(weights)[name].size for name in NAMES)
    asked.clear()
    placement.assign(start(build_model(APP, 1), 0.05), batch, whole=True)
    # At another density again, but for those that are sparse without asking.
    assert sparse_names(placement.model) == NAMES
    assert sorted(asked) == [3 * 20, 20 * 48]


def test_a_nearly_whole_small_convolution_is_timed_but_not_beside_a_large_one() -> None:
    # A first convolution has few weights and large images.
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 512, 8), nn.Flatten(), nn.Linear(512, 4)
    )
    asked, measure = timed({})
    placement = Placement(model, measure)
    batch = torch.randn(2, 1, 8, 8)
    placement.assign(start(model, 0.9), batch)
    assert not sparse_names(model)
    thin_large = {**start(model, 0.9), "1.weight": start(model, 0.1)["1.weight"]}
    placement.assign(thin_large, batch)
    assert sparse_names(model) == ["0.weight", "1.weight"]
    assert asked == [8 * 1 * 3 * 3]


def test_layers_that_the_model_does_not_use_or_shares_are_not_timed() -> None:
    asked, measure_layer = timed({})
    model = Twice()
    model.out.weight = model.unused.weight = nn.Parameter(torch.zeros(3, 16))
    placement = Placement(model, measure_layer)
    placement.assign(start(model, 0.3), images(4).inputs)
    assert sparse_names(model) == ["into.weight", "again.weight"]
    assert sorted(asked) == [256, 1024]


def test_measuring_changes_nothing_and_takes_the_shortest_of_several_passes() -> None:
    placement = Placement(build_model(APP, 0))
    weights = start(placement.model, 0.3)
    placement.assign(weights, None, whole=True)
    layers = dict(sparse_layers(placement.model))
    inputs = inputs_of(placement.model, layers, images(20).inputs)
    assert inputs.keys() == layers.keys()
    assert [inputs[name].wants_gradient for name in NAMES] == [False, True, True, True]
    assert inputs[NAMES[1]].shape == (20, 8, 4, 4)
    assert placement.model.training
    # The clock is read before and after each pass: three ways, six times, the first of which does
    # not count.
    sparse, thin, dense = [9, 5, 3, 4, 6, 8], [1, 2, 3, 2, 2, 3], [1, 7, 8, 7.5, 9, 10]
    durations = iter(
        [float(each) for turn in zip(sparse, thin, dense, strict=True) for each in turn]
    )
    now, is_begin = 0.0, True

    def clock() -> float:
        nonlocal now, is_begin
        if not is_begin:
            now += next(durations)
        is_begin = not is_begin
        return now

    layer = layers[NAMES[0]]
    curve = measure(layer, inputs[NAMES[0]], clock)
    assert next(durations, None) is None
    kept = layer.mask.count
    assert curve.sparse(kept) == pytest.approx(3.0)
    assert curve.sparse(-(-kept // 7)) == pytest.approx(2.0)
    assert curve.dense == 7.0
    assert all(parameter.grad is None for parameter in placement.model.parameters())
    assert_holds(placement, weights)


def test_of_a_large_layer_the_first_rows_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_LARGEST", 5 * 48)
    placement = Placement(build_model(APP, 0))
    placement.assign(start(placement.model, 0.3), None, whole=True)
    layers = dict(sparse_layers(placement.model))
    inputs = inputs_of(placement.model, layers, images(20).inputs)
    seen: list[int] = []

    def forward(self: SparseLinear, input: Tensor) -> Tensor:
        seen.append(self.mask.shape[0])
        return nn.functional.linear(input, self.sparse_weight().dense(), self.bias)

    monkeypatch.setattr(SparseLinear, "forward", forward)
    clock = iter(float(number) for number in range(100))
    curve = measure(layers["7.weight"], inputs["7.weight"], lambda: next(clock))
    assert set(seen) == {5}
    # Each pass takes a second by this clock, and there are four times as many rows.
    assert curve.dense == pytest.approx(4.0)


def test_a_cost_curve_is_a_line_up_to_where_dense_is_faster() -> None:
    curve = CostCurve.through(kept=100, seconds=3.0, fewer=20, less=1.4, dense=5.0)
    assert curve.seconds(0) == pytest.approx(1.0)
    assert curve.seconds(100) == pytest.approx(3.0)
    # Dense has to be faster by a tenth.
    assert curve.seconds(227) == pytest.approx(5.54)
    assert curve.crossover == pytest.approx(227.78, abs=0.01)
    assert not curve.is_sparse(228)
    assert curve.seconds(228) == curve.seconds(1000) == 5.0
    # Noise says that more takes less, or that nothing takes less than nothing.
    assert CostCurve.through(100, 3.0, 20, 3.5, 5.0).sparse(0) == 3.0
    assert CostCurve.through(100, 3.0, 20, 0.1, 5.0).sparse(0) == 0.0
    assert CostCurve.through(1, 3.0, 1, 3.5, 5.0).sparse(1) == 3.0


class Referring(nn.Module):
    """Keeps its layers in a list, too, and one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 3)
        self.again = self.second
        self.listed = [self.first, self.second, self.again]

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.flatten(1)
        for layer in self.listed:
            values = layer(values).tanh()
        outputs: Tensor = self.out(values)
        return outputs


class Reading(nn.Module):
    """Uses a layer's weight without the layer."""

    def __init__(self, is_silent: bool) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, 3)
        self._is_silent = is_silent

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.flatten(1)
        outputs: Tensor
        if self._is_silent:
            # Another number when the zeros are not there.
            outputs = self.out(self.hidden(hidden)) * self.hidden.weight.numel()
        else:
            outputs = self.out(nn.functional.linear(hidden, self.hidden.weight))
        return outputs


def test_other_references_to_a_layer_are_to_the_same_one() -> None:
    model = Referring()
    placement = Placement(model, timed({})[1])
    weights = start(model, 0.05)
    batch = images(4).inputs
    assign(model, weights)
    expected = model(batch)
    placement.assign(weights, batch)
    assert sparse_names(model) == ["first.weight", "second.weight", "out.weight"]
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_model_that_reads_weights_by_itself_stays_dense(is_silent: bool) -> None:
    model = Reading(is_silent)
    placement = Placement(model)
    weights = start(model, 0.05)
    batch = images(4).inputs
    for _ in range(2):
        placement.assign(weights, batch)
        assert sparse_names(model) == []
        held = dense_tensors(placement.weights(weights))
        torch.testing.assert_close(held, dense_tensors(weights))
    assert model(batch).shape == (4, 3)


def test_values_of_another_type_are_refused_before_anything_changes() -> None:
    placement = Placement(build_model(APP, 0))
    weights = start(placement.model, 0.3)
    halves = {
        name: SparseTensor(item.mask, item.values.half())
        if isinstance(item, SparseTensor)
        else item
        for name, item in weights.items()
    }
    for _ in range(2):
        with pytest.raises(InvalidPayload, match=r"0\.weight"):
            placement.assign(halves, None)
        placement.assign(weights, None)
        assert_holds(placement, weights)


def test_a_weight_of_another_shape_is_refused_by_name() -> None:
    placement = Placement(build_model(APP, 0))
    weights = dict(start(placement.model, 0.3))
    weights["7.weight"] = weights["9.weight"]
    with pytest.raises(InvalidPayload, match=r"7\.weight"):
        placement.assign(weights, None)


def test_without_the_library_all_layers_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_load", lambda: "it was not built")
    assert library.trouble() == "it was not built"
    placement = Placement(build_model(APP, 0))
    weights = start(placement.model, 0.3)
    placement.assign(weights, images(4).inputs)
    assert sparse_names(placement.model) == []
    assert_holds(placement, weights)


class Holding(nn.Module):
    """Reads a weight by a reference of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, 3)
        self.held = [self.hidden.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.out(nn.functional.linear(inputs.flatten(1), self.held[0]))
        return outputs


@pytest.mark.parametrize("make", [Holding, lambda: Reading(is_silent=True)])
def test_each_mask_is_tried_and_a_model_that_does_not_bear_it_is_what_it_was(
    make: Callable[[], nn.Module],
) -> None:
    model, expected = make(), make()
    placement = Placement(model, timed({})[1])
    batch = images(4).inputs
    kinds = [type(module) for module in model.modules()]
    # On the first masks there is nothing to place.
    for density in (0.99, 0.05, 0.06):
        weights = start(expected, density, seed=int(100 * density))
        placement.assign(weights, batch)
        assign(expected, weights)
        torch.testing.assert_close(model(batch), expected(batch))
        assert [type(module) for module in model.modules()] == kinds


def test_a_bias_on_a_mask_is_refused() -> None:
    placement = Placement(build_model(APP, 0))
    weights = dict(start(placement.model, 0.3))
    bias = weights["0.bias"]
    assert isinstance(bias, Tensor)
    weights["0.bias"] = SparseTensor(Mask.full((8,)), bias)
    with pytest.raises(InvalidPayload, match=r"0\.bias"):
        placement.assign(weights, None)


def test_a_library_of_another_source_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "checksum", lambda: 1)
    with pytest.raises(OSError, match="another version"):
        library.load("baseline")


def test_where_it_is_known_which_layers_are_dense_nothing_is_timed() -> None:
    asked, measure_layer = timed({})
    placement = Placement(build_model(APP, 0), measure_layer)
    batch = images(4).inputs
    weights = start(placement.model, 0.3)
    placement.assign(weights, batch, whole=True, dense=[NAMES[1]])
    assert sparse_names(placement.model) == [NAMES[0], *NAMES[2:]]
    assert_holds(placement, weights)
    # The masks stay, and it is known better.
    placement.assign(weights, batch, whole=True, dense=[NAMES[0]])
    assert sparse_names(placement.model) == NAMES[1:]
    assert_holds(placement, weights)
    assert asked == []
