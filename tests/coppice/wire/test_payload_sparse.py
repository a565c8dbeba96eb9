"""Sparse tensors and masks as bytes: golden bytes, round trips, sizes, and what is expected."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from coppice.errors import InvalidPayload
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import DTYPES, MASK, TensorSpec, spec_of
from coppice.wire.header import encoded_size_bytes, largest_size_bytes
from coppice.wire.payload import check, decode, encode
from tests.coppice.wire.payload_bytes import (
    BITMAP,
    CODES,
    COORDINATES,
    FULL,
    MASK_CODE,
    VALUES,
    bits,
    bits_of,
    entry,
    mask_at,
    padded,
    payload,
    random_mask,
)

F32 = CODES["float32"][0]


# ---- golden bytes ------------------------------------------------------------------------------

#: Ones at 1, 2 and 9 of 10: the bitmap is 06 02.
SMALL = mask_at(1, 2, 9, size=10)
#: Ones at 3, 40 and 79 of 80: gaps 3, 36 and 38. With k = 4 they cost 3 * 5 + 0 + 2 + 2 bits, and
#: with 3 or 5 one more. Remainders 0011, 0100 and 0110, in planes; quotients 0, 2 and 2
#: are the bits 1 001 001, the first the lowest.
FAR = mask_at(3, 40, 79, size=80)
FAR_COORDINATES = bytes([4, 0b001, 0b101, 0b110, 0b000, 0b1001001])
THREE = torch.tensor([1.0, 0.0, -2.5])
THREE_BYTES = bytes.fromhex("0000803f 00000000 000020c0")


@pytest.mark.parametrize(
    ("item", "header", "data"),
    [
        (
            SparseTensor(SMALL, THREE),
            entry("g", "n", F32, [10], 14, BITMAP, ones=3),
            THREE_BYTES + b"\x06\x02",
        ),
        (
            SparseTensor(FAR, THREE),
            entry("g", "n", F32, [80], 18, COORDINATES, ones=3),
            THREE_BYTES + FAR_COORDINATES,
        ),
        (
            SparseTensor(Mask.full((3, 1)), THREE),
            entry("g", "n", F32, [3, 1], 12, FULL, ones=3),
            THREE_BYTES,
        ),
        (SMALL, entry("g", "n", MASK_CODE, [10], 2, BITMAP, ones=3), b"\x06\x02"),
        (FAR, entry("g", "n", MASK_CODE, [80], 6, COORDINATES, ones=3), FAR_COORDINATES),
        (
            Mask.full((9,)),
            entry("g", "n", MASK_CODE, [9], 2, BITMAP, ones=9),
            b"\xff\x01",
        ),
        (
            SparseTensor(mask_at(size=17), torch.zeros(0)),
            entry("g", "n", F32, [17], 1, COORDINATES, ones=0),
            b"\0",
        ),
        (
            # Of the first 10 of 99 only: k = 0, whose unary part is a bitmap that ends early.
            mask_at(*range(10), size=99),
            entry("g", "n", MASK_CODE, [99], 3, COORDINATES, ones=10),
            b"\0\xff\x03",
        ),
        (
            # Three bits with k = 0 and with k = 1.
            mask_at(2, size=17),
            entry("g", "n", MASK_CODE, [17], 2, COORDINATES, ones=1),
            b"\0\x04",
        ),
        (
            # Two bytes either way.
            mask_at(2, size=16),
            entry("g", "n", MASK_CODE, [16], 2, BITMAP, ones=1),
            b"\x04\0",
        ),
    ],
    ids=[
        "bitmap",
        "coordinates",
        "full",
        "mask",
        "far mask",
        "full mask",
        "no ones",
        "k=0",
        "smallest k of two",
        "bitmap of two",
    ],
)
def test_golden_bytes_of_masks_that_travel(item: Item, header: bytes, data: bytes) -> None:
    golden = payload([header], [data])
    assert encode({"g": {"n": item}}) == golden
    assert bits(decode(golden)["g"]["n"]) == bits(item)
    spec = spec_of({"g": {"n": item}})["g"]["n"]
    check(golden, {"g": {"n": TensorSpec(spec.shape, spec.dtype, spec.ones)}})


def test_golden_bytes_of_values_only() -> None:
    # SHA-256 of "10;" and the bytes 06 02.
    fingerprint = bytes.fromhex(SMALL.fingerprint)
    sparse = SparseTensor(SMALL, THREE)
    golden = payload(
        [entry("g", "n", F32, [10], 12, VALUES, ones=3, fingerprint=fingerprint)], [THREE_BYTES]
    )
    assert encode({"g": {"n": sparse}}, known={SMALL.fingerprint}) == golden
    read = decode(golden, known={SMALL.fingerprint: SMALL})["g"]["n"]
    assert bits(read) == bits(sparse)
    assert isinstance(read, SparseTensor)
    assert read.mask is SMALL


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mask", "encoding", "tail"),
    [(SMALL, BITMAP, b"\x06\x02"), (FAR, COORDINATES, FAR_COORDINATES), (SMALL, VALUES, b"")],
)
def test_every_element_type_travels_sparse(
    dtype: str, mask: Mask, encoding: int, tail: bytes
) -> None:
    code, size = CODES[dtype]
    one = torch.ones(1).to(DTYPES[dtype]).view(torch.uint8).numpy().tobytes()
    fingerprint = bytes.fromhex(mask.fingerprint) if encoding == VALUES else b""
    length = 3 * size + len(tail)
    golden = payload(
        [entry("g", "n", code, mask.shape, length, encoding, ones=3, fingerprint=fingerprint)],
        [one + bytes(size) + one + tail],
    )
    sparse = SparseTensor(mask, torch.tensor([1, 0, 1]).to(DTYPES[dtype]))
    known = {mask.fingerprint: mask} if encoding == VALUES else {}
    assert encode({"g": {"n": sparse}}, known=known) == golden
    assert bits(decode(golden, known=known)["g"]["n"]) == bits(sparse)


# ---- round trips -------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Random, clustered, empty and full masks, some across several slices."""
    size = draw(st.one_of(st.integers(0, 70), st.integers(0, 5000)))
    runs = draw(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=6))
    density = draw(st.sampled_from([0.0, 0.0, 0.002, 0.05, 0.3, 0.7, 1.0]))
    kept = torch.rand(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    chosen = kept < density
    for start, length in runs:
        chosen[start : start + length] = True
    shape = (2, size // 2) if size % 2 == 0 else (size, 1, 1)
    return Mask.of(chosen.reshape(shape))


@st.composite
def items(draw: st.DrawFn) -> Item:
    mask, dtype = draw(masks()), DTYPES[draw(st.sampled_from(list(DTYPES)))]
    values = torch.arange(mask.count).remainder(7).to(dtype)
    kind = draw(st.sampled_from(["dense", "sparse", "mask"]))
    if kind == "dense":
        return values
    return mask if kind == "mask" else SparseTensor(mask, values)


@given(st.dictionaries(st.text(min_size=1, max_size=5), items(), max_size=4), st.booleans())
@example({"n": SparseTensor(Mask.full((3,)), THREE)}, False)
def test_what_is_written_is_read_again(members: dict[str, Item], compress: bool) -> None:
    groups = {"g": members}
    data = encode(groups, compress=compress)
    assert bits_of(decode(data)) == bits_of(groups)
    expects = {
        group: {name: TensorSpec(spec.shape, spec.dtype, spec.ones) for name, spec in specs.items()}
        for group, specs in spec_of(groups).items()
    }
    check(data, expects)
    assert bits_of(decode(data, expects)) == bits_of(groups)
    assert len(data) <= largest_size_bytes(expects)


@given(st.dictionaries(st.text(min_size=1, max_size=5), items(), max_size=4))
def test_values_alone_are_read_on_the_masks_that_are_known(members: dict[str, Item]) -> None:
    groups = {"g": {name: item for name, item in members.items() if not isinstance(item, Mask)}}
    known = {
        item.mask.fingerprint: item.mask
        for item in groups["g"].values()
        if isinstance(item, SparseTensor)
    }
    data, expects = encode(groups, known=known), spec_of(groups)
    assert len(data) == encoded_size_bytes(expects) == largest_size_bytes(expects)
    check(data, expects)
    assert bits_of(decode(data, expects, known)) == bits_of(groups)


@pytest.mark.parametrize("positions", [(0, 6), (31,), tuple(range(0, 60, 2)), (0, 70, 799)])
@pytest.mark.parametrize("known", [False, True])
def test_an_entry_that_grew_back_at_zero_stays(positions: tuple[int, ...], known: bool) -> None:
    mask = mask_at(*positions, size=800)
    sparse = SparseTensor(mask, torch.zeros(len(positions)))
    held = {mask.fingerprint: mask} if known else {}
    read = decode(encode({"g": {"n": sparse}}, known=held), known=held)["g"]["n"]
    assert isinstance(read, SparseTensor)
    assert read.mask.positions.tolist() == list(positions)
    assert read.values.tolist() == [0.0] * len(positions)


@pytest.mark.parametrize(
    "positions",
    [
        (0, 2**21),
        (2**18 - 1, 2**18, 2**18 + 1, 2**21),
        (*range(2**18 - 5, 2**18 + 5), 2**21 - 1),
        (2**30,),
        (7, 2**31 - 2),
    ],
)
def test_far_apart_ones_are_found_again(positions: tuple[int, ...]) -> None:
    size = positions[-1] + 1
    packed = torch.zeros(-(-size // 8), dtype=torch.uint8)
    for position in positions:
        packed[position // 8] |= 1 << position % 8
    mask = Mask((size,), packed)
    if size > 2**29:
        with pytest.raises(InvalidPayload, match="unfold"):
            encode({"g": {"n": mask}})
        return
    data = encode({"g": {"n": mask}})
    assert len(data) < 100
    assert decode(data)["g"]["n"] == mask


def test_masks_of_many_slices_are_found_again() -> None:
    for density in (0.001, 0.02, 0.1, 0.3):
        mask = random_mask(density, 3, 700_001)
        assert decode(encode({"g": {"n": mask}}))["g"]["n"] == mask


def test_a_decoded_mask_does_not_hold_the_payload() -> None:
    data = encode({"g": {"n": SMALL}})
    read = decode(data)["g"]["n"]
    data[:] = bytes(len(data))
    assert read == SMALL


def test_values_of_a_sparse_tensor_share_memory_with_the_bytes() -> None:
    data = encode({"g": {"n": SparseTensor(FAR, THREE)}})
    read = decode(data)["g"]["n"]
    assert isinstance(read, SparseTensor)
    read.values.fill_(1.0)
    assert bytes(data[-24:-12]) == bytes.fromhex("0000803f") * 3


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5, 0.97, 1.0])
def test_sizes_are_those_of_the_formulas(density: float) -> None:
    mask = random_mask(density, 300, 411)
    n, m = mask.size, mask.count
    sparse = SparseTensor(mask, torch.ones(m))
    names = 1 + 1 + 2 + 1 + 4 + 2 * 4 + 8
    dense = encode({"g": {"n": sparse.dense()}})
    assert len(dense) == 16 + len(padded(bytes(names))) + len(padded(bytes(4 * n)))
    alone = encode({"g": {"n": sparse}}, known=[mask.fingerprint])
    assert len(alone) == 16 + len(padded(bytes(names + 16))) + len(padded(bytes(4 * m)))
    inline = encode({"g": {"n": sparse}})
    stream = 0 if m == n else min(-(-n // 8), coordinates_bytes(mask))
    assert len(inline) == 16 + len(padded(bytes(names + 8))) + len(padded(bytes(4 * m + stream)))


def coordinates_bytes(mask: Mask) -> int:
    """The page's formula, for the k with the fewest bits."""
    found = np.flatnonzero(mask.bits.numpy())
    gaps = np.diff(found, prepend=-1) - 1
    totals = [len(gaps) * (k + 1) + int((gaps >> k).sum()) for k in range(31)]
    k = int(np.argmin(totals))
    plane_bytes = -(-len(gaps) // 8)
    return 1 + k * plane_bytes + -(-(len(gaps) + int((gaps >> k).sum())) // 8)


@given(masks())
def test_the_shorter_of_bitmap_and_best_coordinates_is_written(mask: Mask) -> None:
    bitmap = -(-mask.size // 8)
    best = coordinates_bytes(mask) if mask.count else 1
    data = encode({"g": {"n": mask}})
    written = mask_bytes_of(data, mask)
    assert written == min(bitmap, best)


def mask_bytes_of(data: bytearray, mask: Mask) -> int:
    header = 1 + 1 + 2 + 1 + 4 + 4 * len(mask.shape) + 8
    return int.from_bytes(data[16 + header : 24 + header], "little")


@pytest.mark.parametrize(
    ("density", "above"), [(0.5, 1.0), (0.2, 1.026), (0.1, 1.017), (0.05, 1.013), (0.01, 1.006)]
)
def test_masks_take_little_more_than_their_entropy(density: float, above: float) -> None:
    n = 2_000_000
    mask = random_mask(density, n)
    d = mask.density
    entropy_bytes = -n * (d * math.log2(d) + (1 - d) * math.log2(1 - d)) / 8
    written = mask_bytes_of(encode({"g": {"n": mask}}), mask)
    assert entropy_bytes * 0.999 < written <= entropy_bytes * above + 2
    if density <= 0.2:
        assert written < 0.4 * mask.count * math.ceil(math.log2(n)) / 8 + 2


def test_the_largest_size_holds_for_every_way_of_writing() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 2, 3, 127, 128, 129):
        mask = mask_at(*range(0, 3 * count, 3), size=500)
        item = SparseTensor(mask, torch.ones(count))
        expects = {"g": {"n": TensorSpec((500,), "float32", count)}}
        for kind in ("float32", "float16", "bfloat16", "int8"):
            data = encode({"g": {"n": item}}, coding={"g": kind}, generator=generator)
            check(data, expects)
            assert len(data) <= largest_size_bytes(expects)


def test_a_size_that_depends_on_the_mask_is_not_foretold() -> None:
    for spec in (TensorSpec((9,), "float32", 3), TensorSpec((9,), MASK, 3), TensorSpec((9,), MASK)):
        with pytest.raises(ValueError, match=r"^the size of g/n depends on its mask$"):
            encoded_size_bytes({"g": {"n": spec}})
