"""Batches in parts: the steps and gradients of whole batches, from less memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.app import build_model
from coppice.data import Examples
from coppice.domain import ModelSpec
from coppice.kernels.placement import Placement, sparse_layers, weights_of
from coppice.kernels.stepping import Watch
from coppice.masks import masked
from coppice.models import make_model
from coppice.sparse import SparseTensor
from coppice.tensors import assign, dense_tensors, masks_of
from coppice.training import Trained, train
from tests.coppice.kernels.nets import Twice, images, start
from tests.coppice.test_training import SETTINGS, settings
from tests.coppice.toys import CLASSES, ToyApp, examples, linear, local, with_buffers


def registered(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return make_model(ModelSpec(name=name), (1, 8, 8), CLASSES)

    return make


def trained(
    make: Callable[[], nn.Module], sparse: bool, watch: Watch | None = None, **fields: Any
) -> tuple[dict[str, Tensor], Trained]:
    app = ToyApp(make)
    model = build_model(app, 0)
    weights = start(model, 0.3)
    if sparse:
        Placement(model).assign(weights, None, whole=True)
        assert dict(sparse_layers(model))
    else:
        assign(model, weights)
    done = train(
        model, local(app, images(43)), settings(**fields), masks=masks_of(weights), watch=watch
    )
    return dense_tensors(masked(dense_tensors(weights_of(model)), masks_of(weights))), done


@pytest.mark.parametrize("fields", [SETTINGS[0], *SETTINGS[-2:]], ids=str)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("make", [registered("mlp"), registered("conv2"), Twice])
def test_steps_in_parts_are_those_of_whole_batches(
    make: Any, sparse: bool, fields: dict[str, Any]
) -> None:
    # The last batch of an epoch has 3 examples, the others cannot be split evenly.
    sizes: dict[str, Any] = {"batch_size": 10, "steps": 9} | fields
    whole, loss = trained(make, sparse, **sizes)
    for parts in (2, 4):
        found, same_loss = trained(make, sparse, parts=parts, **sizes)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
        assert same_loss.loss == pytest.approx(loss.loss, rel=1e-5)
        assert same_loss.steps == loss.steps


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("pruned_too", [False, True])
@pytest.mark.parametrize("make", [registered("conv2"), Twice])
def test_who_watches_sees_each_steps_gradients_of_the_whole_batch_once(
    make: Any, pruned_too: bool, sparse: bool
) -> None:
    seen: list[list[tuple[str, Tensor]]] = []
    for parts in (1, 4):
        gradients: list[tuple[str, Tensor]] = []

        def see(
            name: str,
            gradient: Tensor | SparseTensor,
            gradients: list[tuple[str, Tensor]] = gradients,
        ) -> None:
            dense = gradient.dense() if isinstance(gradient, SparseTensor) else gradient
            gradients.append((name, dense.clone()))

        trained(make, sparse, Watch(see, pruned_too), parts=parts, batch_size=9, steps=2)
        seen.append(sorted(gradients, key=lambda item: item[0]))
    whole, in_parts = seen
    assert [name for name, _ in in_parts] == [name for name, _ in whole]
    for (name, found), (_, expected) in zip(in_parts, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6, msg=name)


def sizes_of(batch_size: int, parts: int, count: int, steps: int) -> Sequence[int]:
    app = ToyApp(linear)
    model = build_model(app, 0)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    train(
        model,
        local(app, examples(count)),
        settings(batch_size=batch_size, parts=parts, steps=steps),
    )
    return seen


def test_parts_are_as_equal_as_can_be_and_never_one_example() -> None:
    assert sizes_of(20, parts=1, count=40, steps=1) == [20]
    assert sizes_of(20, parts=8, count=40, steps=1) == [3, 3, 3, 3, 2, 2, 2, 2]
    # The rest of the epoch is 5 examples, then 3.
    assert sizes_of(20, parts=8, count=25, steps=2)[8:] == [3, 2]
    assert sizes_of(20, parts=8, count=23, steps=2)[8:] == [3]
    assert sizes_of(1, parts=8, count=3, steps=3) == [1, 1, 1]


def test_batch_norm_trains_in_as_many_parts_as_can_be() -> None:
    app = ToyApp(with_buffers)
    model = build_model(app, 0)
    train(model, local(app, examples(9)), settings(batch_size=4, parts=4, steps=None, epochs=1))
    # Of batches of 4 and 5 examples, two parts each.
    assert model.get_buffer("1.num_batches_tracked").item() == 4


def test_a_gradient_besides_the_layers_own_is_of_all_parts() -> None:
    class Scaled(nn.Module):
        """Its layer's weight acts on the loss by another way, too."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.out(self.hidden(inputs.flatten(1)).tanh())
            return outputs * (1 + self.hidden.weight.square().sum())

    whole, _ = trained(Scaled, sparse=True, batch_size=8)
    in_parts, _ = trained(Scaled, sparse=True, batch_size=8, parts=4)
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-6)


#: Prints by how many bytes training grows the process, whose batch takes some 50 MB.
_GROWTH = """
import sys, torch
torch.set_num_threads(1)
from coppice.memory import forget_peak, give_back, peak_resident_bytes, resident_bytes
from tests.coppice.test_training_parts import growing
growing(8)
give_back()
held = resident_bytes()
forget_peak()
growing(int(sys.argv[1]))
print(peak_resident_bytes() - held)
"""


def growing(parts: int) -> None:
    def wide() -> nn.Module:
        layers = [nn.Linear(4, 4096), nn.Tanh(), *[nn.Tanh() for _ in range(20)]]
        return nn.Sequential(*layers, nn.Linear(4096, CLASSES))

    app = ToyApp(wide)
    many = Examples(torch.zeros(128, 4), torch.zeros(128, dtype=torch.long))
    train(build_model(app, 0), local(app, many), settings(batch_size=128, parts=parts, steps=2))


def test_parts_take_less_memory() -> None:
    whole, in_parts = (
        int(subprocess.check_output([sys.executable, "-c", _GROWTH, parts], timeout=100))
        for parts in ("1", "8")
    )
    assert whole > 30_000_000
    assert in_parts < whole / 3
