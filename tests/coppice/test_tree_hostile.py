"""Bytes that no `save` has written: they are refused with InvalidPayload and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.errors import InvalidPayload
from coppice.tree import load, save


@dataclass(frozen=True)
class State:
    weights: Mapping[str, Tensor]
    step: int
    rate: float


WHOLE = save(State({"a": torch.ones(2, 2), "b": torch.tensor(3)}, 5, 0.5))


def file(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def saved(tree: object, tensors: Mapping[str, Any] | None = None, data: bytes = b"") -> bytes:
    """A safetensors file that claims to hold a tree."""
    text = tree if isinstance(tree, str) else json.dumps(tree)
    return file({"__metadata__": {"tree": text}} | dict(tensors or {}), data)


def one(dtype: str, shape: list[int], size: int) -> bytes:
    """A state whose one tensor claims to be this."""
    tree = {"weights": {"a": {"tensor": 0}}, "step": 1, "rate": 1.0}
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return saved(tree, {"0": entry}, bytes(size))


def refuse(data: bytes) -> None:
    with pytest.raises(InvalidPayload) as caught:
        load(State, data)
    # One line, and not a whole stack of another language.
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_files_that_these_tests_break_are_read() -> None:
    assert load(State, WHOLE).weights["b"].item() == 3
    assert load(State, one("F32", [1], 4)).weights["a"].tolist() == [0.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04" + b"\0" * 40,
        file(b""),
        file(b"[]"),
        file(b"null"),
        file(b"\xff\xfe"),
        file({}),
        file({"__metadata__": {}}),
        file({"__metadata__": {"other": "{}"}}),
        file({"__metadata__": {"tree": 3}}),
        file(b"[" * 100_000),
        saved(""),
        saved("{"),
        saved("null"),
        saved("[" * 100_000 + "]" * 100_000),
        saved('{"step": ' + "9" * 5000 + "}"),
        saved({"weights": {}, "step": 1, "rate": 10**400}),
        saved({"weights": {"a": {"tensor": 0}}, "step": 1, "rate": 1.0}),
        saved({"weights": {}, "step": 1, "rate": 1.0}, {}, b"more"),
    ],
)
def test_a_file_that_is_none_is_refused(data: bytes) -> None:
    refuse(data)


def test_tensors_whose_names_are_not_their_numbers_are_refused() -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    tree = {"weights": {"a": {"tensor": 0}}, "step": 1, "rate": 1.0}
    refuse(saved(tree, {"1": entry}, bytes(4)))
    refuse(saved(tree, {"w": entry}, bytes(4)))


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", [1], 8),
        ("F32", [2], 4),
        ("F31", [1], 4),
        ("F4", [8], 4),
        ("F32", [2**62, 4], 0),
        ("F32", [2**40, 2**40, 0], 0),
        ("F32", [0, 2**40, 2**40], 0),
        ("F32", [0, 2**63], 0),
        ("F32", [2**64 - 1, 0], 0),
        ("F32", [2**70], 0),
        ("F32", [-1], 4),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(dtype: str, shape: list[int], size: int) -> None:
    refuse(one(dtype, shape, size))


@pytest.mark.parametrize("end", range(0, len(WHOLE), 3))
def test_a_file_that_ends_early_is_refused(end: int) -> None:
    refuse(WHOLE[:end])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    refuse(data)


def test_changed_bytes_are_refused_or_read() -> None:
    chance = random.Random(0)
    for _ in range(3000):
        data = bytearray(WHOLE)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice(b'\0\xff"{}[]:,0123456789abtr')
        with suppress(InvalidPayload):
            load(State, bytes(data))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["weights", "step", "rate", "a", "tensor"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    )
)
def test_random_trees_are_refused_or_read(tree: object) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with suppress(InvalidPayload):
        load(State, saved(tree, {"0": entry}, bytes(4)))


def test_nothing_but_the_named_types_is_made() -> None:
    # What a pickle would do at this point.
    tree = {"weights": {}, "step": {"__reduce__": ["os.system", ["true"]]}, "rate": 1.0}
    refuse(saved(tree))
