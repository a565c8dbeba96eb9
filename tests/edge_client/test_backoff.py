"""The wait before the next attempt: bounds, growth, reset."""

from __future__ import annotations

import random

from coppice.errors import ServerBusy, ServerUnreachable
from edge_client.backoff import FIRST_SECONDS, LONGEST_SECONDS, Backoff


class Ceilings(random.Random):
    """Always the longest wait that is allowed."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0.0
        return b


def test_ceiling_doubles_up_to_the_longest_wait() -> None:
    backoff = Backoff(Ceilings())
    assert [backoff.next_seconds() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_success_starts_the_waits_again() -> None:
    backoff = Backoff(Ceilings())
    for _ in range(5):
        backoff.next_seconds()
    backoff.reset()
    assert backoff.next_seconds() == FIRST_SECONDS


def test_jitter_is_over_the_whole_range() -> None:
    backoff = Backoff(random.Random(0))
    waits = [backoff.next_seconds() for _ in range(400)][10:]
    assert all(0 <= wait <= LONGEST_SECONDS for wait in waits)
    assert min(waits) < 2
    assert max(waits) > 58


def test_busy_server_is_left_alone_for_as_long_as_it_asks() -> None:
    backoff = Backoff(Ceilings())
    assert backoff.next_seconds(ServerBusy("", 30.0)) == 30
    assert [backoff.next_seconds(ServerBusy("", 5.0)) for _ in range(3)] == [5, 5, 8]
    assert backoff.next_seconds(ServerBusy("")) == 16
    assert backoff.next_seconds(ServerUnreachable("")) == 32
