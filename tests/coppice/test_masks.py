"""The masks of a model: which weights they may be of, and what moving to new ones does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coppice.errors import RunFileError
from coppice.masks import density, full_masks, masked, prunable_names, random_mask, remask
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import masks_of, parameters_of


class Everything(nn.Module):
    """A layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 2, 3)
        self.conv2 = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.conv3 = nn.Conv3d(1, 2, 3)
        self.turned = nn.ConvTranspose2d(1, 2, 3)
        self.norm = nn.LayerNorm(4)
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 1)
        self.bilinear = nn.Bilinear(2, 2, 1)
        self.linear = nn.Linear(4, 3)
        self.own = nn.Parameter(torch.ones(2, 2))


class Tied(nn.Module):
    """Weights that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5)
        self.output.weight = self.embedding.weight
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_weights_of_linear_and_convolution_layers_can_be_pruned() -> None:
    assert prunable_names(Everything()) == [
        "conv1.weight",
        "conv2.0.weight",
        # A linear layer inside of another.
        "attention.out_proj.weight",
        "linear.weight",
    ]


def test_a_weight_that_another_kind_of_layer_shares_stays_dense() -> None:
    assert prunable_names(Tied()) == ["first.weight"]
    assert prunable_names(nn.Sequential(Tied().output, nn.Linear(2, 2))) == [
        "0.weight",
        "1.weight",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_type_stay_dense(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=dtype))
    assert prunable_names(model) == ["0.weight"]


def test_weights_that_are_to_stay_dense_do() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert prunable_names(model, ["1.weight", "2.weight"]) == ["0.weight"]
    assert prunable_names(nn.LayerNorm(3)) == []


@pytest.mark.parametrize("name", ["1.weight", "0.bias", "0", ""])
def test_a_name_to_keep_dense_that_is_no_weight_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    says = f"method.keep_dense names '{name}'; .* are 0.weight, 2.weight"
    with pytest.raises(RunFileError, match=says):
        prunable_names(model, ["0.weight", name])


def test_full_masks_keep_every_value() -> None:
    model = Tied()
    parameters = parameters_of(model)
    weights = masked(parameters, full_masks(model, prunable_names(model)))
    assert list(weights) == list(parameters)
    assert masks_of(weights) == {"first.weight": Mask.full((4, 4))}
    first = weights["first.weight"]
    assert isinstance(first, SparseTensor)
    assert torch.equal(first.dense(), parameters["first.weight"])
    assert weights["first.bias"] is parameters["first.bias"]


def test_density_is_over_all_weights_not_over_layers() -> None:
    small, large = Mask.full((2,)), Mask.of(torch.zeros(3, 2, dtype=torch.bool))
    assert density([small, large]) == 0.25
    assert density([]) == 1.0
    assert density([Mask.full((0, 3))]) == 1.0


# ---- new masks ---------------------------------------------------------------------------------


def mask(*bits: int) -> Mask:
    return Mask.of(torch.tensor(bits, dtype=torch.bool))


def moved(values: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> SparseTensor:
    """Weights 1, 2 and 3 in five places, of which the second goes and the last two come."""
    old = SparseTensor(mask(1, 1, 1, 0, 0), torch.tensor([1.0, 2.0, 3.0], dtype=dtype))
    bias = torch.ones(2)
    weights = remask({"w": old, "b": bias}, {"w": mask(1, 0, 1, 1, 1)}, values)
    assert list(weights) == ["w", "b"]
    assert weights["b"] is bias
    assert old.values.tolist() == [1.0, 2.0, 3.0]
    found = weights["w"]
    assert isinstance(found, SparseTensor)
    assert found.mask == mask(1, 0, 1, 1, 1)
    assert found.dtype == dtype
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_what_grows_back_begins_at_zero_and_the_rest_keeps_its_value(dtype: torch.dtype) -> None:
    assert moved({}, dtype).values.tolist() == [1.0, 3.0, 0.0, 0.0]


def test_what_grows_back_may_have_a_given_value() -> None:
    given = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    assert moved({"w": given, "other": torch.zeros(1)}).values.tolist() == [1.0, 3.0, 40.0, 50.0]
    assert given.tolist() == [10.0, 20.0, 30.0, 40.0, 50.0]


def test_a_random_mask_has_its_density_throughout_and_depends_on_the_generator_only() -> None:
    # More entries than are drawn at once, and not whole bytes of them.
    shape = (7, 3, 9999)
    first, again = (random_mask(shape, 0.1, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == again
    assert first.shape == shape
    assert first != random_mask(shape, 0.1, torch.Generator().manual_seed(2))
    by_row = first.bits.reshape(21, -1).float().mean(dim=1)
    assert by_row.min() > 0.08
    assert by_row.max() < 0.12
    assert random_mask((0, 3), 0.5, torch.Generator()).count == 0
    assert random_mask((4, 3), 1.0, torch.Generator()).density == 1.0
