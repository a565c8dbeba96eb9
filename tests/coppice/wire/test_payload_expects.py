"""Sparse tensors and masks against what a task expects, by `decode` and by `check`."""

from __future__ import annotations

import math

import pytest
import torch

from coppice.errors import InvalidPayload
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import MASK, TensorSpec
from coppice.wire.header import largest_size_bytes
from coppice.wire.payload import check, decode, encode
from tests.coppice.wire.payload_bytes import bits, mask_at, peak_bytes, random_mask

SMALL = mask_at(1, 2, 9, size=10)
FAR = mask_at(3, 40, 79, size=80)
THREE = torch.tensor([1.0, 0.0, -2.5])

DENSE_SPEC = TensorSpec((10,), "float32")
INLINE_SPEC = TensorSpec((10,), "float32", 3)
KNOWN_SPEC = TensorSpec((10,), "float32", 3, SMALL.fingerprint)
SPARSE = SparseTensor(SMALL, THREE)
OTHER = mask_at(1, 2, 3, size=10)
FULL_SPARSE = SparseTensor(Mask.full((10,)), torch.ones(10))


@pytest.mark.parametrize(
    ("item", "known", "spec", "message"),
    [
        (SPARSE, False, DENSE_SPEC, "g/n is sparse; the task expects it dense"),
        (SPARSE, True, DENSE_SPEC, "g/n is sparse; the task expects it dense"),
        (FULL_SPARSE, False, DENSE_SPEC, "g/n is sparse"),
        (torch.ones(10), False, INLINE_SPEC, "g/n is dense; the task expects it sparse"),
        (torch.ones(10), False, KNOWN_SPEC, "g/n is dense"),
        (SPARSE, True, INLINE_SPEC, "g/n is on mask .*; the task expects a mask of its own"),
        (SPARSE, False, KNOWN_SPEC, "g/n is on a mask of its own; the task expects mask"),
        (SparseTensor(OTHER, THREE), True, KNOWN_SPEC, "g/n is on mask .*; .* expects mask"),
        (FULL_SPARSE, False, INLINE_SPEC, "g/n has 10 ones; the task expects at most 3"),
        (SPARSE, False, TensorSpec((10,), "float32", 2), "3 ones; the task expects at most 2"),
        (SPARSE, True, TensorSpec((10,), "float32", 4, SMALL.fingerprint), "expects exactly 4"),
        (SPARSE, False, TensorSpec((5, 2), "float32", 3), r"\[10\]; .* \[5, 2\]"),
        (SPARSE, False, TensorSpec((10,), "float16", 3), "expects float16"),
        (SMALL, False, INLINE_SPEC, "g/n is mask .* expects float32"),
        (SPARSE, False, TensorSpec((10,), MASK, 3), "g/n is float32 .* expects mask"),
        (SMALL, False, TensorSpec((10,), MASK, 2), "3 ones; the task expects at most 2"),
        (OTHER, False, TensorSpec((10,), MASK, 3, SMALL.fingerprint), "g/n is mask .* expects"),
        (SMALL, False, TensorSpec((10,), MASK, 4, SMALL.fingerprint), "expects exactly 4"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_name(
    item: Item, known: bool, spec: TensorSpec, message: str
) -> None:
    held = {mask.fingerprint: mask for mask in (SMALL, OTHER)} if known else {}
    data = encode({"g": {"n": item}}, known=held)
    expects = {"g": {"n": spec}}
    with pytest.raises(InvalidPayload, match=message):
        decode(data, expects, held)
    with pytest.raises(InvalidPayload, match=message):
        check(data, expects)


@pytest.mark.parametrize(
    ("item", "spec"),
    [
        (SPARSE, INLINE_SPEC),
        (SPARSE, TensorSpec((10,), "float32", 7)),
        (FULL_SPARSE, TensorSpec((10,), "float32", 10)),
        (SMALL, TensorSpec((10,), MASK)),
        (SMALL, TensorSpec((10,), MASK, 5)),
        (SMALL, TensorSpec((10,), MASK, 3, SMALL.fingerprint)),
        (FAR, TensorSpec((80,), MASK, 3, FAR.fingerprint)),
    ],
)
def test_masks_of_at_most_the_ones_expected_are_taken(item: Item, spec: TensorSpec) -> None:
    data, expects = encode({"g": {"n": item}}), {"g": {"n": spec}}
    check(data, expects)
    assert bits(decode(data, expects)["g"]["n"]) == bits(item)
    assert len(data) <= largest_size_bytes(expects)


def test_values_on_a_mask_that_is_not_here_are_refused() -> None:
    data = encode({"g": {"n": SPARSE}}, known={SMALL.fingerprint})
    for known in ({}, {OTHER.fingerprint: OTHER}):
        with pytest.raises(InvalidPayload, match=f"^g/n is on mask {SMALL.fingerprint}, which is"):
            decode(data, known=known)
    for wrong in (FAR, mask_at(1, size=10)):
        with pytest.raises(InvalidPayload, match=r"^g/n does not fit mask"):
            decode(data, known={SMALL.fingerprint: wrong})
    check(data, {"g": {"n": KNOWN_SPEC}})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sparse_values_that_are_not_finite_are_refused_where_expected(value: float) -> None:
    data = encode({"g": {"n": SparseTensor(SMALL, torch.tensor([0.0, value, 1.0]))}})
    for read in (check, decode):
        with pytest.raises(InvalidPayload, match=r"^g/n has values that are not finite$"):
            read(data, {"g": {"n": INLINE_SPEC}})
    assert decode(data)


def test_checking_takes_next_to_no_memory() -> None:
    mask = random_mask(0.05, 8_000_000)
    data = encode({"g": {"n": SparseTensor(mask, torch.ones(mask.count))}})
    spec = {"g": {"n": TensorSpec((8_000_000,), "float32", mask.count)}}
    assert peak_bytes(lambda: check(data, spec)) < 20 * 2**20
    assert peak_bytes(lambda: decode(data, spec)) < 20 * 2**20
