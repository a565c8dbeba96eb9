"""What the server's halves of methods share that average updates on one mask for all clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from coppice.domain import ClientId, Metrics, Participant
from coppice.local_training import LocalTraining
from coppice.masks import density, full_masks, masked, prunable_names, remask
from coppice.method import InitContext, ServerHalf, Task, Update
from coppice.model_server import MeanUpdate, first_model, training_task
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights, add, buffers_of, masks_of, parameters_of


@dataclass(frozen=True)
class State:
    """The global model on its masks."""

    #: Weights that can be pruned are sparse tensors, all others dense.
    parameters: Mapping[str, Tensor | SparseTensor]
    buffers: Mapping[str, Tensor]
    #: Rounds that were committed.
    rounds: int = 0


def unpruned_state(context: InitContext, keep_dense: Iterable[str]) -> State:
    """The first model with everything kept; RunFileError when `keep_dense` names no such weight."""
    model = first_model(context)
    names = prunable_names(model, keep_dense)
    return State(masked(parameters_of(model), full_masks(model, names)), buffers_of(model))


class MaskedAveraging(ServerHalf[State]):
    """FedAvg (McMahan et al. 2017) on the present masks; `next_masks` says when others come."""

    state_type = State

    def __init__(self, training: LocalTraining) -> None:
        self._training = training

    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        """Everybody the same task."""
        settings = {"learning_rate": self._training.learning_rate_in(round_number)}
        task = training_task(state.parameters, state.buffers, round_number, settings)
        return {participant.client_id: task for participant in cohort}

    def most_steps(self, task: Task, num_examples: int) -> int | None:
        """What the settings say."""
        return self._training.most_steps(num_examples)

    def aggregate(
        self, state: State, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        """Move the kept weights by the mean delta, then prune if it is due."""
        mean = MeanUpdate()
        for update in updates:
            mean.add(update)
        delta = mean.delta()
        if not delta:
            return state, {}
        moved = State(add(state.parameters, delta), mean.buffers(state.buffers), state.rounds + 1)
        masks = self.next_masks(state, delta, moved, round_number)
        if masks is not None:
            moved = replace(moved, parameters=remask(moved.parameters, masks, {}))
        kept = density(masks_of(moved.parameters).values())
        return moved, {**mean.metrics(), "density": kept}

    def next_masks(
        self, state: State, delta: Weights, moved: State, round_number: int
    ) -> Mapping[str, Mask] | None:
        """The masks of the next round by name, within the present ones; None when they stay.

        Args:
            state: What the round began with.
            delta: The mean update, on the present masks.
            moved: The state that it makes of this.
            round_number: Of this round.
        """
        return None

    def models(self, state: State) -> Mapping[str, Weights]:
        """The one global model."""
        return {"global": dict(state.parameters) | dict(state.buffers)}
