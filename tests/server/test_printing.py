"""Tables, times and sizes for people."""

from __future__ import annotations

import time

import pytest

from coppice.table import table
from server.printing import moment, size


def test_columns_are_as_wide_as_they_need_to_be_and_numbers_stand_right() -> None:
    text = table(("run", "name", "best"), [(1, "digits", 0.91234), (12, "a", None), (123, "", 1.0)])
    assert text.splitlines() == [
        "run  name      best",
        "───  ──────  ──────",
        "  1  digits  0.9123",
        " 12  a            -",
        "123          1.0000",
    ]


def test_table_without_rows_has_its_head() -> None:
    assert table(("run", "name"), []).splitlines() == ["run  name", "───  ────"]


def test_column_with_one_text_stands_left() -> None:
    assert table(("x",), [(1,), ("two",)]).splitlines() == ["x", "───", "1", "two"]


def test_row_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("x", "y"), [(1,)])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (26_400_000, "26.4 MB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (999_999_999, "1.0 GB"),
        (2_500_000_000_000, "2.5 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_size_is_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text


def test_moment_is_local_time() -> None:
    at = time.mktime((2026, 7, 8, 9, 10, 11, 0, 0, -1))
    assert moment(at) == "2026-07-08 09:10:11"
    assert moment(None) == ""
