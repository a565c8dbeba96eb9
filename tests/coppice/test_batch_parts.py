"""Into how many parts a batch goes, how large they are, and what that saves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from coppice import tree
from coppice.batch_parts import BatchMemory, most_parts, part_size
from coppice.errors import InvalidPayload


def test_no_part_is_of_a_single_example() -> None:
    for examples in range(2, 200):
        assert examples // most_parts(examples) in (2, 3)
        assert math.log2(most_parts(examples)).is_integer()
    assert most_parts(0) == most_parts(1) == 1


def test_the_size_is_that_of_the_largest_part() -> None:
    assert [part_size(20, parts) for parts in (1, 2, 4, 8)] == [20, 10, 5, 3]
    assert part_size(0, 1) == 0


def test_splitting_goes_on_from_the_parts_that_were_measured() -> None:
    assert list(BatchMemory(examples=20).more_parts) == [1, 2, 4, 8]
    assert list(BatchMemory(examples=20, parts=4).more_parts) == [4, 8]
    assert list(BatchMemory(examples=3).more_parts) == [1]
    assert list(BatchMemory().more_parts) == [1]


def test_what_is_saved_is_the_examples_that_are_not_there() -> None:
    batch = BatchMemory(examples=20, parts=2, bytes_per_example=100.0)
    assert [batch.saved_bytes(parts) for parts in (1, 2, 4, 8)] == [0, 0, 500, 700]


@pytest.mark.parametrize(
    "fields",
    [
        {"examples": 0},
        {"examples": 4, "parts": 0},
        {"examples": 4, "parts": 5},
        {"bytes_per_example": -1.0},
        {"bytes_per_example": math.inf},
        {"bytes_per_example": math.nan},
    ],
)
def test_what_no_batch_is_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"batch of|example takes"):
        BatchMemory(**fields)
    plain = tree.to_plain(BatchMemory()) | fields
    with pytest.raises(InvalidPayload):
        tree.from_plain(BatchMemory, plain)
