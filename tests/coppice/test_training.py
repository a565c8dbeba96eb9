"""The local loop: its arithmetic, its batches and its chance."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coppice.app import build_model
from coppice.data import Examples
from coppice.errors import DataError, TaskAbandoned
from coppice.tensors import buffers_of, parameters_of
from coppice.training import Sgd, Trained, train
from tests.coppice.toys import CountingMeter, ToyApp, examples, linear, local, with_buffers

#: Run in a process of its own: torch.optim must not be imported where other tests look for it.
REFERENCE = """
import sys, torch
from safetensors.torch import save_file
from tests.coppice.test_training import SETTINGS, batches_of, training
from tests.coppice.toys import examples
for number, settings in enumerate(SETTINGS):
    app, model, device, sgd = training(**settings)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd.learning_rate,
        momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    for inputs, targets in batches_of(settings):
        optimizer.zero_grad()
        loss = app.loss(model(inputs), targets)
        for parameter, received in zip(model.parameters(), before):
            loss = loss + sgd.proximal / 2 * (parameter - received).square().sum()
        loss.backward()
        optimizer.step()
    save_file(dict(model.named_parameters()), f"{sys.argv[1]}/{number}.safetensors")
"""

SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"weight_decay": 0.05},
    {"momentum": 0.5, "weight_decay": 0.05},
    {"proximal": 0.3},
    {"proximal": 0.3, "momentum": 0.9, "weight_decay": 0.01},
    {"steps": None, "epochs": 3},
]


class Recording(ToyApp):
    """Keeps the batches that it sees."""

    def __init__(self, make_model: Callable[[], nn.Module] = linear) -> None:
        super().__init__(make_model)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.batches.append((outputs, targets))
        return super().loss(outputs, targets)


def settings(**fields: Any) -> Sgd:
    needed = {"learning_rate": 0.1, "steps": 12, "epochs": None, "batch_size": 4}
    return Sgd(**(needed | fields))


def training(**fields: Any) -> tuple[Recording, nn.Module, Any, Sgd]:
    app = Recording()
    return app, build_model(app, seed=1), local(app, examples(22), seed=3), settings(**fields)


def batches_of(fields: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The batches that a training with these settings takes, inputs and targets."""
    app, model, device, sgd = training(**fields)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    train(model, device, sgd)
    return list(zip(seen, (targets for _, targets in app.batches), strict=True))


# ---- arithmetic --------------------------------------------------------------------------------


def test_the_steps_are_those_of_torch_optim_and_of_fedprox(tmp_path: Any) -> None:
    subprocess.run([sys.executable, "-c", REFERENCE, tmp_path], check=True, timeout=100)
    for number, fields in enumerate(SETTINGS):
        _, model, device, sgd = training(**fields)
        train(model, device, sgd)
        reference = load_file(tmp_path / f"{number}.safetensors")
        # FedProx by autograd rounds differently; all else is the same to the bit.
        within = 1e-6 if sgd.proximal else 0.0
        parameters = dict(model.named_parameters())
        assert parameters.keys() == reference.keys()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, reference[name], rtol=within, atol=within)


def test_momentum_weight_decay_and_proximal_do_something() -> None:
    ends = []
    for fields in SETTINGS:
        _, model, device, sgd = training(**fields)
        train(model, device, sgd)
        ends.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert all(not torch.allclose(one, other) for one in ends for other in ends if one is not other)


def test_a_parameter_without_gradient_stays() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = linear(), nn.Linear(2, 2)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.used(inputs) * self.frozen
            return outputs

    app = ToyApp(Partly)
    model = build_model(app, 0)
    before = {name: tensor.clone() for name, tensor in parameters_of(model).items()}
    train(model, local(app, examples(8)), settings(momentum=0.9, weight_decay=0.1, proximal=0.1))
    after = parameters_of(model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"used.weight", "used.bias"}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_is_the_mean_over_the_steps() -> None:
    app, model, device, sgd = training(steps=5)
    trained = train(model, device, sgd)
    losses = [nn.functional.cross_entropy(*batch).item() for batch in app.batches]
    assert trained.steps == len(losses) == 5
    assert trained.loss == pytest.approx(sum(losses) / 5, rel=1e-12)


def test_a_loss_of_one_element_is_as_good_as_a_scalar() -> None:
    class OneElement(ToyApp):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets).reshape(1)

    one, other = OneElement(linear), ToyApp(linear)
    models = build_model(one, 1), build_model(other, 1)
    ends = [
        train(model, local(app, examples(8)), settings())
        for app, model in zip((one, other), models, strict=True)
    ]
    assert ends[0] == ends[1]
    for left, right in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(left, right)


# ---- batches -----------------------------------------------------------------------------------


def sizes(count: int, **fields: Any) -> list[int]:
    app = Recording()
    meter = CountingMeter()
    device = local(app, examples(count), meter=meter)
    trained = train(build_model(app, 0), device, settings(**fields))
    assert trained.steps == meter.steps == len(app.batches)
    return [len(targets) for _, targets in app.batches]


@pytest.mark.parametrize(
    ("count", "fields", "expected"),
    [
        (10, {"steps": 6}, [4, 4, 2, 4, 4, 2]),
        (10, {"steps": 2}, [4, 4]),
        (10, {"steps": None, "epochs": 2}, [4, 4, 2] * 2),
        (8, {"steps": None, "epochs": 1}, [4, 4]),
        (2, {"steps": 3}, [2, 2, 2]),
        (1, {"steps": 2}, [1, 1]),
        (9, {"steps": None, "epochs": 2}, [4, 5] * 2),
        (5, {"steps": 2}, [5, 5]),
        (3, {"steps": None, "epochs": 1, "batch_size": 1}, [1, 1, 1]),
        (10, {"steps": 0}, []),
        (0, {"steps": 5}, []),
        (0, {"steps": None, "epochs": 5}, []),
    ],
)
def test_steps_and_epochs_take_the_batches_they_should(
    count: int, fields: dict[str, Any], expected: list[int]
) -> None:
    assert sizes(count, **fields) == expected


def test_an_epoch_has_every_example_once_and_the_next_another_order() -> None:
    numbers = Examples(torch.arange(22), torch.arange(22))
    seen: list[int] = []

    class Numbers(ToyApp):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            seen.extend(targets.tolist())
            return outputs.sum()

    app = Numbers(lambda: nn.Embedding(22, 1))
    train(build_model(app, 0), local(app, numbers), settings(steps=None, epochs=2))
    assert sorted(seen[:22]) == sorted(seen[22:]) == list(range(22))
    assert seen[:22] != seen[22:]


def test_without_a_step_nothing_changes_and_there_is_no_loss() -> None:
    for count, steps in ((0, 5), (10, 0)):
        app = ToyApp(with_buffers)
        model, other = build_model(app, 0), build_model(app, 0)
        trained = train(model, local(app, examples(count)), settings(steps=steps))
        assert trained.steps == 0
        assert math.isnan(trained.loss)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_batch_norm_is_never_given_a_lone_last_example() -> None:
    app = ToyApp(with_buffers)
    model = build_model(app, 0)
    assert train(model, local(app, examples(9)), settings(steps=None, epochs=1)).steps == 2
    assert buffers_of(model)["1.num_batches_tracked"].item() == 2


def test_batches_that_are_given_are_those_that_are_taken() -> None:
    app = Recording()
    data = examples(10)
    batches = [torch.tensor([3, 1]), torch.tensor([3, 1]), torch.tensor([9])]
    meter = CountingMeter()
    device = local(app, data, meter=meter)
    trained = train(build_model(app, 0), device, settings(steps=1), batches=iter(batches))
    assert trained.steps == meter.steps == 3
    taken = [targets.tolist() for _, targets in app.batches]
    assert taken == [data.targets[indices].tolist() for indices in batches]


# ---- chance ------------------------------------------------------------------------------------


def trained(seed: int) -> tuple[Trained, list[Tensor]]:
    app = ToyApp(with_buffers)
    model = build_model(app, 0)
    return train(model, local(app, examples(30), seed=seed), settings()), list(model.parameters())


def test_all_chance_comes_from_the_devices_generator() -> None:
    torch.manual_seed(1)
    first = trained(seed=5)
    torch.manual_seed(2)
    again, other = trained(seed=5), trained(seed=6)
    assert first[0] == again[0] != other[0]
    assert all(torch.equal(one, two) for one, two in zip(first[1], again[1], strict=True))


def test_dropout_draws_anew_in_every_step() -> None:
    app = Recording(lambda: nn.Sequential(nn.Dropout(0.5), linear()))
    one = examples(4).subset(torch.tensor([0]))
    train(build_model(app, 0), local(app, one), settings(steps=4, learning_rate=1e-12))
    assert len({tuple(outputs.flatten().tolist()) for outputs, _ in app.batches}) > 1


def numpy_state() -> Any:
    state: Any = np.random.get_state()
    return state[1]


@pytest.mark.parametrize("limit", [None, 3])
def test_global_generators_stay_as_they_were(limit: int | None) -> None:
    app = ToyApp(with_buffers)
    model = build_model(app, 0)
    before, numpy_before = torch.get_rng_state(), numpy_state()
    try:
        train(model, local(app, examples(30), meter=CountingMeter(limit)), settings())
    except TaskAbandoned:
        assert limit
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(numpy_state(), numpy_before)


def test_a_task_that_is_abandoned_ends_with_that_step() -> None:
    app, meter = Recording(), CountingMeter(limit=3)
    with pytest.raises(TaskAbandoned):
        train(build_model(app, 0), local(app, examples(30), meter=meter), settings())
    assert len(app.batches) == 3


def test_training_does_not_import_what_a_small_device_has_no_memory_for() -> None:
    code = (
        "import sys, tests.coppice.test_training as t\n"
        "_, model, device, sgd = t.training(momentum=0.9)\n"
        "t.train(model, device, sgd)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_single_example_that_batch_norm_cannot_train_on_is_refused_in_words() -> None:
    device = local(ToyApp(with_buffers), examples(1), seed=3)
    with pytest.raises(DataError, match="a batch of one example: give the device more data"):
        train(with_buffers(), device, settings())
