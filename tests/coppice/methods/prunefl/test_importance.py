"""Both channels of importance tell the same, and neither outweighs the other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from coppice.domain import ClientId, WireSpec
from coppice.kernels.stepping import Watch
from coppice.method import Update
from coppice.methods.prunefl.importance import Importance, Tally
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import Weights, parameters_of, subtract
from coppice.training import Sgd, train
from tests.coppice.methods.prunefl.small import NAMES, settings
from tests.coppice.toys import ToyApp, examples, local, two_layers

ETA = 0.05
MASK = Mask.of(torch.tensor([[True, False], [True, True]]))


def gradients_both_ways(momentum: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """n · (Σ g)² as the server reads it off the update, and as the device sums it."""
    torch.manual_seed(0)
    model = two_layers().double()
    before = {name: tensor.clone() for name, tensor in parameters_of(model).items()}
    data = examples(12)
    device = local(ToyApp(two_layers), type(data)(data.inputs.double(), data.targets))
    sums: dict[str, torch.Tensor] = {}

    def see(name: str, gradient: torch.Tensor | SparseTensor) -> None:
        assert isinstance(gradient, torch.Tensor)
        sums[name] = sums.get(name, torch.zeros(())) + gradient

    sgd = Sgd(learning_rate=ETA, steps=4, epochs=None, batch_size=3, momentum=momentum)
    train(model, device, sgd, watch=Watch(see, pruned_too=True))
    weights: Weights = {
        name: SparseTensor.take(tensor, Mask.full(tuple(tensor.shape))) if name in NAMES else tensor
        for name, tensor in before.items()
    }
    update = Update(
        ClientId("a"), {"delta": subtract(parameters_of(model), weights)}, num_examples=12
    )
    tally = Tally(Importance(), weights)
    tally.add_delta(update, ETA)
    read = {name: values.double() for name, values in tally.gathered().kept.items()}
    return read, {name: 12 * sums[name].reshape(-1).square() for name in NAMES}


def test_the_update_and_the_device_say_the_same_of_kept_weights() -> None:
    read, summed = gradients_both_ways(momentum=0.0)
    for name in NAMES:
        torch.testing.assert_close(read[name], summed[name], rtol=1e-5, atol=0)


def test_with_momentum_the_update_says_something_else() -> None:
    read, summed = gradients_both_ways(momentum=0.9)
    assert not any(torch.allclose(read[name], summed[name], rtol=1e-1) for name in NAMES)


@pytest.mark.parametrize("key", ["momentum", "weight_decay", "proximal"])
def test_reading_gradients_off_updates_is_refused_without_plain_sgd(key: str) -> None:
    with pytest.raises(ValueError, match="only plain SGD"):
        settings(importance="every_round", **{key: 0.9})
    assert settings(importance="last_step", **{key: 0.9}).importance == "last_step"


def test_settings_under_which_it_could_not_work_are_refused() -> None:
    with pytest.raises(ValueError, match="divides by the learning rate"):
        settings(importance="every_round", schedule="cosine")
    assert settings(importance="last_step", schedule="cosine").schedule == "cosine"
    with pytest.raises(ValueError, match="nothing would ever be pruned"):
        settings(prune_share=0.05, sparse_below=0.9)
    assert settings(prune_share=0.0, sparse_below=0.9).prune_share == 0.0
    assert settings(prune_share=0.05, sparse_below=1.0).prune_share == 0.05


def test_reading_gradients_off_rounded_updates_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wire\.up"):
        settings(importance="every_round").check_wire(WireSpec(up="int8"))
    settings(importance="every_round").check_wire(WireSpec(down="int8"))
    settings(importance="last_step").check_wire(WireSpec(up="int8"))


def sparse(values: list[float], mask: Mask = MASK) -> SparseTensor:
    return SparseTensor(mask, torch.tensor(values))


def update(examples: int, **groups: Mapping[str, Item]) -> Update:
    return Update(ClientId("a"), groups, num_examples=examples)


def test_kept_weights_gather_over_rounds_and_pruned_ones_when_reported() -> None:
    weights: Weights = {"w": sparse([0.0, 0.0, 0.0]), "bias": torch.zeros(1)}
    tally = Tally(Importance(), weights)
    delta: Weights = {"w": sparse([0.1, -0.2, 0.0]), "bias": torch.tensor([0.3])}
    tally.add_delta(update(2, delta=delta), 0.1)
    again = Tally(tally.gathered(), weights)
    again.add_delta(update(3, delta=delta), 0.1)
    reported = sparse([10.0], MASK.complement())
    mass = torch.tensor(5.0, dtype=torch.float64)
    again.add_report(update(3, importance={"w": reported}, base={"mass": mass}))
    dense, base = again.importance()
    # By example: (2 + 3) · (Δ/η)² / 5, and 10 / 5.
    torch.testing.assert_close(dense["w"], torch.tensor([[1.0, 2.0], [4.0, 0.0]]))
    assert base == pytest.approx(9.0)


def test_a_weight_that_few_devices_report_is_not_worth_less_for_it() -> None:
    """Equal true gradients; ten devices train, one of them reports."""
    weights = {"w": sparse([0.0, 0.0, 0.0])}
    tally = Tally(Importance(), weights)
    for _ in range(10):
        tally.add_delta(update(4, delta={"w": sparse([0.1, 0.1, 0.1])}), 0.1)
    reported = sparse([4.0], MASK.complement())
    mass = torch.tensor(4.0, dtype=torch.float64)
    tally.add_report(update(4, importance={"w": reported}, base={"mass": mass}))
    torch.testing.assert_close(tally.importance()[0]["w"], torch.ones(2, 2))


def test_a_report_of_all_weights_counts_for_kept_and_pruned_ones() -> None:
    weights = {"w": sparse([0.0, 0.0, 0.0])}
    tally = Tally(Importance(), weights)
    whole = torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    base = {"importance": torch.tensor(6.0, dtype=torch.float64)}
    tally.add_report(update(2, importance={"w": whole}, base=base))
    dense, base_importance = tally.importance()
    torch.testing.assert_close(dense["w"], whole / 2)
    assert base_importance == 3.0


def test_nothing_gathered_is_worth_nothing() -> None:
    dense, base = Tally(Importance(), {"w": sparse([1.0, 1.0, 1.0])}).importance()
    assert base == 0.0
    assert not dense["w"].any()


def test_what_no_sum_of_squares_can_be_counts_as_nothing() -> None:
    weights = {"w": sparse([0.0, 0.0, 0.0])}
    tally = Tally(Importance(), weights)
    most = torch.finfo(torch.float32).max
    whole = torch.tensor([[-1.0, most], [2.0, -most]])
    base = {"importance": torch.tensor(-5.0, dtype=torch.float64)}
    for _ in range(3):
        tally.add_report(update(1, importance={"w": whole}, base=base))
    huge = {"importance": torch.tensor(1.7e308, dtype=torch.float64)}
    for mass in (-1e30, 1e308):
        tally.add_report(update(1, base={"mass": torch.tensor(mass, dtype=torch.float64)}))
    dense, base_importance = tally.importance()
    # Three have 3 examples together, which is the most that the last one's can count for.
    torch.testing.assert_close(dense["w"], torch.tensor([[0.0, most / 2], [2.0, 0.0]]))
    assert base_importance == 0.0
    assert torch.isfinite(tally.gathered().kept["w"]).all()
    for _ in range(3):
        tally.add_report(update(1, importance={"w": whole}, base=huge))
    assert tally.importance()[1] < float("inf")
