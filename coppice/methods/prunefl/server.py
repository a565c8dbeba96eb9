"""PruneFL on the server: one mask for all, chosen anew every so many rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coppice.budget import RoundTime
from coppice.cohort import CohortSpec
from coppice.domain import ClientId, Metrics, Participant
from coppice.errors import RunFileError
from coppice.masks import density, full_masks, masked, prunable_names, remask, sparse_weights
from coppice.method import InitContext, ServerHalf, Task, Update
from coppice.methods.prunefl.cuts import Cuts
from coppice.methods.prunefl.device_scope import DeviceScope, FleetRound, FleetState, new_fleet
from coppice.methods.prunefl.importance import Importance, Tally
from coppice.methods.prunefl.initial import InitialPruning, has_settled
from coppice.methods.prunefl.reconfigure import prune_share, reconfigure
from coppice.methods.prunefl.sample import report_of
from coppice.methods.prunefl.settings import Settings
from coppice.methods.prunefl.terms import terms_to_payload
from coppice.methods.prunefl.timing import Timing
from coppice.model_server import MeanUpdate, first_model, training_task
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import Payload, Weights, add, buffers_of, masks_of, parameters_of


@dataclass(frozen=True)
class State:
    """The global model on its masks, and what the next masks will be chosen by."""

    #: Weights that can be pruned are sparse tensors, all others dense.
    parameters: Mapping[str, Tensor | SparseTensor]
    buffers: Mapping[str, Tensor]
    #: None when it is over.
    initial: InitialPruning | None
    importance: Importance = field(default_factory=Importance)
    timing: Timing = field(default_factory=Timing)
    #: Rounds of all clients that were committed.
    rounds: int = 0
    #: With regrow = "stale", the last value of every weight that was ever pruned.
    stale: Mapping[str, Tensor] = field(default_factory=dict)
    #: With a mask for each device, once initial pruning is over.
    fleet: FleetState | None = None
    #: Of the run.
    cohort: CohortSpec = field(default_factory=lambda: CohortSpec(size=1))


class Server(ServerHalf[State]):
    """Jiang et al. 2022, with the details of the released code."""

    state_type = State

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scope = DeviceScope(settings) if settings.mask_scope == "device" else None

    def init(self, context: InitContext) -> State:
        """The first model, everything kept that is not pruned already."""
        model = first_model(context)
        names = prunable_names(model, self._settings.keep_dense)
        self._check_round_time(names)
        # A warm start that was pruned goes on from its masks.
        pruned = masks_of(context.warm_start or {})
        masks = {name: pruned.get(name, mask) for name, mask in full_masks(model, names).items()}
        if not masks and self._scope is not None:
            raise RunFileError(
                'method.mask_scope is "device", but the model has no weights that can be pruned'
            )
        first = State(
            parameters=masked(parameters_of(model), masks),
            buffers=buffers_of(model),
            initial=InitialPruning() if self._settings.initial_passes else None,
            cohort=context.cohort,
        )
        return first if first.initial is not None else self._with_fleet(first, None)

    def terms(self, state: State, round_number: int) -> Payload | None:
        """What devices choose from, where each has a mask of its own."""
        if state.fleet is None or self._scope is None:
            return None
        return terms_to_payload(self._scope.terms(state.fleet, self._is_due(state)))

    def reserved_for(self, state: State, round_number: int) -> ClientId | None:
        """The client that the settings name for initial pruning."""
        return self._settings.initial_client if state.initial is not None else None

    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        """Initial pruning is one client's; then everybody trains, and reports when it is due."""
        if state.initial is not None:
            chosen = state.initial.next_client(self._settings.initial_client, cohort, round_number)
            return {chosen: self._initial_task(state, state.initial, round_number)}
        if state.fleet is not None and self._scope is not None:
            planned = self._fleet_round(state, round_number)
            return self._scope.plan(state.parameters, state.buffers, state.fleet, cohort, planned)
        report = self._is_due(state)
        rate = self._settings.learning_rate_in(state.rounds + 1)
        settings = {"learning_rate": rate, "report": report}
        more = self._reported(state) if report else {}
        task = training_task(state.parameters, state.buffers, round_number, settings, more)
        return {participant.client_id: task for participant in cohort}

    def most_steps(self, task: Task, num_examples: int) -> int | None:
        """What the task says, in initial pruning and where devices choose; else the settings."""
        if "passes" in task.settings:
            return int(task.settings["passes"]) * self._settings.initial_batches
        if "steps" in task.settings:
            return int(task.settings["steps"])
        return self._settings.most_steps(num_examples)

    def unit(self, state: State, update: Update, round_number: int) -> float:
        """Where each device has its own mask and steps, what makes a direction of an update."""
        if state.fleet is None or self._scope is None:
            return 1.0
        planned = self._fleet_round(state, round_number)
        return self._scope.norm(state.fleet, update, planned.learning_rate)

    def aggregate(
        self, state: State, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        """Move the kept weights by the mean delta, then reconfigure if it is due."""
        settings = self._settings
        if state.fleet is not None:
            return self._aggregate_fleet(state, state.fleet, updates, round_number)
        due = state.initial is None and self._is_due(state)
        mean, tally = MeanUpdate(), Tally(state.importance, state.parameters)
        seen: list[Update] = []
        for update in updates:
            mean.add(update)
            if state.initial is None and settings.importance == "every_round":
                tally.add_delta(update, settings.learning_rate_in(state.rounds + 1))
            if state.initial is not None or due:
                tally.add_report(update)
            seen.append(replace(update, payload={}))
        delta = mean.delta()
        if not delta:
            return state, {}
        moved = replace(
            state,
            parameters=add(state.parameters, delta),
            buffers=mean.buffers(state.buffers),
            timing=self._timed(state, seen),
        )
        metrics = dict(mean.metrics())
        if state.initial is not None:
            begun = replace(state.initial, client=seen[0].client_id, round_number=round_number)
            moved = self._prune_initially(moved, begun, tally, metrics)
        else:
            moved = replace(moved, rounds=state.rounds + 1)
            moved = self._reconfigured(moved, tally) if due else self._remembered(moved, tally)
        metrics["density"] = density(masks_of(moved.parameters).values())
        return moved, metrics

    def models(self, state: State) -> Mapping[str, Weights]:
        """The one global model; with a mask for each device, the cuts that they held last too."""
        union = dict(state.parameters) | dict(state.buffers)
        if state.fleet is None:
            return {"global": union}
        return Cuts(union, state.fleet.order, state.fleet.kept.values())

    # ---- a mask for each device ----

    def _aggregate_fleet(
        self, state: State, fleet: FleetState, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        assert self._scope is not None
        planned = self._fleet_round(state, round_number)
        done = self._scope.aggregate(state.parameters, state.buffers, fleet, updates, planned)
        if done is None:
            return state, {}
        parameters, buffers, fleet, metrics = done
        moved = replace(
            state, parameters=parameters, buffers=buffers, fleet=fleet, rounds=planned.count
        )
        return moved, metrics

    def _fleet_round(self, state: State, round_number: int) -> FleetRound:
        count = state.rounds + 1
        rate = self._settings.learning_rate_in(count)
        return FleetRound(round_number, count, rate, self._is_due(state), state.cohort)

    def _with_fleet(self, state: State, tally: Tally | None) -> State:
        """The state once there are rounds of all clients."""
        if self._scope is None:
            return state
        weights = sparse_weights(state.parameters)
        if tally is not None:
            importance, base = tally.importance()
        else:
            importance = {name: torch.zeros(item.shape) for name, item in weights.items()}
            base = 0.0
        return replace(state, fleet=new_fleet(state.parameters, importance, base))

    # ---- initial pruning ----

    def _initial_task(self, state: State, initial: InitialPruning, round_number: int) -> Task:
        settings = self._settings
        passes = min(settings.initial_interval, settings.initial_passes - initial.passes)
        return training_task(
            state.parameters,
            state.buffers,
            round_number,
            {"learning_rate": settings.learning_rate_in(1), "passes": passes},
            {"importance": _kept_only(state.parameters), "base": {"importance": _SCALAR}},
        )

    def _prune_initially(
        self,
        state: State,
        initial: InitialPruning,
        tally: Tally,
        metrics: Mapping[str, float],
    ) -> State:
        settings = self._settings
        passes = min(initial.passes + settings.initial_interval, settings.initial_passes)
        densities = initial.densities
        if metrics.get("accuracy", 1.0) >= settings.initial_accuracy:
            state = self._reconfigured(state, tally)
            densities = (*densities, density(masks_of(state.parameters).values()))
        else:
            state = self._remembered(state, tally)
        if passes >= settings.initial_passes or has_settled(
            densities, settings.settled_times, settings.settled_within
        ):
            over = replace(state, initial=None, importance=Importance())
            return self._with_fleet(over, tally)
        return replace(state, initial=replace(initial, passes=passes, densities=densities))

    # ---- reconfiguration ----

    def _is_due(self, state: State) -> bool:
        # The first pace cannot wait: until there is one, rounds take as long as the slowest device.
        seeks_pace = state.fleet is not None and state.fleet.is_new
        return seeks_pace or (state.rounds + 1) % self._settings.reconfigure_every == 0

    def _reported(self, state: State) -> Mapping[str, Mapping[str, Item]]:
        """What the updates of a round that reconfigures bring beside the delta."""
        weights = sparse_weights(state.parameters)
        if self._settings.importance == "last_step":
            return report_of(weights, every=1)
        pruned = {name: _empty_on(item.mask.complement()) for name, item in weights.items()}
        return {"importance": pruned, "base": {"mass": _SCALAR}}

    def _remembered(self, state: State, tally: Tally) -> State:
        if state.initial is None and self._settings.importance == "last_step":
            return state
        return replace(state, importance=tally.gathered())

    def _reconfigured(self, state: State, tally: Tally) -> State:
        settings = self._settings
        weights = sparse_weights(state.parameters)
        importance, base = tally.importance()
        share = settings.prune_share
        if state.initial is None:
            share = prune_share(state.rounds, share, settings.prune_half_life)
        round_time = self._round_time(state)
        masks = reconfigure(weights, importance, base, round_time, share, settings.max_density)
        before = density(item.mask for item in weights.values())
        if before == 1.0 and density(masks.values()) > settings.sparse_below:
            return replace(state, importance=Importance())
        stale = self._stale(state, weights)
        return replace(
            state,
            parameters=remask(state.parameters, masks, stale),
            importance=Importance(),
            timing=state.timing.under_new_masks(state.parameters),
            stale=stale,
        )

    def _check_round_time(self, names: Sequence[str]) -> None:
        given = self._settings.round_time
        if given is not None and (unlike := given.seconds_per_weight.keys() ^ set(names)):
            raise RunFileError(
                f"method.round_time.seconds_per_weight needs one number for each of "
                f"{', '.join(names)}; {min(unlike)!r} is missing or none of them"
            )

    def _round_time(self, state: State) -> RoundTime:
        if self._settings.round_time is not None:
            return self._settings.round_time
        return state.timing.round_time(state.parameters)

    def _stale(self, state: State, weights: Mapping[str, SparseTensor]) -> dict[str, Tensor]:
        if self._settings.regrow == "zero":
            return {}
        stale = {}
        for name, item in weights.items():
            last = state.stale[name].clone() if name in state.stale else item.dense()
            last.view(-1)[item.mask.positions] = item.values
            stale[name] = last
        return stale

    def _timed(self, state: State, updates: Sequence[Update]) -> Timing:
        settings = self._settings
        if state.initial is None:
            return state.timing.with_round(updates)
        # One client's round, of many more steps, whose update has every kept weight twice.
        passes = min(settings.initial_interval, settings.initial_passes - state.initial.passes)
        steps = settings.local_steps
        if steps is None:
            batches = -(-updates[0].num_examples // settings.batch_size)
            steps = (settings.local_epochs or 1) * batches
        return state.timing.with_round(
            updates, steps / (passes * settings.initial_batches), link_share=2 / 3
        )


_SCALAR = torch.zeros((), dtype=torch.float64)


def _empty_on(mask: Mask) -> SparseTensor:
    # Only what it looks like counts.
    return SparseTensor(mask, torch.empty(mask.count, device="meta"))


def _kept_only(parameters: Weights) -> dict[str, SparseTensor]:
    return {name: _empty_on(item.mask) for name, item in sparse_weights(parameters).items()}
