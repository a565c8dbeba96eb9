"""Terms and costs travel as tensors, and what comes back is the same or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from coppice.device_cost import LayerCost
from coppice.errors import InvalidPayload
from coppice.methods.prunefl.profile import LayerProfile, Profile
from coppice.methods.prunefl.terms import (
    POINTS,
    Terms,
    cost_from_tensors,
    cost_to_tensors,
    no_cost,
    terms_from_payload,
    terms_to_payload,
)
from coppice.tensors import spec_of
from coppice.wire.payload import decode, encode
from tests.coppice.costs import device_cost
from tests.coppice.toys import two_layers

PROFILE = Profile(
    layers={
        "a": LayerProfile(kept=(1, 4, 9, 20), gains=(0.1, 0.3, 0.31, 0.7)),
        "b": LayerProfile(kept=(2, 3, 3), gains=(0.0, 0.0, 0.0)),
    },
    levels=1,
    base_gain=0.25,
)
TERMS = Terms(PROFILE, pace_seconds=1.75, max_steps=5, report_due=True)


@pytest.mark.parametrize("report_due", [False, True])
def test_terms_come_back_as_they_were(report_due: bool) -> None:
    terms = replace(TERMS, report_due=report_due)
    assert terms_from_payload(decode(encode(terms_to_payload(terms)))) == terms


@pytest.mark.parametrize(
    ("group", "name", "values"),
    [
        ("kept", "a", [4, 1, 9, 20]),
        ("kept", "a", [1, 4, 9]),
        ("kept", "a", []),
        ("gains", "a", [0.1, 0.3, 0.2, 0.7]),
        ("gains", "a", [0.1, 0.3, 0.31, float("nan")]),
        ("gains", "a", [0.1, 0.3, 0.31, float("inf")]),
        ("terms", "levels", [3.0]),
        ("terms", "levels", [float("nan")]),
        ("terms", "pace_seconds", [-1.0]),
        ("terms", "pace_seconds", [float("nan")]),
        ("terms", "pace_seconds", [float("inf")]),
        ("terms", "max_steps", []),
        ("terms", "max_steps", [0.0]),
        ("terms", "base_gain", [-0.5]),
        ("terms", "report_due", [0.5]),
        ("terms", "report_due", [float("nan")]),
        ("terms", "report_due", []),
    ],
)
def test_terms_that_make_no_sense_are_refused(group: str, name: str, values: list[Any]) -> None:
    payload = {key: dict(items) for key, items in terms_to_payload(TERMS).items()}
    payload[group][name] = torch.tensor(values)
    with pytest.raises(InvalidPayload, match="make no sense"):
        terms_from_payload(payload)


def test_terms_with_a_group_missing_are_refused() -> None:
    payload = {**terms_to_payload(TERMS), "gains": {}}
    with pytest.raises(InvalidPayload, match="make no sense"):
        terms_from_payload(payload)


def test_a_cost_comes_back_as_it_was_and_always_looks_alike() -> None:
    cost = device_cost(two_layers(), slowness=3.0)
    told = cost_to_tensors(cost)
    assert cost_from_tensors(told) == cost
    assert spec_of({"cost": told}) == spec_of({"cost": no_cost(list(cost.time.layers))})


def test_a_layer_that_can_only_be_dense_comes_back_as_such() -> None:
    cost = device_cost(two_layers())
    dense = LayerCost(kept=(), sparse_seconds=(), dense_seconds=0.5)
    layers = {**cost.time.layers, "0.weight": dense}
    time = type(cost.time)(
        round_seconds=0.0, step_seconds=0.0, seconds_per_value=0.0, layers=layers
    )
    told = cost_to_tensors(type(cost)(time=time, memory=cost.memory, limit_bytes=1.0))
    found = cost_from_tensors(told)
    assert found is not None
    assert found.time.layers["0.weight"] == dense


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0, 1e300])
def test_a_cost_that_makes_no_sense_counts_as_none(value: float) -> None:
    names = list(device_cost(two_layers()).time.layers)
    for name in ("round", "0.weight"):
        for place in range(2 * POINTS + 5 if name != "round" else 5):
            told = {
                key: item.clone()
                for key, item in cost_to_tensors(device_cost(two_layers())).items()
            }
            told[name][place] = value
            found = cost_from_tensors(told)
            # A number that is no count in the table may happen to leave a shorter table.
            assert found is None or found.time.layers.keys() == set(names)
            if name == "round":
                assert found is None


def test_who_does_not_know_says_so() -> None:
    assert cost_from_tensors(no_cost(["0.weight", "2.weight"])) is None
