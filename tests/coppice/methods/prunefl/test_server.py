"""Reconfigurations on the server: when, how much, what grows back, and by which times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from coppice import tree
from coppice.app import build_model
from coppice.budget import RoundTime
from coppice.domain import WORK_SECONDS, ClientId, MethodSpec, Participant
from coppice.errors import RunFileError
from coppice.method import InitContext, Update, client_half, server_half
from coppice.methods.prunefl.server import State
from coppice.simulated_device import MemoryPrivate
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import dense_group, dense_tensors
from tests.coppice.methods.prunefl.small import (
    CHEAP,
    FIRST,
    NAMES,
    SECOND,
    Small,
    ones,
    pruned_half,
    settings,
    weights,
)
from tests.coppice.toys import CAPABILITY, ToyApp, examples, local, two_layers


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
        group: {
            name: torch.zeros_like(item)
            for name, item in dense_group(update.payload, group).items()
        }
        for group in ("importance", "base")
    }
    return replace(update, payload={**update.payload, **zeros})


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
    more = {"prune_share": 0.0, "initial_passes": 0, "reconfigure_every": 2, "mask_scope": "global"}
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
