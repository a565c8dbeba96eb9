"""The settings of a device's own training, which most methods share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from coppice.method import MethodSettings
from coppice.training import Sgd


@dataclass(frozen=True, kw_only=True)
class LocalTraining(MethodSettings):
    """Plain SGD for some steps or epochs a round."""

    #: Local SGD steps in a round. Give this or `local_epochs`. 0 trains nothing: what remains is
    #: the cost of the system itself.
    local_steps: Annotated[int, Ge(0), Le(1_000_000)] | None = None
    #: Passes over the local examples in a round.
    local_epochs: Annotated[int, Ge(1), Le(10_000)] | None = None
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 20
    learning_rate: Annotated[float, Gt(0)] = 0.1
    #: How the learning rate falls with the rounds: times `decay` every `decay_rounds`, smoothly
    #: ("exponential") or at once ("step"), or to zero along a half cosine over `decay_rounds`.
    schedule: Literal["constant", "exponential", "step", "cosine"] = "constant"
    decay: Annotated[float, Gt(0), Le(1)] = 0.5
    decay_rounds: Annotated[int, Ge(1)] = 100
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    weight_decay: Annotated[float, Ge(0)] = 0.0
    #: FedProx's μ (Li et al. 2020); 0 is FedAvg.
    proximal: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("give one of local_steps and local_epochs")

    @property
    def is_plain(self) -> bool:
        """Whether a client's update is the sum of its gradients times the learning rate."""
        return self.momentum == self.weight_decay == self.proximal == 0.0

    def learning_rate_in(self, round_number: int) -> float:
        """The learning rate of a round; rounds count from 1."""
        periods = (round_number - 1) / self.decay_rounds
        match self.schedule:
            case "constant":
                return self.learning_rate
            case "exponential":
                return float(self.learning_rate * self.decay**periods)
            case "step":
                return float(self.learning_rate * self.decay ** math.floor(periods))
            case "cosine":
                return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, periods)))

    def most_steps(self, num_examples: int) -> int:
        """Steps of one round on so many examples."""
        if self.local_epochs is None:
            return self.local_steps or 0
        return self.local_epochs * math.ceil(num_examples / self.batch_size)

    def sgd(self, learning_rate: float) -> Sgd:
        """The training of one round."""
        return Sgd(
            learning_rate=learning_rate,
            steps=self.local_steps,
            epochs=self.local_epochs,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            proximal=self.proximal,
        )
