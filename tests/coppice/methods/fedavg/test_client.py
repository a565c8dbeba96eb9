"""FedAvg's client half: what it sends, what it leaves alone, and what it forgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.app import build_model
from coppice.domain import TaskKind
from coppice.errors import InvalidPayload, TaskAbandoned
from coppice.method import Task
from coppice.methods.fedavg.client import Client
from coppice.methods.fedavg.settings import Settings
from coppice.tensors import Payload, buffers_of, dense_group, parameters_of
from coppice.training import Sgd, evaluate, train
from tests.coppice.toys import CountingMeter, ToyApp, examples, linear, local, with_buffers


def client(**settings: Any) -> Client:
    return Client(Settings(**({"local_steps": 3, "batch_size": 4} | settings)))


def task(app: ToyApp, seed: int = 7, **settings: Any) -> Task:
    model = build_model(app, seed)
    payload = {"parameters": parameters_of(model), "buffers": buffers_of(model)}
    return Task(TaskKind.TRAIN, 1, payload, {"learning_rate": 0.1} | settings)


def copied(payload: Payload) -> dict[str, Tensor]:
    return {
        f"{group}/{name}": tensor.clone()
        for group in payload
        for name, tensor in dense_group(payload, group).items()
    }


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("make_model", [linear, with_buffers])
def test_the_update_is_what_training_changed(make_model: Callable[[], nn.Module]) -> None:
    app = ToyApp(make_model)
    work = task(app, learning_rate=0.05)
    device = local(app, examples(10), seed=1)
    settings: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01, "proximal": 0.1}
    update = client(**settings).run(work, device)

    model = build_model(app, 7)
    sgd = Sgd(learning_rate=0.05, steps=3, epochs=None, batch_size=4, **settings)
    trained = train(model, local(app, examples(10), seed=1), sgd)
    delta = {
        name: tensor - dense_group(work.payload, "parameters")[name]
        for name, tensor in parameters_of(model).items()
    }
    assert_same(dense_group(update.payload, "delta"), delta)
    assert_same(dense_group(update.payload, "buffers"), buffers_of(model))
    assert (update.client_id, update.num_examples, update.steps) == ("toy", 10, 3)
    assert update.metrics == {"loss": trained.loss}


def test_epochs_are_passes_over_the_examples() -> None:
    app = ToyApp(linear)
    update = client(local_steps=None, local_epochs=2).run(task(app), local(app, examples(10)))
    assert update.steps == 6


def test_nothing_to_do_sends_no_change_and_no_loss() -> None:
    app = ToyApp(with_buffers)
    for count, steps in ((10, 0), (0, 5)):
        work = task(app)
        update = client(local_steps=steps).run(work, local(app, examples(count)))
        assert not any(tensor.any() for tensor in dense_group(update.payload, "delta").values())
        buffers = dense_group(update.payload, "buffers")
        assert_same(buffers, dense_group(work.payload, "buffers"))
        assert (update.num_examples, update.steps, update.metrics) == (count, 0, {})


def test_a_loss_that_is_no_number_is_not_reported() -> None:
    app = ToyApp(linear)
    update = client().run(task(app, learning_rate=1e38), local(app, examples(10)))
    assert update.metrics == {} or math.isfinite(update.metrics["loss"])
    broken = client().run(task(app, learning_rate=math.inf), local(app, examples(10)))
    assert broken.metrics == {}


def test_a_task_is_left_as_it_came() -> None:
    app = ToyApp(with_buffers)
    work, half = task(app), client()
    before = copied(work.payload)
    half.run(work, local(app, examples(10)))
    half.evaluate(work, local(app, examples(10)))
    assert_same(copied(work.payload), before)


def test_an_update_is_left_alone_by_the_next_task() -> None:
    app, half = ToyApp(with_buffers), client()
    update = half.run(task(app), local(app, examples(10)))
    before = copied(update.payload)
    half.run(task(app, seed=8), local(app, examples(20, seed=1)))
    assert_same(copied(update.payload), before)


def test_nothing_of_an_earlier_task_is_left() -> None:
    app, half = ToyApp(with_buffers), client(momentum=0.9)
    with pytest.raises(TaskAbandoned):
        half.run(task(app, seed=8), local(app, examples(20), meter=CountingMeter(limit=2)))
    half.evaluate(task(app, seed=9), local(app, examples(10)))
    used = half.run(task(app), local(app, examples(10)))
    fresh = client(momentum=0.9).run(task(app), local(app, examples(10)))
    assert_same(copied(used.payload), copied(fresh.payload))


def test_a_model_with_whole_numbers_as_parameters_trains() -> None:
    class Coded(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.codes = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
            self.mask = nn.Parameter(torch.tensor(True), requires_grad=False)

    app = ToyApp(Coded)
    update = client().run(task(app), local(app, examples(10)))
    assert list(update.payload["delta"]) == ["weight", "bias"]
    assert dense_group(update.payload, "buffers")["codes"].tolist() == [1, 2]


def test_evaluation_is_of_the_held_out_examples_only() -> None:
    app = ToyApp(linear)
    held_out = examples(12, seed=3)
    found = client().evaluate(task(app), local(app, examples(5), held_out=held_out))
    # Up to rounding: the device takes batches as in training.
    assert found == pytest.approx(evaluate(build_model(app, 7), app, held_out))
    nothing = held_out.subset(torch.arange(0))
    assert client().evaluate(task(app), local(app, examples(5), held_out=nothing)) == {}


def test_the_model_that_a_device_keeps_is_what_came() -> None:
    app = ToyApp(with_buffers)
    work = task(app)
    kept = client().model(work, local(app, examples(5)))
    assert list(kept) == [*work.payload["parameters"], *work.payload["buffers"]]
    # Without buffers, a payload has lost their group on the way.
    plain = Task(TaskKind.KEEP, 1, {"parameters": work.payload["parameters"]})
    assert list(client().model(plain, local(app, examples(5)))) == list(plain.payload["parameters"])


@pytest.mark.parametrize("group", ["parameters", "buffers"])
def test_a_payload_for_another_model_is_refused(group: str) -> None:
    app = ToyApp(with_buffers)
    work = task(app)
    payload = dict(work.payload)
    payload[group] = dict(list(payload[group].items())[1:])
    with pytest.raises(InvalidPayload, match="not this model's"):
        client().run(Task(TaskKind.TRAIN, 1, payload, work.settings), local(app, examples(5)))
