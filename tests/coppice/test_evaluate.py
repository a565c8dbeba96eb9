"""Evaluation: many batches, no batch, and nothing changed by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coppice.app import build_model
from coppice.training import EVALUATION_BATCH_SIZE, evaluate
from tests.coppice.toys import ToyApp, examples, with_buffers


@pytest.mark.parametrize("extra", [0, 1, 100])
def test_many_batches_evaluate_like_one(extra: int) -> None:
    app, data = ToyApp(with_buffers), examples(2 * EVALUATION_BATCH_SIZE + extra)
    model = build_model(app, 0).eval()
    with torch.no_grad():
        whole = app.metrics(model(data.inputs), data.targets)
    assert evaluate(model, app, data) == pytest.approx(whole, rel=1e-6)


def test_evaluating_changes_nothing_and_drops_nothing() -> None:
    app = ToyApp(with_buffers)
    model = build_model(app, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    assert evaluate(model, app, examples(20)) == evaluate(model, app, examples(20))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_examples_there_are_no_metrics_and_the_model_is_not_asked() -> None:
    class Never(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            raise AssertionError("a batch of nothing")

    app = ToyApp(lambda: Never(4, 3))
    assert evaluate(build_model(app, 0), app, examples(0)) == {}
