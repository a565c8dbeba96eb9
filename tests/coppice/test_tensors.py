"""Named tensors: their algebra, their specs, and a module's parameters and buffers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coppice.errors import InvalidPayload
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import (
    DTYPES,
    MASK,
    Payload,
    TensorSpec,
    Weights,
    add,
    assign,
    buffers_of,
    dense_group,
    dense_tensors,
    dtype_name,
    masks_of,
    parameters_of,
    spec_of,
    subtract,
    weight_group,
)


class Odd(nn.Module):
    """Tied weights, a frozen parameter, whole numbers as parameters, and buffers of all sorts."""

    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.tied = self.first
        self.frozen = nn.Parameter(torch.full((3,), fill), requires_grad=False)
        self.codes = nn.Parameter(torch.tensor([1, 2], dtype=torch.int8), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("seen", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.full((4,), fill), persistent=False)
        self.register_buffer("absent", None)
        nn.init.constant_(self.first.weight, fill)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.first(inputs))
        return outputs


PARAMETERS = ["frozen", "first.weight", "norm.weight", "norm.bias"]
BUFFERS = ["codes", "seen", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


# ---- a module's tensors ------------------------------------------------------------------------


def test_every_tensor_of_a_models_state_is_a_parameter_or_a_buffer_once() -> None:
    model = Odd()
    assert list(parameters_of(model)) == PARAMETERS
    assert list(buffers_of(model)) == BUFFERS
    assert set(PARAMETERS + BUFFERS) == model.state_dict().keys() - {"tied.weight"}


def test_parameters_are_what_can_be_averaged() -> None:
    assert all(tensor.is_floating_point() for tensor in parameters_of(Odd()).values())


def test_views_of_a_model_follow_it_without_a_gradient() -> None:
    model = Odd()
    weight = parameters_of(model)["first.weight"]
    assert not weight.requires_grad
    with torch.no_grad():
        model.first.weight.fill_(2.0)
    assert weight.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_assigning_makes_one_model_the_other() -> None:
    one, other = Odd(1.0), Odd(2.0)
    other(torch.ones(4, 2))
    tensors = parameters_of(other) | buffers_of(other)
    assign(one, tensors)
    for name, tensor in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], tensor)
    assert one.tied is one.first
    assert one.get_buffer("scratch").tolist() == [1.0] * 4
    assert one.first.weight.requires_grad
    # Copied, not shared.
    one.first.weight.data.fill_(7.0)
    assert tensors["first.weight"].flatten().tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("norm.bias", None, "1 names differ, 'norm.bias' is one"),
        ("norm.extra", torch.zeros(2), "1 names differ, 'norm.extra' is one"),
        ("norm.bias", torch.zeros(3), r"norm.bias is torch.float32 \[3\]; .* \[2\]"),
        ("norm.bias", torch.zeros(2, 1), r"norm.bias is torch.float32 \[2, 1\]"),
        ("norm.bias", torch.zeros(2).double(), r"norm.bias is torch.float64 \[2\]"),
        ("seen", torch.zeros(2), r"seen is torch.float32 .* needs torch.bool"),
    ],
)
def test_tensors_of_another_model_change_nothing(
    name: str, tensor: Tensor | None, message: str
) -> None:
    model = Odd(1.0)
    tensors = {
        key: torch.zeros_like(value)
        for key, value in (parameters_of(model) | buffers_of(model)).items()
        if key != name or tensor is not None
    }
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(InvalidPayload, match=message):
        assign(model, tensors)
    assert model.frozen.tolist() == [1.0] * 3


# ---- algebra -----------------------------------------------------------------------------------


def test_adding_what_was_subtracted_gives_it_back() -> None:
    left = {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor(0.25)}
    right = {"b": torch.tensor(1.0), "a": torch.tensor([0.5, 4.0])}
    difference = dense_tensors(subtract(left, right))
    assert list(difference) == ["a", "b"]
    assert difference["a"].tolist() == [1.0, -6.0]
    back = add(right, difference)
    assert list(back) == ["b", "a"]
    assert all(torch.equal(back[name], left[name]) for name in left)


def test_adding_scales_the_right_side_and_keeps_the_lefts_type() -> None:
    left = {"a": torch.tensor([1.0, 2.0], dtype=torch.float16)}
    summed = add(left, {"a": torch.tensor([2.0, 4.0], dtype=torch.float64)}, 0.5)
    assert summed["a"].dtype == torch.float16
    assert summed["a"].tolist() == [2.0, 4.0]
    assert left["a"].tolist() == [1.0, 2.0]


# ---- sparse ------------------------------------------------------------------------------------


def on(*kept: int, values: list[float], dtype: torch.dtype = torch.float32) -> SparseTensor:
    """A tensor of four entries with these values at the kept places."""
    bits = torch.zeros(4, dtype=torch.bool)
    bits[list(kept)] = True
    return SparseTensor(Mask.of(bits), torch.tensor(values, dtype=dtype))


def test_what_is_subtracted_from_decides_nothing_outside_the_mask() -> None:
    left = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor(3.0)}
    found = subtract(left, {"w": on(1, 3, values=[0.5, 4.0]), "b": torch.tensor(1.0)})
    sparse = found["w"]
    assert isinstance(sparse, SparseTensor)
    assert sparse.mask == on(1, 3, values=[0.0, 0.0]).mask
    # A difference of 0 is one all the same.
    assert sparse.values.tolist() == [1.5, 0.0]
    assert found["b"] == torch.tensor(2.0)


def test_adding_on_a_mask_adds_the_values_in_the_lefts_type() -> None:
    left = {"w": on(0, 2, values=[1.0, 2.0], dtype=torch.float16)}
    summed = add(left, {"w": on(0, 2, values=[2.0, 4.0], dtype=torch.float64)}, 0.5)["w"]
    assert isinstance(summed, SparseTensor)
    assert summed.mask == left["w"].mask
    assert summed.dtype == torch.float16
    assert summed.values.tolist() == [2.0, 4.0]
    assert left["w"].values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("right", [on(0, 1, values=[1.0, 1.0]), on(0, values=[1.0]), torch.ones(4)])
def test_adding_on_different_masks_is_refused(right: Tensor | SparseTensor) -> None:
    with pytest.raises(ValueError, match="different masks cannot be added"):
        add({"w": on(0, 2, values=[1.0, 1.0])}, {"w": right})


def test_a_group_is_dense_or_it_is_refused() -> None:
    sparse, tensor = on(0, values=[1.0]), torch.ones(2)
    payload: Payload = {"dense": {"t": tensor}, "sparse": {"t": tensor, "s": sparse}}
    assert dense_group(payload, "dense") == {"t": tensor}
    assert dense_group(payload, "none") == {}
    assert weight_group(payload, "sparse") == {"t": tensor, "s": sparse}
    assert weight_group(payload, "none") == {}
    with pytest.raises(InvalidPayload, match="sparse/s is not a dense tensor"):
        dense_group(payload, "sparse")
    masks: Payload = {"m": {"x": sparse.mask}}
    with pytest.raises(InvalidPayload, match="m/x is not a dense tensor"):
        dense_group(masks, "m")
    with pytest.raises(InvalidPayload, match="m/x is a mask, not a tensor"):
        weight_group(masks, "m")


def test_masks_and_dense_tensors_of_weights() -> None:
    sparse, tensor = on(1, 2, values=[5.0, 0.0]), torch.ones(2)
    weights: Weights = {"s": sparse, "t": tensor}
    assert masks_of(weights) == {"s": sparse.mask}
    dense = dense_tensors(weights)
    assert dense["s"].tolist() == [0.0, 5.0, 0.0, 0.0]
    assert dense["t"] is tensor


def test_the_spec_of_a_sparse_tensor_names_its_mask() -> None:
    sparse = on(1, 2, values=[5.0, 0.0], dtype=torch.float16)
    assert spec_of({"g": {"s": sparse, "m": sparse.mask}}) == {
        "g": {
            "s": TensorSpec((4,), "float16", 2, sparse.mask.fingerprint),
            "m": TensorSpec((4,), MASK, 2),
        }
    }


def test_a_sparse_tensor_is_assigned_with_zeros_outside_its_mask() -> None:
    model = nn.Linear(2, 2, bias=False)
    kept = Mask.of(torch.tensor([[False, True], [True, False]]))
    assign(model, {"weight": SparseTensor(kept, torch.tensor([3.0, 4.0]))})
    assert model.weight.tolist() == [[0.0, 3.0], [4.0, 0.0]]
    other = SparseTensor(Mask.full((4,)), torch.ones(4))
    with pytest.raises(InvalidPayload, match=r"weight is torch.float32 \[4\]; this model needs"):
        assign(model, {"weight": other})
    assert model.weight.tolist() == [[0.0, 3.0], [4.0, 0.0]]


# ---- specs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_that_travels_has_its_name_and_size(name: str) -> None:
    tensor = torch.zeros(3, 2).to(DTYPES[name])
    assert dtype_name(tensor.dtype) == name
    spec = spec_of({"g": {"n": tensor}})["g"]["n"]
    assert spec == TensorSpec((3, 2), name)
    assert spec.size_bytes == tensor.nbytes


@pytest.mark.parametrize("shape", [(), (0,), (2**32, 2**32), (5, 0, 7)])
def test_the_size_of_any_shape_is_exact(shape: tuple[int, ...]) -> None:
    expected = {(): 4, (0,): 0, (2**32, 2**32): 2**66, (5, 0, 7): 0}[shape]
    assert TensorSpec(shape, "float32").size_bytes == expected


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.float8_e4m3fn])
def test_a_type_that_cannot_travel_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidPayload, match=f"{dtype} cannot travel; allowed are float32, "):
        spec_of({"g": {"n": torch.zeros(1).to(dtype)}})
