"""Sizes against the round's own: what is far too large is refused, what merely differs is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coppice.domain import ClientId
from coppice.firewall import Measured, is_judged, judge, measure
from coppice.method import Update
from coppice.sparse import Item, Mask, SparseTensor


def item(name: str, change: float = 1.0, **fields: Any) -> Measured:
    kept: dict[str, Any] = {"num_examples": 100, "steps": 10, "buffers": 0.0}
    return Measured(ClientId(name), change=change, **(kept | fields))


def refused(*changes: float, **fields: Any) -> list[str]:
    """Who is refused of clients a, b, c … with these changes."""
    return sorted(
        judge([item(name, x, **fields) for name, x in zip("abcdefghij", changes, strict=False)])
    )


# ---- size ----


@pytest.mark.parametrize("factor", [1000.0, 21.0, 1e30])
def test_one_that_is_far_larger_than_the_others_is_refused(factor: float) -> None:
    assert refused(1, 1, 1, 1, factor) == ["e"]


@pytest.mark.parametrize("factor", [19.0, 2.0, 1e-9, 0.0])
def test_one_that_differs_as_honest_devices_do_is_not(factor: float) -> None:
    assert refused(1, 1, 1, 1, factor) == []


def test_the_more_the_others_differ_the_more_one_may() -> None:
    spread = (1, 3, 9, 27, 81, 243)
    assert refused(*spread, 3000) == []
    assert refused(1, 1, 1, 2, 2, 2, 3000) == ["g"]


def test_as_many_as_a_minority_are_refused_however_large_they_are() -> None:
    assert refused(1, 1.2, 0.8, 1e6, 1e6) == ["d", "e"]
    assert refused(1, 1.2, 0.8, 1.1, 1e3, 1e6, 1e9) == ["e", "f", "g"]


@pytest.mark.parametrize(
    ("devices", "updates", "judged"), [(5, 5, True), (5, 3, True), (5, 2, False), (4, 4, False)]
)
def test_rounds_of_five_devices_are_judged_by_three_updates(
    devices: int, updates: int, judged: bool
) -> None:
    assert is_judged(devices, updates) is judged


def test_of_three_updates_one_stands_out() -> None:
    assert refused(1, 1.5, 1000) == ["c"]


def test_devices_that_changed_nothing_say_nothing_of_what_is_ordinary() -> None:
    assert refused(0, 0, 0, 0, 5.0) == []
    assert refused(0, 0, 0, 0, 0, 0, 1, 1, 1, 1000) == ["j"]


def test_sizes_are_of_a_step() -> None:
    slow = [item(name, 1.0, steps=1) for name in "abcd"]
    assert judge([*slow, item("e", 100.0, steps=1)]).keys() == {"e"}
    assert judge([*slow, item("e", 100.0, steps=10)]) == {}


def test_a_claim_of_many_steps_makes_no_large_update_small() -> None:
    others = [item(name) for name in "abcd"]
    assert judge([*others, item("e", 1000.0, steps=10_000)]).keys() == {"e"}


def test_buffers_are_judged_as_they_are() -> None:
    others = [item(name, buffers=1.0) for name in "abcd"]
    found = judge([*others, item("e", buffers=1e3)])
    assert found[ClientId("e")].reason.startswith("its buffers are 1e+03 on average")
    # More steps make no smaller buffers.
    assert judge([*others, item("e", buffers=1e3, steps=100)]).keys() == {"e"}


def test_the_reason_names_the_figures() -> None:
    finding = judge([*(item(name) for name in "abcd"), item("e", 1000.0)])[ClientId("e")]
    assert finding.rule == "size"
    assert finding.reason == (
        "its change is 100 per weight and step, 1e+03 times the round's median of 0.1; up to 20 "
        "times is let through"
    )
    assert finding.evidence["times"] == pytest.approx(1000)
    assert finding.evidence["updates"] == 5


# ---- weight ----


def test_a_claim_of_far_too_many_examples_is_refused() -> None:
    others = [item(name) for name in "abcd"]
    assert judge([*others, item("e", num_examples=100_000)]) == {}
    finding = judge([*others, item("e", num_examples=100_001)])[ClientId("e")]
    assert (finding.rule, finding.evidence["allowed_times"]) == ("weight", 1000)
    assert finding.reason.startswith("it claims 100001 examples, 1e+03 times the round's median")


# ---- what is measured ----


def test_a_size_is_the_root_mean_square_of_what_is_held() -> None:
    mask = Mask.of(torch.tensor([True, False, False, True]))
    delta: dict[str, Item] = {
        "w": SparseTensor(mask, torch.tensor([3.0, 4.0])),
        "b": torch.tensor([0.0, 5.0]),
    }
    buffers = {"mean": torch.tensor([2.0, -2.0]), "count": torch.tensor(10**6)}
    update = Update(ClientId("a"), {"delta": delta, "buffers": buffers}, 7, steps=3)
    found = measure(update)
    assert (found.client_id, found.num_examples, found.steps) == ("a", 7, 3)
    assert (found.change, found.buffers) == pytest.approx(((50 / 4) ** 0.5, 2.0))


def test_squares_of_the_largest_values_are_measured_too() -> None:
    update = Update(ClientId("a"), {"delta": {"w": torch.full((4,), 3e38)}}, 1)
    assert measure(update).change == pytest.approx(3e38, rel=1e-6)
    assert measure(update).buffers == 0.0
