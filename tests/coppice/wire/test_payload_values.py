"""Values that travel in another type: golden bytes, what is lost, and what is refused."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.domain import ValueType
from coppice.errors import InvalidPayload
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import DTYPES, Payload, TensorSpec, dense_group
from coppice.wire.payload import check, decode, encode
from tests.coppice.wire.payload_bytes import (
    BITMAP,
    CODES,
    DENSE,
    FULL,
    VALUES,
    bits,
    entry,
    payload,
    refuse,
)

F32, INT8 = CODES["float32"][0], CODES["int8"][0]
MASK = Mask.of(torch.tensor([True, False, True]))
TINY, HUGE = 2.0**-149, torch.finfo(torch.float32).max


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sent(values: Tensor, kind: ValueType, seed: int = 0) -> Tensor:
    """Values as they arrive."""
    data = encode({"g": {"n": values}}, coding={"g": kind}, generator=seeded(seed))
    return dense_group(decode(data, {"g": {"n": TensorSpec(tuple(values.shape), "float32")}}), "g")[
        "n"
    ]


# ---- golden bytes ------------------------------------------------------------------------------

#: -127 and 63.5 * 2 in the value types.
TWO = torch.tensor([-127.0, 64.0])
TWO_BYTES: dict[ValueType, bytes] = {
    "float32": bytes.fromhex("0000fec2 00008042"),
    "float16": bytes.fromhex("f0d7 0054"),
    "bfloat16": bytes.fromhex("fec2 8042"),
    # One scale, 1.0, and the bytes.
    "int8": bytes.fromhex("0000803f 81 40"),
}


@pytest.mark.parametrize("kind", TWO_BYTES)
@pytest.mark.parametrize(
    ("encoding", "item"),
    [
        (DENSE, TWO),
        (VALUES, SparseTensor(MASK, TWO)),
        (BITMAP, SparseTensor(MASK, TWO)),
        (FULL, SparseTensor(Mask.full((2,)), TWO)),
    ],
    ids=["dense", "values", "bitmap", "full"],
)
def test_golden_bytes_of_every_value_type(kind: ValueType, encoding: int, item: Item) -> None:
    values, tail = TWO_BYTES[kind], b"\x05" if encoding == BITMAP else b""
    golden = payload(
        [
            entry(
                "g",
                "n",
                F32,
                item.shape,
                len(values + tail),
                encoding,
                travels=CODES[kind][0],
                ones=None if encoding == DENSE else 2,
                fingerprint=bytes.fromhex(MASK.fingerprint) if encoding == VALUES else b"",
            )
        ],
        [values + tail],
    )
    known = {MASK.fingerprint: MASK} if encoding == VALUES else {}
    written = encode(
        {"g": {"n": item}}, known=known, coding={"g": kind, "h": "int8"}, generator=seeded()
    )
    assert written == golden
    assert bits(decode(golden, known=known)["g"]["n"]) == bits(item)


def test_golden_bytes_of_two_blocks() -> None:
    # The second block has one value, and a scale of its own: 2.54 / 127.
    values = torch.cat([torch.full((128,), 0.0), torch.tensor([-2.54])])
    golden = payload(
        [entry("g", "n", F32, [129], 137, travels=INT8)],
        [struct.pack("<ff", 0.0, 2.54 / 127) + bytes(128) + b"\x81"],
    )
    assert encode({"g": {"n": values}}, coding={"g": "int8"}, generator=seeded()) == golden
    assert torch.allclose(dense_group(decode(golden), "g")["n"], values)


# ---- what is recoded ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "float32"])
@pytest.mark.parametrize("kind", TWO_BYTES)
def test_only_float32_is_recoded(dtype: str, kind: ValueType) -> None:
    groups: Payload = {"g": {"n": torch.tensor([1, 0, 1]).to(DTYPES[dtype]), "m": MASK}}
    assert encode(groups, coding={"g": kind}, generator=seeded()) == encode(groups)


def test_only_the_groups_named_are_recoded() -> None:
    groups = {"g": {"n": torch.ones(100)}, "h": {"n": torch.ones(100)}}
    assert len(encode(groups)) - len(encode(groups, coding={"g": "float16"})) == 200


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_two_byte_values_are_the_nearest(kind: ValueType) -> None:
    values = torch.randn(1000, generator=seeded())
    assert torch.equal(sent(values, kind), values.to(DTYPES[kind]).to(torch.float32))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("float16", 65520.0),
        ("float16", -1e6),
        ("bfloat16", HUGE),
        *(
            (kind, value)
            for kind in ("float16", "bfloat16", "int8")
            for value in (math.inf, math.nan)
        ),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused_when_written(
    kind: ValueType, value: float
) -> None:
    tensor = torch.zeros(300)
    tensor[200] = value
    with pytest.raises(InvalidPayload, match=f"^g/n has values that {kind} cannot hold$"):
        encode({"g": {"n": tensor}}, coding={"g": kind}, generator=seeded())


# ---- int8 --------------------------------------------------------------------------------------


def test_int8_takes_a_generator() -> None:
    with pytest.raises(ValueError, match="takes a generator"):
        encode({"g": {"n": TWO}}, coding={"g": "int8"})


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300),
    st.integers(0, 9),
)
def test_int8_is_off_by_less_than_a_step_of_its_block(numbers: list[float], seed: int) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    read = sent(values, "int8", seed)
    assert len(read) == len(values)
    for start in range(0, len(values), 128):
        block, got = values[start : start + 128].double(), read[start : start + 128].double()
        step = block.abs().max() / 127
        # The scale is a float32 too: of tiny values it is off by up to half of the smallest.
        assert ((got - block).abs() <= step * 1.0001 + 128 * TINY).all()


@pytest.mark.parametrize("value", [TINY, -TINY, 100 * TINY, 190 * TINY, 1e-40, HUGE, -HUGE])
def test_the_smallest_and_the_largest_values_travel_as_int8(value: float) -> None:
    read = sent(torch.tensor([value, 0.0]), "int8")
    assert read[0].item() == pytest.approx(value, rel=1e-6, abs=64 * TINY)
    assert read[1] == 0


def test_rounding_to_int8_is_unbiased() -> None:
    values = torch.linspace(-1, 1, 128)
    draws = 4000
    read = sent(values.repeat(draws), "int8").reshape(draws, 128)
    step = 1 / 127
    # Of a mean of so many draws, five standard deviations, each draw's at most half a step.
    assert (read.mean(0) - values).abs().max() < 5 * step / 2 / math.sqrt(draws)
    assert (read - values).abs().max() < step
    fraction = (values * 127) - (values * 127).floor()
    inside = (fraction > 0.1) & (fraction < 0.9)
    assert (read.std(0)[inside] > 0.2 * step).all()


def test_whole_steps_and_zeros_are_exact_as_int8() -> None:
    values = torch.cat([torch.arange(-127.0, 1.0), torch.zeros(128)])
    for seed in range(20):
        assert torch.equal(sent(values, "int8", seed), values)


def test_rounding_is_repeatable_and_differs_by_seed() -> None:
    values = torch.randn(1000, generator=seeded())
    assert torch.equal(sent(values, "int8", 3), sent(values, "int8", 3))
    assert not torch.equal(sent(values, "int8", 3), sent(values, "int8", 4))


def test_tensors_are_rounded_one_after_the_other() -> None:
    values = torch.randn(500, generator=seeded())
    data = encode({"g": {"a": values, "b": values}}, coding={"g": "int8"}, generator=seeded())
    read = dense_group(decode(data), "g")
    assert not torch.equal(read["a"], read["b"])


# ---- refusals ----------------------------------------------------------------------------------


def scaled(scale: float, steps: bytes) -> bytearray:
    data = struct.pack("<f", scale) + steps
    return payload([entry("g", "n", F32, [len(steps)], len(data), travels=INT8)], [data])


@pytest.mark.parametrize("scale", [-1.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, 2.68e36])
def test_a_scale_that_cannot_be_is_refused(scale: float) -> None:
    refuse(scaled(scale, b"\1"), r"^g/n has a scale that no block can have$")
    with pytest.raises(InvalidPayload, match="has a scale"):
        check(scaled(scale, b"\1"), {"g": {"n": TensorSpec((1,), "float32")}})


def test_the_largest_scale_is_read_and_all_its_steps_are_finite() -> None:
    above = torch.tensor(HUGE) / 127
    assert (above * 127).isinf()
    largest = torch.nextafter(above, torch.tensor(0.0)).item()
    read = dense_group(decode(scaled(largest, b"\x7f\x81")), "g")["n"]
    assert read.isfinite().all()
    refuse(scaled(above.item(), b"\0"), "has a scale")


def test_the_byte_minus_128_is_refused() -> None:
    refuse(scaled(1.0, b"\x7f\x80"), r"^g/n has the byte -128$")
    with pytest.raises(InvalidPayload, match="byte -128"):
        check(scaled(1.0, b"\x80"), {"g": {"n": TensorSpec((1,), "float32")}})


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_recoded_values_that_are_not_finite_are_refused_where_expected(
    kind: str, value: float
) -> None:
    raw = torch.tensor([0.0, value]).to(DTYPES[kind]).view(torch.uint8).numpy().tobytes()
    data = payload([entry("g", "n", F32, [2], 4, travels=CODES[kind][0])], [raw])
    for read in (check, decode):
        with pytest.raises(InvalidPayload, match=r"^g/n has values that are not finite$"):
            read(data, {"g": {"n": TensorSpec((2,), "float32")}})


@pytest.mark.parametrize(
    ("dtype", "travels"),
    [
        *(("float32", code) for code in (1, 4, 5, 6, 8, 9, 10, 11, 255)),
        *((dtype, 0) for dtype in DTYPES if dtype != "float32"),
        ("float64", 7),
        ("float16", 3),
    ],
)
def test_a_value_type_that_the_element_type_cannot_have_is_refused(
    dtype: str, travels: int
) -> None:
    data = payload([entry("g", "n", CODES[dtype][0], [1], 4, travels=travels)], [bytes(4)])
    refuse(data, f"^g/n has a value type that {dtype} cannot have$")


@pytest.mark.parametrize(("travels", "size"), [(2, 4), (2, 3), (3, 4), (7, 1), (7, 4), (7, 6)])
def test_a_data_length_that_is_not_the_value_types_is_refused(travels: int, size: int) -> None:
    data = payload([entry("g", "n", F32, [1], size, travels=travels)], [bytes(size)])
    refuse(data, r"^g/n has .* bytes; its shape needs [25]$")
