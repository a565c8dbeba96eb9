"""Payloads: golden bytes, round trips, and what is shared, sized and compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coppice.errors import InvalidPayload
from coppice.tensors import DTYPES, Payload, TensorSpec, dense_group, spec_of
from coppice.wire.header import encoded_size_bytes
from coppice.wire.payload import decode, encode
from tests.coppice.wire.payload_bytes import CODES, bits, bits_of, entry, padded, payload

# ---- golden bytes ------------------------------------------------------------------------------

GOLDEN = bytes.fromhex(
    "434f5050 02 00 0000"  # COPP, version 2, no compression, zero
    "48000000 03000000"  # header of 72 bytes, three tensors
    # delta/w: float32 (2, 1), 8 bytes
    "05 64656c7461 0100 77 00 00 00 02 02000000 01000000 0800000000000000"
    # delta/β: bool, no dimension, 1 byte
    "05 64656c7461 0200 ceb2 09 00 09 00 0100000000000000"
    # n/i: int16 (0), no bytes
    "01 6e 0100 69 06 00 06 01 00000000 0000000000000000"
    "0000803f 000020c0"  # 1.0, -2.5
    "01 00000000000000"  # true, padding
)


def test_golden_bytes_are_written() -> None:
    written = encode(
        {
            "delta": {"w": torch.tensor([[1.0], [-2.5]]), "β": torch.tensor(True)},
            "n": {"i": torch.zeros(0, dtype=torch.int16)},
        }
    )
    assert bytes(written) == GOLDEN


def test_golden_bytes_are_read() -> None:
    read = decode(bytearray(GOLDEN))
    assert list(read) == ["delta", "n"]
    assert list(read["delta"]) == ["w", "β"]
    assert bits(read["delta"]["w"]) == bits(torch.tensor([[1.0], [-2.5]]))
    assert bits(read["delta"]["β"]) == bits(torch.tensor(True))
    assert bits(read["n"]["i"]) == bits(torch.zeros(0, dtype=torch.int16))


def test_a_payload_without_tensors_is_its_prefix() -> None:
    empty = bytes.fromhex("434f5050 02000000 00000000 00000000")
    assert bytes(encode({})) == bytes(encode({"group": {}})) == empty
    assert decode(bytearray(empty)) == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_type_has_its_code_and_is_little_endian(dtype: str) -> None:
    code, size = CODES[dtype]
    tensor = torch.tensor([1, 0, 1]).to(DTYPES[dtype])
    one = b"\x80\x3f"
    if dtype != "bfloat16":
        one = np.ones(1, np.dtype(dtype).newbyteorder("<")).tobytes()
    data = one + bytes(size) + one
    golden = payload([entry("g", "n", code, [3], 3 * size)], [data])
    assert encode({"g": {"n": tensor}}) == golden
    assert bits(decode(golden)["g"]["n"]) == bits(tensor)


def test_the_codes_of_this_test_are_all_there_are() -> None:
    assert list(CODES) == list(DTYPES)


# ---- round trips -------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=20)
shapes = st.one_of(
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.integers(0, 17), max_size=2),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any tensor that may travel, with any bits, NaN among them."""
    dtype, shape = DTYPES[draw(st.sampled_from(list(DTYPES)))], draw(shapes)
    size = math.prod(shape) * dtype.itemsize
    seed = draw(st.integers(0, 2**32))
    high = 2 if dtype is torch.bool else 256
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(high, (size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


payloads = st.dictionaries(names, st.dictionaries(names, tensors(), max_size=4), max_size=4)


@given(payloads)
def test_what_is_written_is_read_again_to_the_bit_and_in_order(groups: Payload) -> None:
    assert bits_of(decode(encode(groups))) == bits_of(groups)


@given(payloads)
def test_equal_payloads_have_equal_bytes_of_the_size_foretold(groups: Payload) -> None:
    data = encode(groups)
    assert len(data) == encoded_size_bytes(spec_of(groups))
    assert len(data) % 8 == 0
    assert encode(decode(bytearray(data))) == data


def test_many_groups_and_tensors_travel() -> None:
    many = {
        f"group{i}": {f"tensor{j}": torch.full((j % 3,), i, dtype=torch.int16) for j in range(100)}
        for i in range(100)
    }
    data = encode(many)
    assert len(data) == encoded_size_bytes(spec_of(many))
    assert bits_of(decode(data, spec_of(many))) == bits_of(many)


def test_order_is_the_senders() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    data = encode({"z": {"b": one, "a": two}, "a": {"x": one}})
    assert [list(group) for group in decode(data).values()] == [["b", "a"], ["x"]]
    assert data != encode({"z": {"a": two, "b": one}, "a": {"x": one}})


def test_elements_travel_in_row_major_order_whatever_their_layout_in_memory() -> None:
    plain = torch.arange(24.0).reshape(2, 3, 2, 2)
    for same in (
        plain.contiguous(memory_format=torch.channels_last),
        plain.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.nn.Parameter(plain),
        torch.stack([plain, plain], dim=-1)[..., 0],
    ):
        assert encode({"g": {"n": same}}) == encode({"g": {"n": plain}})
    wide = torch.ones(1).expand(4)
    assert encode({"g": {"n": wide}}) == encode({"g": {"n": torch.ones(4)}})


def test_encoding_changes_nothing_and_shares_nothing() -> None:
    tensor = torch.ones(3, requires_grad=True)
    data = encode({"g": {"n": tensor}})
    data[-16:] = bytes(16)
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    assert tensor.requires_grad


def test_decoded_tensors_share_memory_with_the_bytes() -> None:
    data = encode({"g": {"n": torch.zeros(2)}})
    read = dense_group(decode(data), "g")["n"]
    read.fill_(1.0)
    assert bytes(data[-8:]) == bytes.fromhex("0000803f 0000803f")


def test_a_window_of_a_larger_buffer_is_read_wherever_it_starts() -> None:
    data = encode({"g": {"n": torch.tensor([1.5, 2.5], dtype=torch.float64)}})
    for start in range(8):
        buffer = bytearray(start) + data
        read = decode(memoryview(buffer)[start:])
        assert dense_group(read, "g")["n"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("group", "name"), [("", "n"), ("g", ""), ("g" * 256, "n"), ("g", "n" * 1025), ("é" * 128, "n")]
)
def test_names_that_no_entry_can_hold_are_refused(group: str, name: str) -> None:
    with pytest.raises(InvalidPayload, match="names have 1 to 255 and 1 to 1024 bytes"):
        encode({group: {name: torch.zeros(1)}})


def test_the_longest_names_travel() -> None:
    longest = {"g" * 255: {"é" * 512: torch.zeros(1)}}
    assert bits_of(decode(encode(longest))) == bits_of(longest)


def test_a_tensor_that_cannot_travel_is_refused_when_it_is_written() -> None:
    for tensor in (torch.zeros([1] * 9), torch.empty(2**32, 0), torch.zeros(1, dtype=torch.cfloat)):
        with pytest.raises(InvalidPayload, match=r"can travel|cannot travel"):
            encode({"g": {"n": tensor}})


# ---- what is expected --------------------------------------------------------------------------

EXPECTS = {
    "delta": {"w": TensorSpec((2, 3), "float32"), "b": TensorSpec((), "float16")},
    "buffers": {},
    "steps": {"n": TensorSpec((1,), "int64")},
}


def fitting() -> dict[str, dict[str, Tensor]]:
    return {
        "delta": {"w": torch.ones(2, 3), "b": torch.tensor(2.0, dtype=torch.float16)},
        "steps": {"n": torch.tensor([7])},
    }


def test_a_payload_that_fits_is_taken_in_any_order() -> None:
    groups = fitting()
    assert bits_of(decode(encode(groups), EXPECTS)) == bits_of(groups)
    turned = {"steps": groups["steps"], "delta": dict(reversed(groups["delta"].items()))}
    assert bits_of(decode(encode(turned), EXPECTS)) == bits_of(turned)


def test_nothing_fits_where_nothing_is_expected() -> None:
    assert decode(encode({}), {}) == {}
    with pytest.raises(InvalidPayload, match=r"^delta/w was not asked for$"):
        decode(encode(fitting()), {})


@pytest.mark.parametrize(
    ("group", "name", "tensor", "message"),
    [
        ("delta", "w", torch.ones(3, 2), r"delta/w is float32 \[3, 2\]; .* float32 \[2, 3\]"),
        ("delta", "w", torch.ones(6), r"delta/w is float32 \[6\]"),
        ("delta", "w", torch.ones(2, 3, dtype=torch.float64), r"delta/w is float64 \[2, 3\]"),
        ("delta", "b", torch.ones(1, dtype=torch.float16), r"delta/b is float16 \[1\]; .* \[\]"),
        ("delta", "v", torch.ones(1), r"delta/v was not asked for"),
        ("steps", "w", torch.ones(2, 3), r"steps/w was not asked for"),
        ("buffers", "m", torch.ones(1), r"buffers/m was not asked for"),
        ("delta", "w", None, r"delta/w is missing \(1 in all\)"),
        ("steps", "n", None, r"steps/n is missing"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_name(
    group: str, name: str, tensor: Tensor | None, message: str
) -> None:
    groups = fitting()
    if tensor is None:
        del groups[group][name]
    else:
        groups.setdefault(group, {})[name] = tensor
    with pytest.raises(InvalidPayload, match=message):
        decode(encode(groups), EXPECTS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 36])
def test_values_that_are_not_finite_are_refused_where_something_is_expected(
    dtype: str, value: float, place: int
) -> None:
    tensor = torch.zeros(37, dtype=DTYPES[dtype])
    tensor[place] = value
    data = encode({"delta": {"fine": torch.ones(3), "w": tensor}})
    expects = {"delta": {"fine": TensorSpec((3,), "float32"), "w": TensorSpec((37,), dtype)}}
    with pytest.raises(InvalidPayload, match=r"^delta/w has values that are not finite$"):
        decode(data, expects)
    assert bits(decode(data)["delta"]["w"]) == bits(tensor)


@given(payloads)
def test_what_fits_and_is_finite_is_always_taken(groups: dict[str, dict[str, Tensor]]) -> None:
    finite = {
        group: {
            name: tensor.nan_to_num(0.0, 1.0, -1.0) if tensor.is_floating_point() else tensor
            for name, tensor in members.items()
        }
        for group, members in groups.items()
    }
    assert bits_of(decode(encode(finite), spec_of(finite))) == bits_of(finite)


def test_the_padding_of_this_test_is_that_of_the_page() -> None:
    assert [len(padded(bytes(size))) for size in (0, 1, 8, 9)] == [0, 8, 8, 16]
