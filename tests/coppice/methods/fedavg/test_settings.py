"""FedAvg's settings: what is allowed, and how the learning rate falls."""

from __future__ import annotations

from typing import Any

import pytest

from coppice.domain import MethodSpec
from coppice.errors import InvalidPayload
from coppice.method import server_half
from coppice.methods.fedavg.settings import Settings


def rates(rounds: list[int], **settings: Any) -> list[float]:
    made = Settings(local_steps=1, learning_rate=0.8, **settings)
    return [made.learning_rate_in(round_number) for round_number in rounds]


def test_the_learning_rate_stays_unless_a_schedule_says_otherwise() -> None:
    assert rates([1, 2, 1000]) == [0.8, 0.8, 0.8]


def test_step_halves_it_all_at_once() -> None:
    found = rates([1, 10, 11, 20, 21, 31], schedule="step", decay_rounds=10)
    assert found == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.1])


def test_exponential_halves_it_smoothly() -> None:
    found = rates([1, 6, 11, 21], schedule="exponential", decay_rounds=10)
    assert found == pytest.approx([0.8, 0.8 * 0.5**0.5, 0.4, 0.2])
    assert rates([3], schedule="exponential", decay_rounds=1, decay=0.1) == pytest.approx([0.008])


def test_cosine_falls_to_zero_and_stays_there() -> None:
    found = rates([1, 6, 11, 12, 99], schedule="cosine", decay_rounds=10)
    assert found == pytest.approx([0.8, 0.4, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("schedule", ["constant", "exponential", "step", "cosine"])
def test_no_schedule_ever_rises_or_goes_below_zero(schedule: Any) -> None:
    found = rates(list(range(1, 300)), schedule=schedule, decay_rounds=7, decay=0.3)
    assert found == sorted(found, reverse=True)
    assert found[-1] >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of local_steps and local_epochs"),
        ({"local_steps": 1, "local_epochs": 1}, "give one of local_steps and local_epochs"),
        ({"local_steps": -1}, "local_steps is -1; allowed is at least 0"),
        ({"local_steps": 1.5}, "local_steps is 1.5, not of type int"),
        ({"local_epochs": 0}, "local_epochs is 0; allowed is at least 1"),
        ({"local_steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"local_steps": 1, "learning_rate": 0}, "learning_rate is 0.0; allowed is more than 0"),
        ({"local_steps": 1, "momentum": 1.0}, "momentum is 1.0; allowed is less than 1"),
        ({"local_steps": 1, "decay": 1.5}, "decay is 1.5; allowed is at most 1"),
        ({"local_steps": 1, "schedule": "linear"}, "schedule is 'linear'; allowed are"),
        ({"local_steps": 1, "server_optimizer": "sgd"}, "server_optimizer is 'sgd'"),
        ({"local_steps": 1, "server_epsilon": 0.0}, "server_epsilon is 0.0"),
        ({"local_steps": 1, "localsteps": 1}, "Settings has no localsteps"),
    ],
)
def test_settings_outside_their_limits_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidPayload, match=message):
        server_half(MethodSpec(name="fedavg", settings=settings))
