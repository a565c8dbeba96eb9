"""Strangers may try a few times, and more later; one of them cannot keep the others out."""

from __future__ import annotations

import pytest

from coppice.errors import ServerBusy
from server import attempts
from server.attempts import (
    BURST,
    ENROLMENT,
    MOST_ADDRESSES,
    PER_SECOND,
    TOTAL_BURST,
    Attempts,
    enrolment_pace,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tried(clock: Clock) -> Attempts:
    return Attempts(clock)


def allowed(tried: Attempts, address: str, most: int = 1000) -> int:
    """How many attempts of an address succeed."""
    for count in range(most):
        try:
            tried.count(address)
        except ServerBusy:
            return count
    return most


def test_burst_and_then_one_at_a_time(tried: Attempts, clock: Clock) -> None:
    assert allowed(tried, "10.0.0.1") == BURST
    assert allowed(tried, "10.0.0.1") == 0
    clock.now += 3.5 / PER_SECOND
    assert allowed(tried, "10.0.0.1") == 3
    clock.now += 1e6
    assert allowed(tried, "10.0.0.1") == BURST


def test_one_address_does_not_use_up_another_s(tried: Attempts) -> None:
    allowed(tried, "10.0.0.1")
    for _ in range(10_000):
        with pytest.raises(ServerBusy, match="from this address"):
            tried.count("10.0.0.1")
    assert allowed(tried, "10.0.0.2") == BURST


def test_addresses_of_one_ipv6_network_are_one(tried: Attempts) -> None:
    assert allowed(tried, "2001:db8::1") == BURST
    assert allowed(tried, "2001:db8::ffff:2") == 0
    assert allowed(tried, "2001:db8:0:1::1") == BURST


def test_all_together_are_bounded(tried: Attempts) -> None:
    taken = sum(allowed(tried, f"10.0.0.{number}") for number in range(200))
    assert taken == TOTAL_BURST
    with pytest.raises(ServerBusy, match="too many try"):
        tried.count("10.0.1.1")


def test_memory_is_bounded(tried: Attempts) -> None:
    for number in range(MOST_ADDRESSES + 500):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(attempts, "TOTAL_BURST", 1e9)
            allowed(tried, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", most=1)
    assert len(tried._addresses) == MOST_ADDRESSES


def test_caller_without_an_address_counts_too(tried: Attempts) -> None:
    assert allowed(tried, "") == BURST


def test_who_tries_too_often_is_told_when_to_come_back(tried: Attempts, clock: Clock) -> None:
    allowed(tried, "10.0.0.1")
    with pytest.raises(ServerBusy) as caught:
        tried.count("10.0.0.1")
    assert caught.value.retry_seconds == 1 / PER_SECOND
    clock.now += caught.value.retry_seconds
    tried.count("10.0.0.1")


def test_larger_pace_lets_more_in(clock: Clock) -> None:
    tried = Attempts(clock, enrolment_pace(600))
    assert allowed(tried, "10.0.0.1") == 600
    clock.now += 1
    assert allowed(tried, "10.0.0.1") == 10
    assert enrolment_pace(int(BURST)) == ENROLMENT
