"""Settings of iterative magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from coppice.local_training import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Settings(LocalTraining):
    """What a run file may say under [method] with name = "iterative"."""

    #: Share that is kept in the end of all weights that can be pruned.
    density: Annotated[float, Gt(0), Le(1)]
    #: Steps that lead there, each taking away equally many weights.
    pruning_steps: Annotated[int, Ge(1), Le(100_000)] = 20
    #: Rounds over which the steps are spread evenly; the last comes with the end of the last one.
    #: The comparison in PruneFL's paper has half of all rounds here.
    pruning_rounds: Annotated[int, Ge(1), Le(10_000_000)]
    #: Weights (`layer.weight`) that are never pruned; they are no part of that share.
    keep_dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pruning_rounds < self.pruning_steps:
            raise ValueError(
                f"pruning_rounds is {self.pruning_rounds}; allowed is at least pruning_steps "
                f"({self.pruning_steps})"
            )

    def kept_after(self, round_number: int, size: int) -> int:
        """Weights that are kept after a round, of `size` that can be pruned."""
        steps = min(self.pruning_steps, round_number * self.pruning_steps // self.pruning_rounds)
        pruned = size - round(self.density * size)
        return size - pruned * steps // self.pruning_steps
