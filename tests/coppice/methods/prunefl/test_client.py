"""What a device reports of its gradients, and what it keeps to itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coppice.errors import TaskAbandoned
from coppice.kernels.stepping import Watch
from coppice.methods.prunefl.client import Buffer
from coppice.methods.prunefl.importance import Importance
from coppice.sparse import SparseTensor
from coppice.tensors import dense_group, masks_of, weight_group
from coppice.training import train
from tests.coppice.methods.prunefl.small import FIRST, NAMES, Small, pruned_half, settings
from tests.coppice.toys import CountingMeter


def gradients(run: Small, name: str) -> list[dict[str, Tensor]]:
    """What autograd gives in each step of the next round, dense."""
    device = run.local(name)
    task = run.plan()[device.client_id]
    model = run.client.receive(task, device)
    steps: list[dict[str, Tensor]] = []

    def see(name: str, gradient: Tensor | SparseTensor) -> None:
        assert isinstance(gradient, Tensor)
        if not steps or name in steps[-1]:
            steps.append({})
        steps[-1][name] = gradient.clone()

    sgd = run.client._training.sgd(float(task.settings["learning_rate"]))
    masks = masks_of(weight_group(task.payload, "parameters"))
    train(model, device, sgd, masks=masks, watch=Watch(see, pruned_too=True))
    return steps


def test_the_last_step_tells_of_all_weights_when_it_is_asked() -> None:
    run = pruned_half(Small(settings()))
    assert "importance" not in run.updates()[0].payload
    run.state = replace(run.state, rounds=1)
    run.round_number += 1
    *_, last = gradients(run, "a")
    task = run.plan()[run.cohort()[0].client_id]
    update = run.client.run(task, run.local("a"))
    for name in NAMES:
        reported = update.payload["importance"][name]
        assert isinstance(reported, Tensor)
        torch.testing.assert_close(reported, 10 * last[name].square())
    base = sum(float(last[name].square().sum()) for name in last if name not in NAMES)
    reported_base = float(dense_group(update.payload, "base")["importance"])
    assert reported_base == pytest.approx(10 * base, rel=1e-5)


def test_sums_over_the_steps_are_squared_once_and_added_up_over_the_rounds() -> None:
    run = pruned_half(Small(settings(importance="every_round", reconfigure_every=3)))
    expected = torch.zeros(8, 4)
    for number in (1, 2, 3):
        run.round_number = number
        steps = gradients(run, "a")
        expected += 10 * torch.stack([step[FIRST] for step in steps]).sum(0).square()
        run.round_number -= 1
        updates = run.updates()
        if number < 3:
            assert "importance" not in updates[0].payload
            run.state, _ = run.server.aggregate(run.state, updates, number)
            run.privates["a"].commit()
            run.privates["b"].commit()
    reported = updates[0].payload["importance"][FIRST]
    assert isinstance(reported, SparseTensor)
    assert reported.mask == masks_of(run.state.parameters)[FIRST].complement()
    torch.testing.assert_close(reported.dense(), expected * reported.mask.bits)
    assert float(dense_group(updates[0].payload, "base")["mass"]) == 30.0
    run.privates["a"].commit()
    assert run.privates["a"].read(Buffer) == Buffer({}, 0.0)


def test_what_was_gathered_under_other_masks_is_dropped() -> None:
    run = pruned_half(Small(settings(importance="every_round", reconfigure_every=9)))
    run.round()
    before = run.privates["a"].read(Buffer)
    assert before.mass == 10.0
    whole = Small(settings()).state.parameters
    run.state = replace(run.state, parameters=whole, importance=Importance())
    run.round()
    assert run.privates["a"].read(Buffer).mass == 10.0
    run.round()
    assert run.privates["a"].read(Buffer).mass == 20.0


@pytest.mark.parametrize("importance", ["last_step", "every_round"])
def test_a_task_that_is_given_up_leaves_no_trace(importance: Any) -> None:
    run = pruned_half(Small(settings(importance=importance)))
    run.round()
    before = run.privates["a"].read(Buffer)
    device = replace(run.local("a"), meter=CountingMeter(limit=2))
    with pytest.raises(TaskAbandoned):
        run.client.run(run.plan()[device.client_id], device)
    run.privates["a"].commit()
    after = run.privates["a"].read(Buffer)
    assert (before is None) == (after is None) == (importance == "last_step")
    if before is not None:
        assert after.mass == before.mass


def test_a_device_without_examples_prunes_nothing_and_says_so() -> None:
    run = Small(settings(initial_passes=4, initial_interval=2))
    device = run.local("a")
    empty = replace(device, train=device.train.subset(torch.arange(0)))
    update = run.client.run(run.plan()[device.client_id], empty)
    assert (update.steps, update.num_examples, dict(update.metrics)) == (0, 0, {})
    state, metrics = run.server.aggregate(run.state, [update], 1)
    assert state is run.state
    assert metrics == {}
