"""What the server does with PruneFL's rounds: initial pruning, reconfigurations, regrowth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from coppice import tree
from coppice.app import build_model
from coppice.budget import RoundTime
from coppice.domain import WORK_SECONDS, Capability, ClientId, MethodSpec, Participant
from coppice.errors import RunFileError
from coppice.method import InitContext, Update, client_half, server_half
from coppice.methods.prunefl.importance import Importance
from coppice.methods.prunefl.server import InitialPruning, Server, State
from coppice.simulation import MemoryPrivate
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import dense_tensors, masks_of
from tests.coppice.methods.prunefl.small import CHEAP, FIRST, NAMES, SECOND, Small, settings
from tests.coppice.toys import CAPABILITY, ToyApp, examples, local, two_layers

INITIAL = {"initial_passes": 12, "initial_interval": 2, "initial_batches": 2}


def ones(state: State) -> dict[str, int]:
    return {name: mask.count for name, mask in masks_of(state.parameters).items()}


def weights(state: State, name: str) -> SparseTensor:
    item = state.parameters[name]
    assert isinstance(item, SparseTensor)
    return item


class TestInitialPruning:
    def test_one_client_prunes_step_by_step_and_then_all_train(self) -> None:
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

    def test_pruned_weights_never_grow_back_meanwhile(self) -> None:
        run = Small(settings(**INITIAL, prune_share=0.1))
        before = masks_of(run.state.parameters)
        while run.state.initial is not None:
            run.round()
            after = masks_of(run.state.parameters)
            assert not any((after[name].bits & ~before[name].bits).any() for name in NAMES)
            before = after

    def test_what_was_trained_meanwhile_is_where_all_begin(self) -> None:
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

    def test_the_same_few_batches_are_passed_over_in_every_task(self) -> None:
        run = Small(settings(**INITIAL))
        device = run.local("b")
        first = [batch.tolist() for batch in run.client._fixed_batches(device)]
        run.round_number = 7
        assert [batch.tolist() for batch in run.client._fixed_batches(run.local("b"))] == first
        assert [len(batch) for batch in first] == [4, 4]
        (task,) = run.plan().values()
        assert run.client.run(task, device).steps == 2 * 2

    def test_the_last_task_has_only_the_passes_that_are_left(self) -> None:
        run = Small(settings(**INITIAL | {"initial_passes": 3}))
        assert [run.updates()[0].steps, run.round() and run.updates()[0].steps] == [4, 2]

    def test_it_settles_when_the_density_does(self) -> None:
        chosen = settings(initial_passes=1000, settled_times=2, settled_within=0.1)
        assert Server(chosen)._has_settled((0.9, 0.5, 0.46, 0.43))
        assert not Server(chosen)._has_settled((0.9, 0.5, 0.46))
        assert not Server(chosen)._has_settled((0.5, 0.46, 0.4))
        assert not Server(chosen)._has_settled((0.5,))
        run = Small(
            settings(initial_passes=1000, initial_interval=1, settled_times=2, round_time=CHEAP)
        )
        for _ in range(3):
            assert run.state.initial is not None
            run.round()
        assert run.state.initial is None

    def test_nothing_is_pruned_before_the_accuracy_is_reached(self) -> None:
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

    def test_the_strongest_does_it_and_goes_on_with_it(self) -> None:
        weak, strong = (Capability(memory_bytes=size, num_threads=1, machine="") for size in (1, 2))
        run = Small(settings(**INITIAL), {"a": weak, "b": strong})
        assert list(run.plan()) == ["b"]
        run.round()
        run.capabilities = {"a": strong, "b": weak}
        assert list(run.plan()) == ["b"]
        run.capabilities = {"a": weak, "c": strong}
        assert list(run.plan()) == ["c"]

    def test_who_fails_again_and_again_does_not_hold_up_the_run(self) -> None:
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

    def test_who_has_nothing_to_train_on_comes_last(self) -> None:
        strong, weak = (Capability(memory_bytes=size, num_threads=1, machine="") for size in (2, 1))
        run = Small(settings(**INITIAL))
        idle = Participant(ClientId("idle"), strong, 0)
        busy = Participant(ClientId("busy"), weak, 9)
        assert list(run.server.plan(run.state, [idle, busy], 1)) == ["busy"]

    def test_of_equally_large_ones_more_threads_are_stronger(self) -> None:
        few, many = (Capability(memory_bytes=1, num_threads=n, machine="") for n in (1, 4))
        run = Small(settings(**INITIAL), {"a": few, "b": many})
        assert list(run.plan()) == ["b"]

    def test_all_its_tasks_have_the_first_learning_rate(self) -> None:
        run = Small(settings(**INITIAL, schedule="exponential", decay_rounds=1))
        run.round()
        (task,) = run.plan().values()
        assert task.settings["learning_rate"] == 0.1

    def test_nothing_of_it_is_left_when_the_passes_run_out(self) -> None:
        run = Small(settings(initial_passes=2, initial_interval=2, initial_accuracy=1.0))
        run.round(metrics={"accuracy": 0.0})
        assert run.state.initial is None
        assert run.state.importance == Importance()

    def test_a_named_client_is_waited_for(self) -> None:
        run = Small(settings(**INITIAL, initial_client=ClientId("b")))
        assert run.server.reserved_for(run.state, 1) == "b"
        assert list(run.plan()) == ["b"]
        while run.state.initial is not None:
            run.round()
        assert run.server.reserved_for(run.state, 9) is None

    def test_half_way_it_is_saved_and_loaded(self) -> None:
        run, other = Small(settings(**INITIAL)), Small(settings(**INITIAL))
        run.round()
        other.round()
        other.state = tree.load(State, tree.save(other.state))
        for _ in range(3):
            run.round()
            other.round()
        assert tree.save(run.state) == tree.save(other.state)


class TestReconfiguration:
    @pytest.mark.parametrize("importance", ["last_step", "every_round"])
    def test_it_is_due_after_so_many_rounds(self, importance: Any) -> None:
        run = Small(settings(importance=importance, sparse_below=1.0))
        asked = []
        densities = []
        for _ in range(4):
            asked += [task.settings["report"] for task in run.plan().values()]
            densities.append(run.round()["density"])
        assert asked == [False, False, True, True] * 2
        assert densities[0] == 1.0 > densities[1] == densities[2] > densities[3]

    def test_a_layer_loses_no_more_than_the_share(self) -> None:
        run = Small(settings(prune_share=0.5, prune_half_life=2.0, sparse_below=1.0))
        # Nothing is worth anything: all goes that may. After two rounds the share has halved.
        run.round()
        updates = [without_importance(update) for update in run.updates()]
        state, _ = run.server.aggregate(run.state, updates, 2)
        assert ones(state) == {FIRST: 32 - 8, SECOND: 24 - 6}

    def test_pruned_weights_stay_exactly_zero_on_the_device_and_after(self) -> None:
        run = Small(settings(sparse_below=1.0, importance="every_round"))
        for _ in range(4):
            run.round()
        for name, tensor in dense_tensors(run.state.parameters).items():
            if name in NAMES:
                assert not tensor[~weights(run.state, name).mask.bits].any()

    def test_the_size_can_go_up(self) -> None:
        run = pruned_half(Small(settings(round_time=CHEAP)))
        for expected in (0.5, 1.0):
            assert run.round()["density"] == expected

    @pytest.mark.parametrize(("regrow", "value"), [("zero", 0.0), ("stale", 7.0)])
    def test_what_grows_back_begins_with_nothing_or_with_what_it_had(
        self, regrow: Any, value: float
    ) -> None:
        run = Small(settings(regrow=regrow, round_time=CHEAP))
        item = weights(run.state, FIRST)
        half = Mask.of(torch.arange(32).reshape(8, 4) % 2 == 0)
        stale = {name: weights(run.state, name).dense().fill_(7.0) for name in NAMES}
        kept = SparseTensor.take(item.dense(), half)
        run.state = tree.load(
            State,
            tree.save(
                type(run.state)(
                    {**run.state.parameters, FIRST: kept},
                    run.state.buffers,
                    None,
                    rounds=1,
                    stale=stale if regrow == "stale" else {},
                )
            ),
        )
        run.round()
        grown = weights(run.state, FIRST)
        assert grown.mask.count == 32
        assert set(grown.dense()[~half.bits].tolist()) == {value}
        assert grown.dense()[half.bits].abs().min() > 0

    def test_stale_values_are_those_of_the_moment_of_pruning(self) -> None:
        run = Small(settings(regrow="stale", sparse_below=1.0))
        run.round()
        updates = run.updates()
        before = run.state
        run.state, _ = run.server.aggregate(before, updates, 2)
        pruned = ~weights(run.state, FIRST).mask.bits
        assert pruned.any()
        assert run.state.stale[FIRST][pruned].abs().min() > 0

    @pytest.mark.parametrize(("sparse_below", "kept"), [(0.9, 56), (0.95, 51)])
    def test_a_model_stays_dense_until_pruning_is_worth_it(
        self, sparse_below: float, kept: int
    ) -> None:
        run = Small(settings(prune_share=0.11, sparse_below=sparse_below))
        run.round()
        updates = [without_importance(update) for update in run.updates()]
        state, _ = run.server.aggregate(run.state, updates, 2)
        assert sum(ones(state).values()) == kept

    def test_density_is_capped(self) -> None:
        run = pruned_half(Small(settings(round_time=CHEAP, max_density=0.75)))
        run.round()
        assert run.round()["density"] == 0.75

    def test_rounds_that_bring_nothing_do_not_count(self) -> None:
        run = Small(settings())
        run.round()
        assert run.server.aggregate(run.state, [], 2) == (run.state, {})
        assert next(iter(run.plan().values())).settings["report"] is True

    def test_gradients_are_read_off_with_the_learning_rate_of_the_round(self) -> None:
        fields: dict[str, Any] = {"importance": "every_round", "reconfigure_every": 9}
        run = Small(settings(**fields, schedule="exponential", decay_rounds=1))
        run.round()
        before = run.state.importance.kept[FIRST].double()
        updates = run.updates()
        state, _ = run.server.aggregate(run.state, updates, 2)
        squares = torch.zeros(32, dtype=torch.float64)
        for update in updates:
            delta = update.payload["delta"][FIRST]
            assert isinstance(delta, SparseTensor)
            # Half of 0.1 in the second round.
            squares += update.num_examples * (delta.values.double() / 0.05).square()
        torch.testing.assert_close(
            state.importance.kept[FIRST].double(), before + squares, rtol=1e-5, atol=0
        )

    def test_new_masks_begin_a_new_timing(self) -> None:
        run = Small(settings(round_time=None))
        timed = {"seconds": 2.0, "metrics": {WORK_SECONDS: 1.0}}
        run.round(**timed)
        assert (len(run.state.timing.rounds), len(run.state.timing.samples)) == (1, 0)
        run.round(**timed)
        assert (len(run.state.timing.rounds), len(run.state.timing.samples)) == (0, 1)

    def test_a_pruned_warm_start_keeps_its_masks(self) -> None:
        run = pruned_half(Small(settings()))
        context = InitContext(0, lambda: build_model(run.app, 0), run.state.parameters)
        assert ones(run.server.init(context)) == ones(run.state) == {FIRST: 16, SECOND: 12}

    def test_kept_dense_layers_are_never_pruned(self) -> None:
        time = RoundTime(constant_seconds=1e-6, seconds_per_weight={SECOND: 1.0})
        run = Small(settings(keep_dense=(FIRST,), round_time=time, sparse_below=1.0))
        run.round()
        run.round()
        assert list(ones(run.state)) == [SECOND]
        with pytest.raises(RunFileError, match=r"keep_dense names '9\.weight'"):
            Small(settings(keep_dense=("9.weight",)))


def without_importance(update: Update) -> Update:
    """The device found all gradients to be 0."""
    zeros = {
        group: {name: torch.zeros_like(item) for name, item in items.items()}  # type: ignore
        for group, items in update.payload.items()
        if group in ("importance", "base")
    }
    return replace(update, payload={**update.payload, **zeros})


def pruned_half(run: Small) -> Small:
    """Half of the first model's weights are pruned, and no unit has lost all of its own."""
    parameters = dict(run.state.parameters)
    for name in NAMES:
        item = weights(run.state, name)
        rows, columns = (torch.arange(extent) for extent in item.shape)
        half = Mask.of((rows[:, None] + columns) % 2 == 0)
        parameters[name] = SparseTensor.take(item.dense(), half)
    run.state = State(parameters, run.state.buffers, None)
    return run


class TestRoundTime:
    def test_constants_for_other_weights_are_refused_at_once(self) -> None:
        time = RoundTime(constant_seconds=1.0, seconds_per_weight={FIRST: 1.0})
        with pytest.raises(RunFileError, match=SECOND):
            Small(settings(round_time=time))

    def test_without_constants_rounds_have_to_be_timed(self) -> None:
        run = Small(settings(round_time=None))
        run.round()
        with pytest.raises(RunFileError, match=r"method\.round_time"):
            run.round()

    def test_initial_pruning_is_timed_as_if_it_were_an_ordinary_round(self) -> None:
        run = Small(settings(round_time=None, initial_passes=50, initial_interval=10))
        (update,) = run.updates(seconds=13.0, metrics={WORK_SECONDS: 10.0})
        state, _ = run.server.aggregate(run.state, [update], 1)
        (sample,) = state.timing.samples
        # 10 passes over 10 batches, of which an ordinary round has 3.
        assert sample.seconds == pytest.approx(10.0 * 3 / 100)

    def test_timed_rounds_take_the_place_of_constants(self) -> None:
        fast = {"seconds": 1.0, "metrics": {WORK_SECONDS: 1.0 - 1e-9}}
        slow = {"seconds": 1e6, "metrics": {WORK_SECONDS: 1e-6}}
        densities = []
        for timed in (fast, slow):
            run = pruned_half(Small(settings(round_time=None)))
            run.round(**timed)
            densities.append(run.round(**timed)["density"])
        # Where the link takes hardly any time, all that is worth anything is kept.
        assert densities[0] == 1.0
        assert densities[1] < 0.6


@pytest.mark.parametrize("importance", ["last_step", "every_round"])
def test_without_pruning_it_is_fedavg_to_the_last_bit(importance: Any) -> None:
    training = {"local_steps": 3, "batch_size": 4}
    more = {"prune_share": 0.0, "initial_passes": 0, "reconfigure_every": 2}
    time = {"constant_seconds": 1e-6, "seconds_per_weight": dict.fromkeys(NAMES, 1.0)}
    pruned = training | more | {"importance": importance, "round_time": time}
    models = [
        trained(MethodSpec(name="fedavg", settings=training)),
        trained(MethodSpec(name="prunefl", settings=pruned)),
    ]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


def trained(method: MethodSpec) -> dict[str, torch.Tensor]:
    server, client = server_half(method), client_half(method)
    app = ToyApp(two_layers)
    state = server.init(InitContext(0, lambda: build_model(app, 0)))
    privates = {name: MemoryPrivate() for name in "abc"}
    cohort = [Participant(ClientId(name), CAPABILITY, 9) for name in privates]
    for round_number in range(1, 5):
        updates = [
            client.run(
                task,
                local(
                    app,
                    examples(9, seed=ord(name)),
                    client_id=name,
                    private=privates[name],
                    seed=round_number + ord(name),
                ),
            )
            for name, task in server.plan(state, cohort, round_number).items()
        ]
        state, _ = server.aggregate(state, updates, round_number)
        for private in privates.values():
            private.commit()
    return dense_tensors(server.models(state)["global"])
