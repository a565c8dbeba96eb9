"""Claims of examples and steps: what cannot be is refused with its figures."""

from __future__ import annotations

from typing import Any

import pytest

from coppice.claims import check_claims
from coppice.local_training import LocalTraining


def test_what_a_task_allows_is_believed_to_the_last_one() -> None:
    assert check_claims(60, 5, 60, 5) is None
    assert check_claims(0, 0, 60, 5) is None


@pytest.mark.parametrize(("examples", "steps", "word"), [(61, 5, "examples"), (60, 6, "steps")])
def test_one_more_is_refused(examples: int, steps: int, word: str) -> None:
    finding = check_claims(examples, steps, 60, 5)
    assert finding is not None
    assert finding.rule == "claims"
    assert word in finding.reason
    assert set(finding.evidence.values()) in ({61.0, 60.0}, {6.0, 5.0})


def test_where_nothing_is_known_anything_is_believed() -> None:
    assert check_claims(2**52, 2**52, None, None) is None


@pytest.mark.parametrize(
    ("settings", "examples", "steps"),
    [
        ({"local_steps": 7}, 1000, 7),
        ({"local_steps": 0}, 1000, 0),
        ({"local_epochs": 2, "batch_size": 20}, 41, 6),
        ({"local_epochs": 2, "batch_size": 20}, 40, 4),
        ({"local_epochs": 3}, 0, 0),
    ],
)
def test_steps_of_a_round(settings: dict[str, Any], examples: int, steps: int) -> None:
    assert LocalTraining(**settings).most_steps(examples) == steps
