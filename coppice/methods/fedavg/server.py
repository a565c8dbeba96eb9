"""FedAvg on the server: everyone gets the parameters; the mean of the deltas moves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coppice.domain import ClientId, Metrics, Participant
from coppice.method import InitContext, ServerHalf, Task, Update
from coppice.methods.fedavg.settings import Settings
from coppice.model_server import MeanUpdate, first_tensors, training_task
from coppice.tensors import Tensors, add, dense_tensors


@dataclass(frozen=True)
class State:
    """The global model, and the moments of the server's optimiser."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    #: First moment, per parameter; empty without a server optimiser.
    moment: Mapping[str, Tensor] = field(default_factory=dict)
    #: Second moment, per parameter; empty unless the optimiser is adaptive.
    second_moment: Mapping[str, Tensor] = field(default_factory=dict)


class Server(ServerHalf[State]):
    """McMahan et al. 2017, algorithm 1; server optimisers as in Reddi et al. 2021, algorithm 2."""

    state_type = State

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def init(self, context: InitContext) -> State:
        """The model's own first parameters, or the warm start's."""
        state = State(*first_tensors(context))
        optimizer = self._settings.server_optimizer
        if optimizer != "none":
            state = replace(state, moment=_filled(state.parameters, 0.0))
        if optimizer in ("adam", "yogi"):
            tau = self._settings.server_epsilon
            state = replace(state, second_moment=_filled(state.parameters, tau * tau))
        return state

    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        """Everybody the same task."""
        settings = {"learning_rate": self._settings.learning_rate_in(round_number)}
        task = training_task(state.parameters, state.buffers, round_number, settings)
        return {participant.client_id: task for participant in cohort}

    def most_steps(self, task: Task, num_examples: int) -> int | None:
        """What the settings say."""
        return self._settings.most_steps(num_examples)

    def aggregate(
        self, state: State, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        """Mean delta by number of examples; float buffers likewise, integer buffers the maximum."""
        mean = MeanUpdate()
        for update in updates:
            mean.add(update)
        delta = dense_tensors(mean.delta())
        if not delta:
            return state, {}
        state = replace(state, buffers=mean.buffers(state.buffers))
        return self._step(state, delta), mean.metrics()

    def models(self, state: State) -> Mapping[str, Tensors]:
        """The one global model."""
        return {"global": dict(state.parameters) | dict(state.buffers)}

    def _step(self, state: State, delta: Tensors) -> State:
        settings = self._settings
        rate, beta = settings.server_learning_rate, settings.server_momentum
        if settings.server_optimizer == "none":
            return replace(state, parameters=add(state.parameters, delta, rate))
        # FedAvgM sums the deltas, the adaptive methods average them: as published.
        fresh = 1.0 if settings.server_optimizer == "momentum" else 1 - beta
        moment = {name: beta * state.moment[name] + fresh * value for name, value in delta.items()}
        if settings.server_optimizer == "momentum":
            parameters = add(state.parameters, moment, rate)
            return replace(state, parameters=parameters, moment=moment)
        second = {
            name: self._second_moment(state.second_moment[name], value)
            for name, value in delta.items()
        }
        direction = {
            name: value / (second[name].sqrt() + settings.server_epsilon)
            for name, value in moment.items()
        }
        parameters = add(state.parameters, direction, rate)
        return replace(state, parameters=parameters, moment=moment, second_moment=second)

    def _second_moment(self, previous: Tensor, delta: Tensor) -> Tensor:
        square, beta = delta * delta, self._settings.server_beta2
        if self._settings.server_optimizer == "yogi":
            return previous - (1 - beta) * square * torch.sign(previous - square)
        return beta * previous + (1 - beta) * square


def _filled(tensors: Tensors, value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}
