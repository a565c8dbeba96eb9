"""What a run does about updates that harm it: the settings, and what is said of a refused one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from coppice.section import Section

#: How the updates of a round become one (`coppice.robust`).
Aggregate = Literal["mean", "median", "trimmed", "clipped", "krum", "multi-krum"]

#: What an update was refused by: "structure" (names, shapes, types, values that are not finite),
#: "claims" (examples and steps that cannot be), "size" or "weight" (against the others' of its
#: round).
Rule = Literal["structure", "claims", "size", "weight"]


#: Of a reason.
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Finding:
    """Why an update is refused."""

    rule: Rule
    #: One sentence for people, without the client's name; printable, whatever a device put into it.
    reason: str
    #: The figures behind it, by name.
    evidence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shown = "".join(char if char.isprintable() else " " for char in self.reason)
        object.__setattr__(self, "reason", shown[:_MOST_CHARACTERS])


@dataclass(frozen=True, kw_only=True)
class ProtectionSpec(Section):
    """What a run does about updates that harm it."""

    #: Whether claims are checked, and sizes of updates judged against the round's (see
    #: `coppice.firewall`). Structure and finite values are checked always.
    firewall: bool = True
    #: Refused updates after which a client is left out of the run's cohorts; 0 is never.
    strikes: Annotated[int, Ge(0), Le(10_000)] = 3
    #: What becomes one update of a round's many: the method's own mean, or a robust rule before it.
    aggregate: Aggregate = "mean"
    #: With "trimmed": share of a coordinate's holders that is left out at either end.
    trim: Annotated[float, Gt(0), Lt(0.5)] = 0.2
    #: With "clipped": longest L2 norm of an update; None takes the round's own median.
    clip_norm: Annotated[float, Gt(0)] | None = None
    #: With "krum" and "multi-krum": hostile clients in a cohort that it is to withstand (f).
    hostile: Annotated[int, Ge(1), Le(50_000)] = 1
    #: With "multi-krum": updates whose mean is taken (m); None takes n - f - 2.
    selected: Annotated[int, Ge(1), Le(100_000)] | None = None

    @property
    def fewest_updates(self) -> int:
        """Updates of a round below which the rule cannot withstand what it is set to."""
        return 2 * self.hostile + 3 if self.aggregate in ("krum", "multi-krum") else 1

    def leaves_out(self, strikes: int) -> bool:
        """Whether a client with so many refused updates takes part no more."""
        return 0 < self.strikes <= strikes


def needed_updates(needed: int, planned: int, refused: int) -> int:
    """Updates without which a round fails, of so many planned of which so many were refused.

    A refused update is an answer: a few of them must not fail the round for the others, even where
    the quorum is everybody. Where half or more were refused, the fault is the run's, and the quorum
    stays what it was.
    """
    needed = min(needed, planned)
    return min(needed, planned - refused) if 2 * refused < planned else needed
