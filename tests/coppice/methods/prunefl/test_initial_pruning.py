"""Initial pruning: one client after the other's turn, task by task, until the size settles."""

from __future__ import annotations

import torch

from coppice import tree
from coppice.domain import Capability, ClientId, Participant
from coppice.methods.prunefl.importance import Importance
from coppice.methods.prunefl.initial import InitialPruning, has_settled
from coppice.methods.prunefl.server import State
from coppice.sparse import SparseTensor
from coppice.tensors import masks_of
from tests.coppice.methods.prunefl.small import CHEAP, FIRST, NAMES, Small, settings, weights

INITIAL = {"initial_passes": 12, "initial_interval": 2, "initial_batches": 2}


def test_one_client_prunes_step_by_step_and_then_all_train() -> None:
    run = Small(settings(**INITIAL))
    densities = []
    while run.state.initial is not None:
        (client_id,) = run.plan()
        assert client_id == "a"
        densities.append(run.round()["density"])
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] < 0.5 < densities[0] < 1
    assert len(densities) == 6
    assert set(run.plan()) == {"a", "b"}
    assert run.state.rounds == 0


def test_pruned_weights_never_grow_back_meanwhile() -> None:
    run = Small(settings(**INITIAL, prune_share=0.1))
    before = masks_of(run.state.parameters)
    while run.state.initial is not None:
        run.round()
        after = masks_of(run.state.parameters)
        assert not any((after[name].bits & ~before[name].bits).any() for name in NAMES)
        before = after


def test_what_was_trained_meanwhile_is_where_all_begin() -> None:
    run = Small(settings(**INITIAL))
    first = weights(run.state, FIRST)
    (update,) = run.updates()
    run.state, _ = run.server.aggregate(run.state, [update], 1)
    delta = update.payload["delta"][FIRST]
    assert isinstance(delta, SparseTensor)
    trained = first.dense() + delta.dense()
    now = weights(run.state, FIRST)
    assert torch.equal(now.dense(), trained * now.mask.bits)
    assert delta.values.abs().max() > 0


def test_the_same_few_batches_are_passed_over_in_every_task() -> None:
    run = Small(settings(**INITIAL))
    device = run.local("b")
    first = [batch.tolist() for batch in run.client._fixed_batches(device)]
    run.round_number = 7
    assert [batch.tolist() for batch in run.client._fixed_batches(run.local("b"))] == first
    assert [len(batch) for batch in first] == [4, 4]
    (task,) = run.plan().values()
    assert run.client.run(task, device).steps == 2 * 2


def test_the_last_task_has_only_the_passes_that_are_left() -> None:
    run = Small(settings(**INITIAL | {"initial_passes": 3}))
    assert [run.updates()[0].steps, run.round() and run.updates()[0].steps] == [4, 2]


def test_it_settles_when_the_density_does() -> None:
    assert has_settled((0.9, 0.5, 0.46, 0.43), 2, 0.1)
    assert not has_settled((0.9, 0.5, 0.46), 2, 0.1)
    assert not has_settled((0.5, 0.46, 0.4), 2, 0.1)
    assert not has_settled((0.5,), 2, 0.1)
    run = Small(
        settings(initial_passes=1000, initial_interval=1, settled_times=2, round_time=CHEAP)
    )
    for _ in range(3):
        assert run.state.initial is not None
        run.round()
    assert run.state.initial is None


def test_nothing_is_pruned_before_the_accuracy_is_reached() -> None:
    run = Small(settings(**INITIAL, initial_accuracy=1.0, learning_rate=1e-6))
    assert run.round()["density"] == 1.0
    assert run.state.initial == InitialPruning(2, (), ClientId("a"), round_number=1)
    gathered = run.state.importance
    assert gathered.mass == 10
    assert run.round()["density"] == 1.0
    assert run.state.importance.mass == 20
    assert run.state.importance.base > gathered.base
    sure = Small(settings(**INITIAL, initial_accuracy=0.0, learning_rate=1e-6))
    assert sure.round()["density"] < 1.0


def test_the_strongest_does_it_and_goes_on_with_it() -> None:
    weak, strong = (Capability(memory_bytes=size, num_threads=1, machine="") for size in (1, 2))
    run = Small(settings(**INITIAL), {"a": weak, "b": strong})
    assert list(run.plan()) == ["b"]
    run.round()
    run.capabilities = {"a": strong, "b": weak}
    assert list(run.plan()) == ["b"]
    run.capabilities = {"a": weak, "c": strong}
    assert list(run.plan()) == ["c"]


def test_who_fails_again_and_again_does_not_hold_up_the_run() -> None:
    weak, strong = (Capability(memory_bytes=size, num_threads=1, machine="") for size in (1, 2))
    run = Small(settings(**INITIAL), {"a": weak, "b": strong})
    turns: list[ClientId] = []
    for run.round_number in range(4):
        turns += run.plan()
    assert turns == ["b", "a", "b", "a"]
    run.round_number = 4
    run.round()
    assert run.state.initial is not None
    assert (run.state.initial.client, run.state.initial.round_number) == ("b", 5)
    assert list(run.plan()) == ["b"]


def test_who_has_nothing_to_train_on_comes_last() -> None:
    strong, weak = (Capability(memory_bytes=size, num_threads=1, machine="") for size in (2, 1))
    run = Small(settings(**INITIAL))
    idle = Participant(ClientId("idle"), strong, 0)
    busy = Participant(ClientId("busy"), weak, 9)
    assert list(run.server.plan(run.state, [idle, busy], 1)) == ["busy"]


def test_of_equally_large_ones_more_threads_are_stronger() -> None:
    few, many = (Capability(memory_bytes=1, num_threads=n, machine="") for n in (1, 4))
    run = Small(settings(**INITIAL), {"a": few, "b": many})
    assert list(run.plan()) == ["b"]


def test_all_its_tasks_have_the_first_learning_rate() -> None:
    run = Small(settings(**INITIAL, schedule="exponential", decay_rounds=1))
    run.round()
    (task,) = run.plan().values()
    assert task.settings["learning_rate"] == 0.1


def test_nothing_of_it_is_left_when_the_passes_run_out() -> None:
    run = Small(settings(initial_passes=2, initial_interval=2, initial_accuracy=1.0))
    run.round(metrics={"accuracy": 0.0})
    assert run.state.initial is None
    assert run.state.importance == Importance()


def test_a_named_client_is_waited_for() -> None:
    run = Small(settings(**INITIAL, initial_client=ClientId("b")))
    assert run.server.reserved_for(run.state, 1) == "b"
    assert list(run.plan()) == ["b"]
    while run.state.initial is not None:
        run.round()
    assert run.server.reserved_for(run.state, 9) is None


def test_half_way_it_is_saved_and_loaded() -> None:
    run, other = Small(settings(**INITIAL)), Small(settings(**INITIAL))
    run.round()
    other.round()
    other.state = tree.load(State, tree.save(other.state))
    for _ in range(3):
        run.round()
        other.round()
    assert tree.save(run.state) == tree.save(other.state)
