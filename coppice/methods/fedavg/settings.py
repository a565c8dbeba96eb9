"""Settings of FedAvg."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from coppice.domain import Section


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """What a run file may say under [method] with name = "fedavg"."""

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
    #: What the server does with the mean update: add it ("none"), or use it as the gradient of
    #: FedAvgM (Hsu et al. 2019), FedAdam or FedYogi (Reddi et al. 2021).
    server_optimizer: Literal["none", "momentum", "adam", "yogi"] = "none"
    server_learning_rate: Annotated[float, Gt(0)] = 1.0
    #: First moment's decay β₁ (also of "momentum").
    server_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    #: Second moment's decay β₂.
    server_beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    #: Adaptivity τ: the larger, the nearer to plain averaging.
    server_epsilon: Annotated[float, Gt(0)] = 1e-3

    def __post_init__(self) -> None:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("give one of local_steps and local_epochs")

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
