"""Units that do nothing are taken out of a model, which computes the same without them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coppice.kernels.compaction import Compaction
from coppice.kernels.placement import Placement
from coppice.kernels.units import units_of
from coppice.masks import masked
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, assign, buffers_of, dense_tensors, parameters_of


def sequence() -> nn.Module:
    """Convolutions without padding, pools and linear layers: all constants can be folded."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 2), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(10, 12), nn.LeakyReLU(0.2), nn.Linear(12, 3),
    )  # fmt: skip


class Residual(nn.Module):
    """Sums, norms, padding, a layer that is used twice, and functions instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(6, 9, 1)
        self.back = nn.Conv2d(9, 6, 1)
        self.hidden = nn.Linear(6 * 16, 14)
        self.norm1 = nn.BatchNorm1d(14)
        self.out = nn.Linear(14, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        values = functional.relu(self.norm(self.stem(inputs)))
        values = self.again(self.again(values).relu())
        values = values + self.back(self.inner(values).tanh())
        values = values.view(values.size(0), -1)
        values = self.norm1(self.hidden(values)).relu()
        outputs: Tensor = self.out(values)
        return outputs


class Pooled(nn.Module):
    """Shapes by hand, and a unit's values in a one-dimensional sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 3)
        self.pool = nn.AdaptiveAvgPool1d(4)
        self.second = nn.Conv1d(8, 5, 2)
        self.out = nn.Linear(15, 3)
        self.drop = nn.Dropout(0.0)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.pool(self.first(inputs.flatten(2).flatten(1)[:, None]).relu())
        values = self.drop(self.second(values).relu())
        outputs: Tensor = self.out(values.reshape(values.shape[0], -1))
        return outputs


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sequence": (sequence, (1, 8, 8)),
    "residual": (Residual, (1, 4, 4)),
    "pooled": (Pooled, (1, 4, 4)),
}


def dying(model: nn.Module, seed: int) -> Weights:
    """The model's weights, on masks that leave many units without inputs or without outputs."""
    torch.manual_seed(seed)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            # Of a constant channel a norm makes its bias, give or take: 0 would be ReLU's kink.
            parameter.data.add_(torch.rand_like(parameter), alpha=0.5)
        else:
            rows, columns = parameter.shape[:2]
            live = (torch.rand(rows) < 0.6)[:, None] & (torch.rand(columns) < 0.6)
            shape = (rows, columns) + (1,) * (parameter.dim() - 2)
            masks[name] = Mask.of((torch.rand(parameter.shape) < 0.7) & live.view(shape))
    tensors = parameters_of(model) | buffers_of(model)
    # Copies: those of the model change when it becomes another one.
    return masked({name: tensor.clone() for name, tensor in tensors.items()}, masks)


def gradients(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    outputs = model(inputs)
    outputs.square().sum().backward()
    found = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return outputs.detach(), found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_the_gradients_that_remain_are_those_of_the_whole_model(
    name: str, seed: int
) -> None:
    make, shape = MODELS[name]
    # In double precision, for a norm makes noise of its own of a constant channel.
    model = make().double()
    weights = dying(model, seed)
    inputs = torch.randn(6, *shape, dtype=torch.float64)
    whole = copy.deepcopy(model)
    assign(whole, weights)
    compaction = Compaction.of(units_of(model), weights)
    small = compaction.shrink(weights)
    Placement(model).assign(weights, None)
    kept = sum(item.numel() for item in model.parameters())
    assert kept < sum(item.numel() for item in whole.parameters())
    expected, whole_gradients = gradients(whole, inputs)
    found, own = gradients(model, inputs)
    torch.testing.assert_close(found, expected)
    # What is left of the whole gradients.
    zeros = {
        key: SparseTensor.take(whole_gradients[key], item.mask)
        if isinstance(item, SparseTensor)
        else whole_gradients.get(key, item)
        for key, item in weights.items()
    }
    left = Compaction(compaction._cuts).shrink(zeros)
    for key, gradient in own.items():
        item = left[key]
        mask = small[key]
        if isinstance(mask, SparseTensor):
            gradient = SparseTensor.take(gradient, mask.mask).dense()
        expected_gradient = item.dense() if isinstance(item, SparseTensor) else item
        torch.testing.assert_close(gradient, expected_gradient)
    # And the way back: what has not changed is as it was, to the last bit.
    back = dense_tensors(compaction.expand(small, weights))
    expected_back = dense_tensors(weights)
    assert back.keys() == expected_back.keys()
    assert all(torch.equal(back[key], expected_back[key]) for key in back)


def chain(weight: Tensor, bias: Tensor, after: Tensor) -> tuple[nn.Module, Weights]:
    """Two linear layers with ReLU between them; zeros of the weights are pruned."""
    rows, columns = weight.shape
    model = nn.Sequential(nn.Linear(columns, rows), nn.ReLU(), nn.Linear(rows, len(after)))
    masks = {"0.weight": Mask.of(weight != 0), "2.weight": Mask.of(after != 0)}
    values = {"0.weight": weight, "0.bias": bias, "2.weight": after, "2.bias": torch.zeros(2)}
    return model, masked(values, masks)


def test_a_constant_goes_into_the_next_bias_and_what_is_left_out_rests() -> None:
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    after = torch.tensor([[1.0, 10.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0]])
    model, weights = chain(weight, torch.tensor([0.1, 0.5, 0.2, 0.3]), after)
    placement = Placement(model)
    placement.assign(weights, None)
    # The second unit reads nothing and makes 0.5; nobody reads the third.
    assert {name: mask.shape for name, mask in placement.masks.items()} == {
        "0.weight": (2, 2),
        "2.weight": (2, 2),
    }
    assert model.get_parameter("2.bias").tolist() == [5.0, 0.0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    found = dense_tensors(placement.weights(weights))
    # Pruned entries of a layer that happens to be dense may have become anything.
    assert (found["0.weight"] - weight)[weight != 0].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert (found["2.weight"] - after)[after != 0].tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(found["0.bias"], torch.tensor([1.1, 0.5, 0.2, 1.3]))
    torch.testing.assert_close(found["2.bias"], torch.tensor([1.0, 1.0]))
    assert placement.buffers({}) == {}


def test_where_everything_is_dead_a_unit_stays() -> None:
    model, weights = chain(torch.zeros(3, 2), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(2, 3))
    Placement(model).assign(weights, None)
    assert model(torch.randn(4, 2)).tolist() == [[0.0, 0.0]] * 4
    after = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    model, weights = chain(torch.zeros(3, 2), torch.tensor([1.0, 2.0, 3.0]), after)
    Placement(model).assign(weights, None)
    torch.testing.assert_close(model(torch.randn(4, 2)), torch.tensor([[14.0, 3.0]] * 4))


def test_other_masks_bring_back_what_rested_and_a_whole_model_has_all() -> None:
    model = sequence()
    first, second = dying(sequence(), 1), dying(sequence(), 2)
    placement, inputs = Placement(model), torch.randn(4, 1, 8, 8)
    for weights, whole in [(first, False), (second, False), (second, True), (first, False)]:
        placement.assign(weights, None, whole=whole)
        expected = sequence()
        assign(expected, weights)
        torch.testing.assert_close(model(inputs), expected(inputs), rtol=1e-4, atol=1e-5)
        shapes = {name: mask.shape for name, mask in placement.masks.items()}
        all_shapes = {name: item.shape for name, item in weights.items() if name in shapes}
        assert (shapes == all_shapes) == whole


class Opaque(nn.Module):
    """A hidden layer, and something done with it that needs all units or hides what it does."""

    def __init__(self, use: Callable[[Opaque, Tensor], Tensor], wide: int = 6) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, wide), nn.Linear(wide, 2)
        self.grouped = nn.Conv1d(wide, wide, 1, groups=2)
        self.norm = nn.GroupNorm(2, wide)
        self.tied = nn.Linear(4, wide)
        self._use = use

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.out(self._use(self, self.hidden(inputs)))
        return outputs


def _tied(model: Opaque) -> Opaque:
    model.tied.weight = model.hidden.weight
    return model


OPAQUE: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: Opaque(lambda _, values: values.softmax(1)),
    "mean": lambda: Opaque(lambda _, values: values - values.mean(1, keepdim=True)),
    "group norm": lambda: Opaque(lambda model, values: model.norm(values)),
    "groups": lambda: Opaque(lambda model, values: model.grouped(values[:, :, None])[:, :, 0]),
    "width": lambda: Opaque(lambda _, values: values / values.shape[1]),
    "view": lambda: Opaque(lambda _, values: values.view(-1, 6)),
    "product": lambda: Opaque(lambda model, values: values * model.out.weight[0]),
    "broadcast": lambda: Opaque(lambda _, values: values + values[:, :1]),
    "flat sequence": lambda: nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(12, 2)),
    "branch": lambda: Opaque(lambda _, values: values if values.sum() > 0 else -values),
    "tied": lambda: _tied(Opaque(lambda _, values: values)),
    "transposed": lambda: Opaque(lambda _, values: values.t().relu().t(), wide=4),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_seen_through_keeps_its_units(name: str) -> None:
    assert units_of(OPAQUE[name]()) == []


def test_what_can_be_seen_through_does_not() -> None:
    seen = Opaque(lambda _, values: values.relu())
    assert [units.makers for units in units_of(seen)] == [["hidden"]]
    assert [len(units_of(MODELS[name][0]())) for name in MODELS] == [3, 3, 2]


def _hooked() -> nn.Module:
    first = nn.Conv2d(1, 6, 3)
    first.register_forward_hook(lambda _, __, outputs: outputs.softmax(1))
    return nn.Sequential(first, nn.Tanh(), nn.Conv2d(6, 3, 2))


class _OneNorm(nn.Module):
    """One norm for the units of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.c(self.norm(self.b(self.norm(self.a(inputs)).relu())).relu())
        return outputs


class _Keeping(nn.Module):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.kept = nn.Linear(4, 6), nn.Linear(6, 2), None

    def forward(self, inputs: Tensor) -> Tensor:
        self.kept = self.a(inputs)
        outputs: Tensor = self.b(self.kept)
        return outputs


UNSEEN: dict[str, Callable[[], nn.Module]] = {
    "hook": _hooked,
    "one norm": _OneNorm,
    "in place": lambda: Opaque(
        lambda _, values: (functional.relu(values, inplace=True), values)[1]
    ),
    "by mode": lambda: Opaque(lambda model, values: values if model.training else -values),
    "weight norm": lambda: nn.Sequential(
        nn.utils.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)
    ),
    "other dimensions": lambda: nn.Sequential(
        nn.Conv1d(1, 6, 1), nn.MaxPool2d((2, 1)), nn.Conv1d(3, 2, 1)
    ),
    "sum pool": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.AvgPool2d(2, divisor_override=1), nn.Conv2d(6, 2, 1)
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_does_otherwise_than_it_looks_keeps_its_units(name: str) -> None:
    assert units_of(UNSEEN[name]()) == []


def test_looking_at_a_model_leaves_nothing_in_it() -> None:
    model = _Keeping()
    assert len(units_of(model)) == 1
    assert model.kept is None
    Placement(model, adapts=False)
    assert model.kept is None
