"""Who takes part in a round of a run, and how long it waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from coppice.section import Section


@dataclass(frozen=True, kw_only=True)
class CohortSpec(Section):
    """Who takes part in a round and how long the round waits."""

    #: Clients whose updates one round folds.
    size: Annotated[int, Ge(1), Le(100_000)]
    #: Updates that are enough when the deadline passes; by default half of `size`, rounded up.
    quorum: Annotated[int, Ge(1)] | None = None
    #: Clients planned for each that is needed; 1.2 plans 12 for 10 and closes with the first 10.
    over_selection: Annotated[float, Ge(1), Le(10)] = 1.0
    #: Only clients with these labels take part.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Whether rounds close by what they have taken so far, or always after `deadline_seconds`.
    deadline: Literal["adaptive", "fixed"] = "adaptive"
    #: From the offer of the tasks to the close of the round, at most.
    deadline_seconds: Annotated[float, Gt(0), Le(604_800)] = 600.0
    #: An adaptive deadline is never shorter, where `deadline_seconds` is not.
    deadline_shortest_seconds: Annotated[float, Gt(0), Le(604_800)] = 120.0
    #: It is so many spreads of a client's rounds beyond what they usually take.
    deadline_spreads: Annotated[float, Ge(0), Le(100)] = 4.0
    #: How long a round waits for the clients it would rather have before it takes those it has.
    gather_seconds: Annotated[float, Gt(0), Le(86_400)] = 30.0
    #: A client that has been silent for so long is not waited for.
    lost_after_seconds: Annotated[float, Ge(10), Le(86_400)] = 60.0

    def __post_init__(self) -> None:
        if self.quorum is not None and self.quorum > self.size:
            raise ValueError(
                f"cohort.quorum is {self.quorum}; allowed is at most cohort.size ({self.size})"
            )

    @property
    def needed(self) -> int:
        """Updates without which a round fails."""
        return self.quorum if self.quorum is not None else (self.size + 1) // 2

    @property
    def planned(self) -> int:
        """Clients that a round gives a task, over-selection included."""
        return int(self.size * self.over_selection + 0.5)
