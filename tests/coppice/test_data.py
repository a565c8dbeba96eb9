"""Examples: splitting, and reading raw data in the run's meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coppice.data import Examples, Raw, examples_from, labelled, split
from coppice.domain import DataSpec
from coppice.errors import DataError

CLASSES = ("cat", "dog", "fox")
LABELS = np.array([0, 1, 2])


def spec(*shape: int, **fields: Any) -> DataSpec:
    return DataSpec(classes=CLASSES, input_shape=shape or (1, 2, 2), **fields)


def images(*shape: int, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    return np.arange(3 * int(np.prod(shape)), dtype=dtype).reshape(3, *shape)


# ---- splitting ---------------------------------------------------------------------------------


@given(
    count=st.integers(1, 60),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
)
def test_split_puts_every_example_in_exactly_one_part(count: int, share: float, seed: int) -> None:
    examples = Examples(torch.arange(count), torch.arange(count))
    train, held_out = split(examples, share, seed)
    assert sorted([*train.targets.tolist(), *held_out.targets.tolist()]) == list(range(count))
    assert torch.equal(train.inputs, train.targets)
    assert len(held_out) == min(round(share * count), count - 1)


def test_split_depends_on_the_seed_and_not_on_global_chance() -> None:
    examples = Examples(torch.arange(50), torch.arange(50))
    torch.manual_seed(1)
    first = split(examples, 0.3, seed=5)[1].targets
    torch.manual_seed(2)
    assert torch.equal(split(examples, 0.3, seed=5)[1].targets, first)
    assert not torch.equal(split(examples, 0.3, seed=6)[1].targets, first)


def test_parts_keep_the_transform() -> None:
    examples = examples_from(Raw(images(1, 2, 2), LABELS), spec(scale=2.0))
    for part in split(examples, 0.3, seed=0):
        assert part.transform is examples.transform


# ---- labels ------------------------------------------------------------------------------------


@given(st.permutations(CLASSES), st.lists(st.sampled_from(CLASSES), min_size=1, max_size=20))
def test_classes_are_mapped_by_name_in_any_order(order: list[str], names: list[str]) -> None:
    inputs = np.zeros((len(names), 1, 2, 2))
    wanted = [CLASSES.index(name) for name in names]
    by_list = Raw(inputs, np.array([order.index(name) for name in names]), order)
    for raw in (by_list, Raw(inputs, np.array(names)), labelled(inputs, names)):
        targets = examples_from(raw, spec()).targets
        assert targets.tolist() == wanted
        assert targets.dtype == torch.int64


def test_a_class_that_the_run_lacks_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"no class 'cow'; allowed are 'cat', 'dog', 'fox'"):
        examples_from(Raw(images(1, 2, 2), np.array(["cat", "cow", "dog"])), spec())


def test_a_listed_class_without_examples_is_no_problem() -> None:
    raw = Raw(images(1, 2, 2), np.array([1, 2, 1]), ["cow", "fox", "cat"])
    assert examples_from(raw, spec()).targets.tolist() == [2, 0, 2]


def test_a_long_list_of_classes_is_shortened_in_messages() -> None:
    many = DataSpec(classes=tuple(f"c{number}" for number in range(50)), input_shape=(1, 2, 2))
    with pytest.raises(DataError, match=r"'c9' and 40 more$"):
        examples_from(Raw(images(1, 2, 2), np.array(["x", "y", "z"])), many)


def test_integer_labels_count_from_the_first_label() -> None:
    raw = Raw(images(1, 2, 2), np.array([3, 1, 2], np.uint8))
    assert examples_from(raw, spec(first_label=1)).targets.tolist() == [2, 0, 1]


@pytest.mark.parametrize("labels", [[0, 1, 3], [-1, 0, 1]])
def test_a_label_out_of_range_is_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"labels go from .* are 0 to 2$"):
        examples_from(Raw(images(1, 2, 2), np.array(labels)), spec())


def test_a_label_beyond_the_files_own_names_is_refused() -> None:
    with pytest.raises(DataError, match="the file's own list of classes are 0 to 1"):
        examples_from(Raw(images(1, 2, 2), LABELS, ["cat", "dog"]), spec())


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros((3, 2), int), np.array([True] * 3)])
def test_labels_that_are_neither_integers_nor_strings_are_refused(
    labels: np.ndarray[Any, Any],
) -> None:
    with pytest.raises(DataError, match="one integer or one string for each example"):
        examples_from(Raw(images(1, 2, 2), labels), spec())


def test_a_column_of_labels_is_taken() -> None:
    raw = Raw(images(1, 2, 2), LABELS[:, None])
    assert examples_from(raw, spec()).targets.tolist() == [0, 1, 2]


# ---- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_inputs_and_labels_must_be_as_many(count: int) -> None:
    with pytest.raises(DataError, match=f"3 inputs and {count} labels"):
        examples_from(Raw(images(1, 2, 2), np.zeros(count, int)), spec())


def test_empty_data_are_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        examples_from(Raw(np.zeros((0, 1, 2, 2)), np.zeros(0, int)), spec())


def test_every_layout_of_the_same_images_reads_the_same() -> None:
    channels_first = images(2, 3, 5)
    channels_last = np.ascontiguousarray(np.moveaxis(channels_first, 1, -1))
    for same in (channels_first, channels_last, channels_first.reshape(3, 30)):
        inputs = examples_from(Raw(same, LABELS), spec(2, 3, 5)).inputs
        assert np.array_equal(inputs.numpy(), channels_first)
        assert inputs.is_contiguous()


def test_a_missing_channel_is_added() -> None:
    inputs = examples_from(Raw(images(3, 5), LABELS), spec(1, 3, 5)).inputs
    assert inputs.shape == (3, 1, 3, 5)


def test_a_shape_that_fits_both_ways_is_taken_as_it_is() -> None:
    square = images(3, 3, 3)
    assert np.array_equal(examples_from(Raw(square, LABELS), spec(3, 3, 3)).inputs.numpy(), square)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 5, 3), (31,), (1, 30)])
def test_another_shape_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        examples_from(Raw(images(*shape), LABELS), spec(2, 3, 5))
    assert f"{list(shape)}" in str(caught.value)
    assert "[2, 3, 5]" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    inputs = images(1, 2, 2, dtype=np.float32)
    inputs[1, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"1 inputs hold NaN .*, the first is number 1"):
        examples_from(Raw(inputs, LABELS), spec())


@pytest.mark.parametrize("dtype", ["complex64", "U3", "uint64", "M8[s]", "longdouble"])
def test_inputs_that_are_not_plain_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(DataError, match="allowed are bool"):
        examples_from(Raw(np.zeros((3, 1, 2, 2)).astype(dtype), LABELS), spec())


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ("uint8", torch.uint8),
        ("bool", torch.bool),
        ("float16", torch.float16),
        (">i2", torch.int16),
        (">f4", torch.float32),
        ("<u2", torch.int32),
        (">u4", torch.int64),
    ],
)
def test_inputs_stay_small_and_become_float32_batch_by_batch(
    stored: str, kept: torch.dtype
) -> None:
    inputs = images(1, 2, 2).astype(stored)
    examples = examples_from(Raw(inputs, LABELS), spec())
    assert examples.inputs.dtype == kept
    batch, targets = examples.batch(torch.tensor([2, 0]))
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), inputs[[2, 0]].astype(np.float32))
    assert targets.tolist() == [2, 0]


def test_a_batch_is_normalised_by_channel() -> None:
    raw = Raw(images(2, 1, 2), LABELS)
    fields: dict[str, Any] = {"scale": 4.0, "mean": (0.5, 1.0), "std": (2.0, 0.25)}
    batch, _ = examples_from(raw, spec(2, 1, 2, **fields)).batch(torch.tensor([1]))
    assert batch.tolist() == [[[[0.25, 0.375]], [[2.0, 3.0]]]]


def test_transforming_leaves_the_stored_inputs_alone() -> None:
    examples = examples_from(Raw(images(1, 2, 2, dtype=np.float32), LABELS), spec(mean=(3.0,)))
    before = examples.inputs.clone()
    examples.transform(examples.inputs)
    assert torch.equal(examples.inputs, before)
