"""Initial pruning on one client, as far as it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from coppice.domain import ClientId, Participant


@dataclass(frozen=True)
class InitialPruning:
    """A chain of tasks, each of which returns what it came to."""

    passes: int = 0
    #: After each reconfiguration.
    densities: tuple[float, ...] = ()
    #: Who did the last passes, and in which round.
    client: ClientId | None = None
    round_number: int = 0

    def next_client(
        self, named: ClientId | None, cohort: Sequence[Participant], round_number: int
    ) -> ClientId:
        """The one that is named; else the one that has begun, then the strongest, in turns.

        A round that came to nothing is the next one's turn: a device that claims to be strong, or
        was, does not hold up the run.
        """
        order = sorted(
            cohort,
            key=lambda item: (
                item.client_id == named,
                item.num_examples > 0,
                item.client_id == self.client,
                item.capability.memory_bytes,
                item.capability.num_threads,
            ),
            reverse=True,
        )
        if order[0].client_id == named:
            return order[0].client_id
        failed = round_number - self.round_number - 1
        return order[failed % len(order)].client_id


def has_settled(densities: Sequence[float], times: int, within: float) -> bool:
    """Whether the last so many changes of the density were no larger than this share of it."""
    last = densities[-times - 1 :]
    changes = [abs(new / old - 1) for old, new in pairwise(last)]
    return len(changes) == times and max(changes) <= within
