"""Masks and sparse tensors: bits, counts, names, and values that are exactly those of the ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice import tree
from coppice.errors import InvalidPayload
from coppice.sparse import Mask, SparseTensor

#: Sizes around whole bytes, nothing at all, and a scalar.
SHAPES: list[tuple[int, ...]] = [(), (0,), (3, 0), (1,), (7,), (8,), (9,), (3, 5), (4, 1, 4), (17,)]


def random_bits(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def mask(*bits: int) -> Mask:
    return Mask.of(torch.tensor(bits, dtype=torch.bool))


# ---- masks -------------------------------------------------------------------------------------


@given(st.sampled_from(SHAPES), st.integers(0, 1000))
def test_bits_come_back_as_they_were(shape: tuple[int, ...], seed: int) -> None:
    bits = random_bits(shape, seed)
    made = Mask.of(bits)
    assert made.bits.dtype == torch.bool
    assert torch.equal(made.bits, bits)
    assert made.shape == shape
    assert (made.size, made.count) == (bits.numel(), int(bits.sum()))
    assert made.positions.tolist() == bits.reshape(-1).nonzero().reshape(-1).tolist()


def test_bits_are_packed_row_by_row_and_the_lowest_of_a_byte_first() -> None:
    made = Mask.of(torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], dtype=torch.bool))
    assert made.packed.tolist() == [0b10001101, 0b10]


def test_a_mask_of_a_transposed_tensor_follows_its_shape() -> None:
    bits = random_bits((3, 5))
    assert torch.equal(Mask.of(bits.T).bits, bits.T)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_complement_keeps_what_the_mask_leaves_out(shape: tuple[int, ...]) -> None:
    for made in (Mask.of(random_bits(shape)), Mask.full(shape)):
        other = made.complement()
        assert torch.equal(other.bits, ~made.bits)
        assert made.count + other.count == made.size
        assert other.complement() == made
        # One mask has one name, however it was made.
        assert other == Mask.of(~made.bits)
        assert other.fingerprint == Mask.of(~made.bits).fingerprint


@pytest.mark.parametrize("shape", SHAPES)
def test_a_full_mask_keeps_everything(shape: tuple[int, ...]) -> None:
    full = Mask.full(shape)
    assert full.bits.all()
    assert full.count == full.size
    assert full.density == 1.0


def test_density_is_the_share_that_is_kept() -> None:
    assert mask(1, 0, 0, 0).density == 0.25
    assert mask(0, 0).density == 0.0
    assert mask().density == 1.0


def test_a_fingerprint_names_shape_and_bits() -> None:
    made = mask(1, 0, 1, 1)
    # It is stored and sent: another one is another format.
    assert made.fingerprint == "2609c3e118faa308"
    others = [
        mask(1, 0, 1, 0),
        mask(1, 0, 1, 1, 0),
        Mask((2, 2), made.packed),
        Mask((4, 1), made.packed),
    ]
    names = {made.fingerprint, *(other.fingerprint for other in others)}
    assert len(names) == 1 + len(others)


def test_masks_are_equal_when_their_bits_are() -> None:
    one, same = mask(1, 0, 1), mask(1, 0, 1)
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1
    assert one != mask(1, 0, 0)
    assert one != Mask((3, 1), one.packed)
    assert one != "a mask"


def test_positions_take_four_bytes_each() -> None:
    assert mask(0, 1, 1).positions.dtype == torch.int32
    assert mask(0, 1, 1).positions.tolist() == [1, 2]


def test_a_mask_does_not_change_with_the_tensor_that_it_was_made_of() -> None:
    bits = torch.tensor([True, False, True])
    made = Mask.of(bits)
    bits.fill_(True)
    made.bits.fill_(True)
    assert made.bits.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("shape", "packed", "says"),
    [
        ((9,), torch.zeros(1, dtype=torch.uint8), r"shape \[9\] has 2 bytes"),
        ((8,), torch.zeros(2, dtype=torch.uint8), r"shape \[8\] has 1 bytes"),
        ((8,), torch.zeros(1, dtype=torch.int8), r"shape \[8\] has 1 bytes"),
        ((8,), torch.zeros((1, 1), dtype=torch.uint8), r"shape \[8\] has 1 bytes"),
        ((), torch.zeros(0, dtype=torch.uint8), r"shape \[\] has 1 bytes"),
        ((9,), torch.tensor([0, 2], dtype=torch.uint8), "bits beyond its last entry"),
        ((), torch.tensor([2], dtype=torch.uint8), "bits beyond its last entry"),
    ],
)
def test_bytes_that_are_no_mask_are_refused(
    shape: tuple[int, ...], packed: Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Mask(shape, packed)


# ---- sparse tensors ----------------------------------------------------------------------------


@given(st.sampled_from(SHAPES), st.integers(0, 1000))
def test_what_is_taken_is_what_the_mask_keeps(shape: tuple[int, ...], seed: int) -> None:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    kept = Mask.of(random_bits(shape, seed))
    sparse = SparseTensor.take(dense, kept)
    assert sparse.values.shape == (kept.count,)
    assert (sparse.shape, sparse.dtype) == (shape, dense.dtype)
    assert torch.equal(sparse.values, dense[kept.bits])
    assert torch.equal(sparse.dense(), dense * kept.bits)


def test_a_kept_zero_stays_kept() -> None:
    sparse = SparseTensor.take(torch.tensor([0.0, 5.0, 0.0]), mask(1, 0, 1))
    assert sparse.values.tolist() == [0.0, 0.0]
    assert sparse.mask.count == 2
    assert sparse.dense().tolist() == [0.0, 0.0, 0.0]
    again = tree.load(SparseTensor, tree.save(sparse))
    assert again.mask == sparse.mask
    assert again.values.tolist() == [0.0, 0.0]


def test_values_are_in_the_order_of_the_ones_whatever_the_layout() -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    sparse = SparseTensor.take(turned, Mask.of(turned > 1))
    assert sparse.values.tolist() == [3.0, 4.0, 2.0, 5.0]
    assert torch.equal(sparse.dense(), turned * (turned > 1))


def test_taking_copies_and_has_no_gradient() -> None:
    dense = torch.ones(3, requires_grad=True)
    sparse = SparseTensor.take(dense, mask(1, 1, 0))
    assert not sparse.values.requires_grad
    sparse.values.zero_()
    sparse.dense().fill_(9.0)
    assert dense.tolist() == [1.0, 1.0, 1.0]
    assert sparse.values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_values_keep_their_type(dtype: torch.dtype) -> None:
    sparse = SparseTensor.take(torch.ones(3).to(dtype), mask(0, 1, 1))
    assert sparse.dtype == sparse.values.dtype == sparse.dense().dtype == dtype


def test_values_that_do_not_fit_the_mask_are_refused() -> None:
    for values in (torch.zeros(1), torch.zeros(3), torch.zeros(2, 1), torch.zeros(())):
        with pytest.raises(ValueError, match="do not fit a mask with 2 ones"):
            SparseTensor(mask(1, 0, 1), values)
    with pytest.raises(ValueError, match=r"shape \[3, 1\] does not fit \[3\]"):
        SparseTensor.take(torch.zeros(3, 1), mask(1, 0, 1))


# ---- saved -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    mask: Mask
    sparse: SparseTensor
    weights: Mapping[str, Tensor | SparseTensor]


def test_a_state_with_masks_is_saved_and_loaded() -> None:
    kept = Mask.of(random_bits((3, 5)))
    sparse = SparseTensor.take(torch.randn(3, 5), kept)
    state = Saved(kept, sparse, {"s": sparse, "d": torch.arange(3.0), "none": Mask.full(()).bits})
    again = tree.load(Saved, tree.save(state))
    assert again.mask == kept
    assert again.sparse.mask == kept
    assert torch.equal(again.sparse.values, sparse.values)
    loaded = again.weights["s"]
    assert isinstance(loaded, SparseTensor)
    assert loaded.mask == kept
    assert torch.equal(loaded.values, sparse.values)
    assert isinstance(again.weights["d"], Tensor)
    assert again.weights["d"].tolist() == [0.0, 1.0, 2.0]
    assert list(again.weights) == ["s", "d", "none"]
    assert tree.save(again) == tree.save(state)


@pytest.mark.parametrize(
    ("packed", "says"), [([1, 0], "has 1 bytes"), ([0b1000], "beyond its last entry")]
)
def test_a_saved_mask_that_is_none_is_refused(packed: list[int], says: str) -> None:
    broken = {"shape": [3], "packed": torch.tensor(packed, dtype=torch.uint8)}
    with pytest.raises(InvalidPayload, match=says):
        tree.load(Mask, tree.save(broken))
