"""A method with terms: each client chooses a number, and the server adds up what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coppice.domain import ClientId, Metrics, Participant, TaskKind
from coppice.method import InitContext, ServerHalf, Task, Update
from coppice.tensors import Payload, Tensors, TensorSpec, dense_group


@dataclass(frozen=True)
class State:
    """The sum so far."""

    total: Tensor


class Toy(ServerHalf[State]):
    """Has terms that are different in every round, and no model."""

    state_type = State

    def __init__(self) -> None:
        #: What each plan was told of the choices, by round.
        self.choices: dict[int, dict[ClientId, Mapping[str, object] | None]] = {}

    def init(self, context: InitContext) -> State:
        return State(torch.zeros(1))

    def terms(self, state: State, round_number: int) -> Payload | None:
        return {"offer": {"round": torch.tensor([round_number])}}

    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        self.choices[round_number] = {item.client_id: item.choice for item in cohort}
        task = Task(
            TaskKind.TRAIN,
            round_number,
            payload={"state": {"total": state.total}},
            expects={"part": {"x": TensorSpec((1,), "float32")}},
        )
        return {item.client_id: task for item in cohort}

    def aggregate(
        self, state: State, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        parts = [dense_group(update.payload, "part")["x"] for update in updates]
        return State(state.total + sum(parts, torch.zeros(1))), {"parts": len(parts)}

    def models(self, state: State) -> Mapping[str, Tensors]:
        return {}
