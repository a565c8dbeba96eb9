"""Partitioners: who gets what, and what cannot be had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.partition import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
)

#: 600 labels of 10 classes, out of order.
LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 60))

COVERING: list[Partitioner] = [
    IidPartitioner(num_partitions=7),
    DirichletPartitioner(num_partitions=7, alpha=0.5),
    DirichletPartitioner(num_partitions=7, alpha=0.001, min_partition_size=0, self_balancing=False),
    PathologicalPartitioner(
        num_partitions=10, num_classes_per_partition=2, class_assignment_mode="deterministic"
    ),
    PathologicalPartitioner(
        num_partitions=10, num_classes_per_partition=3, class_assignment_mode="first-deterministic"
    ),
    ShardPartitioner(num_partitions=7, num_shards_per_partition=2),
    ShardPartitioner(num_partitions=7, shard_size=13),
    NaturalIdPartitioner(),
]


def classes_in(parts: list[Any], labels: Any) -> list[set[int]]:
    return [set(labels[part].tolist()) for part in parts]


@pytest.mark.parametrize("partitioner", COVERING, ids=repr)
@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(str)], ids=["integers", "strings"])
def test_every_example_is_in_exactly_one_part(partitioner: Partitioner, labels: Any) -> None:
    parts = partitioner.partition(labels, seed=3)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


@pytest.mark.parametrize("partitioner", COVERING[:-1], ids=repr)
def test_the_seed_alone_decides(partitioner: Partitioner) -> None:
    np.random.seed(1)
    first, again, other = (partitioner.partition(LABELS, seed) for seed in (3, 3, 4))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    num_partitions=st.integers(1, 12),
    alpha=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_any_labels_are_covered_or_refused(
    labels: list[int], num_partitions: int, alpha: float, seed: int
) -> None:
    for partitioner in (
        IidPartitioner(num_partitions=num_partitions),
        DirichletPartitioner(num_partitions=num_partitions, alpha=alpha, min_partition_size=1),
        ShardPartitioner(num_partitions=num_partitions, num_shards_per_partition=2),
        ShardPartitioner(num_partitions=num_partitions, shard_size=3),
    ):
        try:
            parts = partitioner.partition(np.array(labels), seed)
        except ValueError as error:
            assert "examples" in str(error)  # noqa: PT017
            continue
        assert len(parts) == num_partitions
        assert min(map(len, parts)) >= 1
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = [len(part) for part in IidPartitioner(num_partitions=7).partition(LABELS, 0)]
    assert max(sizes) - min(sizes) == 1


def test_small_alpha_concentrates_classes_and_large_alpha_spreads_them() -> None:
    def largest_share(alpha: float) -> float:
        partitioner = DirichletPartitioner(
            num_partitions=5, alpha=alpha, min_partition_size=1, self_balancing=False
        )
        parts = partitioner.partition(LABELS, seed=1)
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))

    assert largest_share(0.05) > 0.4
    assert largest_share(1000.0) < 0.15


@pytest.mark.parametrize(
    "partitioner",
    [
        IidPartitioner(num_partitions=2),
        DirichletPartitioner(num_partitions=2, alpha=1000.0),
        PathologicalPartitioner(num_partitions=2, num_classes_per_partition=10),
    ],
    ids=repr,
)
def test_who_gets_which_examples_of_a_class_is_chance(partitioner: Partitioner) -> None:
    labels = np.sort(LABELS)
    part = partitioner.partition(labels, seed=0)[0]
    of_first_class = part[labels[part] == 0]
    assert np.any(np.diff(of_first_class) > 1)


def test_dirichlet_keeps_its_smallest_part_and_its_balance() -> None:
    for seed in range(5):
        parts = DirichletPartitioner(num_partitions=6, alpha=0.3, min_partition_size=30).partition(
            LABELS, seed
        )
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 30
        # A part below its share of 100 may still get one class of 60.
        assert max(sizes) < 100 + 60


def test_dirichlet_gives_up_after_a_bounded_number_of_tries() -> None:
    partitioner = DirichletPartitioner(num_partitions=60, alpha=0.001, min_partition_size=10)
    with pytest.raises(ValueError, match=r"no split found .* raise alpha"):
        partitioner.partition(LABELS, seed=0)


@pytest.mark.parametrize("mode", ["random", "deterministic", "first-deterministic"])
def test_pathological_gives_each_client_so_many_classes(mode: Any) -> None:
    parts = PathologicalPartitioner(
        num_partitions=10, num_classes_per_partition=3, class_assignment_mode=mode
    ).partition(LABELS, seed=2)
    held = classes_in(parts, LABELS)
    assert {len(classes) for classes in held} == {3}
    together = np.concatenate(parts)
    assert len(set(together.tolist())) == len(together)
    if mode == "deterministic":
        assert held[9] == {9, 0, 1}
    if mode == "first-deterministic":
        assert all(number in classes for number, classes in enumerate(held))


def test_pathological_leaves_out_classes_that_nobody_was_given() -> None:
    partitioner = PathologicalPartitioner(
        num_partitions=2, num_classes_per_partition=2, class_assignment_mode="deterministic"
    )
    parts = partitioner.partition(LABELS, seed=0)
    assert set(LABELS[np.concatenate(parts)].tolist()) == {0, 1, 2}


def test_a_class_is_shared_out_evenly_among_its_owners() -> None:
    parts = PathologicalPartitioner(num_partitions=4, num_classes_per_partition=10).partition(
        LABELS, seed=0
    )
    assert [np.bincount(LABELS[part]).tolist() for part in parts] == [[15] * 10] * 4


def test_two_shards_hold_few_classes() -> None:
    parts = ShardPartitioner(num_partitions=10, num_shards_per_partition=2).partition(LABELS, 0)
    assert all(len(classes) <= 2 for classes in classes_in(parts, LABELS))
    assert {len(part) for part in parts} == {60}


def test_natural_ids_give_one_part_each_in_order() -> None:
    ids = np.array(["eve", "bob", "eve", "amy"])
    parts = NaturalIdPartitioner().partition(ids)
    assert [part.tolist() for part in parts] == [[3], [1], [0, 2]]


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (IidPartitioner(num_partitions=601), "600 examples; this split needs at least 601"),
        (DirichletPartitioner(num_partitions=61, alpha=1.0), "needs at least 610"),
        (ShardPartitioner(num_partitions=301, num_shards_per_partition=2), "at least 602"),
        (ShardPartitioner(num_partitions=7, shard_size=100), "make 6 shards of 100"),
        (PathologicalPartitioner(num_partitions=2, num_classes_per_partition=11), "only 10"),
        (
            PathologicalPartitioner(num_partitions=61, num_classes_per_partition=10),
            "class 0 has 60 examples for 61 parts",
        ),
    ],
)
def test_what_the_data_cannot_give_is_refused(partitioner: Partitioner, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partitioner.partition(LABELS, seed=0)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (IidPartitioner, {"num_partitions": 0}, "num_partitions is 0"),
        (DirichletPartitioner, {"num_partitions": 2, "alpha": 0.0}, "alpha is 0.0"),
        (DirichletPartitioner, {"num_partitions": 2, "alpha": float("nan")}, "alpha is nan"),
        (
            DirichletPartitioner,
            {"num_partitions": 2, "alpha": 1.0, "min_partition_size": -1},
            "min_partition_size is -1",
        ),
        (
            PathologicalPartitioner,
            {"num_partitions": 2, "num_classes_per_partition": 0},
            "num_classes_per_partition is 0",
        ),
        (
            PathologicalPartitioner,
            {
                "num_partitions": 2,
                "num_classes_per_partition": 1,
                "class_assignment_mode": "odd",
            },
            "class_assignment_mode is 'odd'",
        ),
        (ShardPartitioner, {"num_partitions": 2}, "give one of"),
        (
            ShardPartitioner,
            {"num_partitions": 2, "shard_size": 2, "num_shards_per_partition": 2},
            "give one of",
        ),
        (ShardPartitioner, {"num_partitions": 2, "shard_size": 0}, "shard_size is 0"),
        (
            ShardPartitioner,
            {"num_partitions": 2, "num_shards_per_partition": 0},
            "num_shards_per_partition is 0",
        ),
    ],
)
def test_impossible_settings_are_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)
