"""Settings of FedAvg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from coppice.local_training import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Settings(LocalTraining):
    """What a run file may say under [method] with name = "fedavg"."""

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
