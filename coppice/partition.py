"""Splits one data set among clients, by the schemes and names of flwr-datasets.

Every partitioner is a value. `partition(labels, seed)` gives one array of indices, sorted, for each
client; the same seed gives the same split. N = examples, P = partitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]

_DIRICHLET_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class IidPartitioner:
    """Shuffled and dealt: sizes differ by one at most, every example is in one part."""

    num_partitions: int

    def __post_init__(self) -> None:
        _at_least_one("num_partitions", self.num_partitions)

    def partition(self, labels: Labels, seed: int) -> list[Indices]:
        """Split by (N,) labels, of which only the number counts."""
        _enough(len(labels), self.num_partitions)
        order = np.random.default_rng(seed).permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, self.num_partitions)]


@dataclass(frozen=True, kw_only=True)
class DirichletPartitioner:
    """Shares of each class drawn from Dirichlet(alpha) (Yurochkin et al. 2019).

    A small alpha leaves each client few classes; a large one nears an even split. Every example is
    in one part.
    """

    num_partitions: int
    alpha: float
    #: Draws are repeated, a bounded number of times, until the smallest part has so many examples.
    min_partition_size: int = 10
    #: A part that has its N/P examples gets no more of the classes that follow.
    self_balancing: bool = True

    def __post_init__(self) -> None:
        _at_least_one("num_partitions", self.num_partitions)
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha is {self.alpha}; allowed are finite numbers above 0")
        if self.min_partition_size < 0:
            raise ValueError(
                f"min_partition_size is {self.min_partition_size}; allowed is 0 or more"
            )

    def partition(self, labels: Labels, seed: int) -> list[Indices]:
        """Split by (N,) labels; ValueError when no draw leaves every part large enough."""
        _enough(len(labels), self.num_partitions * max(1, self.min_partition_size))
        generator = np.random.default_rng(seed)
        classes = _by_class(labels)
        smallest = 0
        for _ in range(_DIRICHLET_TRIES):
            parts = self._draw(classes, len(labels), generator)
            smallest = max(smallest, min(map(len, parts)))
            if smallest >= self.min_partition_size:
                return parts
        raise ValueError(
            f"no split found with at least {self.min_partition_size} examples in each of "
            f"{self.num_partitions} parts (best of {_DIRICHLET_TRIES} tries: {smallest}); "
            "raise alpha, or lower min_partition_size or num_partitions"
        )

    def _draw(
        self, classes: list[Indices], count: int, generator: np.random.Generator
    ) -> list[Indices]:
        parts: list[list[Indices]] = [[] for _ in range(self.num_partitions)]
        sizes = np.zeros(self.num_partitions, dtype=np.int64)
        for members in classes:
            shares = generator.dirichlet(np.full(self.num_partitions, self.alpha))
            if self.self_balancing:
                shares = np.where(sizes < count / self.num_partitions, shares, 0.0)
            # Tiny alphas can leave nothing: the class then goes to the smallest part.
            if not 0 < shares.sum() < float("inf"):
                shares = np.eye(self.num_partitions)[sizes.argmin()]
            cuts = np.rint(np.cumsum(shares / shares.sum())[:-1] * len(members)).astype(np.int64)
            for part, piece in enumerate(np.split(generator.permutation(members), cuts)):
                parts[part].append(piece)
                sizes[part] += len(piece)
        return [np.sort(np.concatenate(pieces)) for pieces in parts]


@dataclass(frozen=True, kw_only=True)
class PathologicalPartitioner:
    """So many classes for each client; a class is shared out evenly among those who have it.

    "random" draws each client's classes; "deterministic" gives client p the classes p, p+1, …;
    "first-deterministic" gives it class p and draws the others. Examples of a class that nobody was
    given are in no part.
    """

    num_partitions: int
    num_classes_per_partition: int
    class_assignment_mode: Literal["random", "deterministic", "first-deterministic"] = "random"

    def __post_init__(self) -> None:
        _at_least_one("num_partitions", self.num_partitions)
        _at_least_one("num_classes_per_partition", self.num_classes_per_partition)
        modes = ("random", "deterministic", "first-deterministic")
        if self.class_assignment_mode not in modes:
            raise ValueError(
                f"class_assignment_mode is {self.class_assignment_mode!r}; allowed are {modes}"
            )

    def partition(self, labels: Labels, seed: int) -> list[Indices]:
        """Split by (N,) labels; ValueError when a class has fewer examples than owners."""
        generator = np.random.default_rng(seed)
        classes = _by_class(labels)
        if self.num_classes_per_partition > len(classes):
            raise ValueError(
                f"num_classes_per_partition is {self.num_classes_per_partition}; "
                f"the labels have only {len(classes)} classes"
            )
        owners: list[list[int]] = [[] for _ in classes]
        for part in range(self.num_partitions):
            for number in self._classes_of(part, len(classes), generator):
                owners[number].append(part)
        pieces: list[list[Indices]] = [[] for _ in range(self.num_partitions)]
        for members, parts in zip(classes, owners, strict=True):
            if len(members) < len(parts):
                raise ValueError(
                    f"class {labels[members[0]]} has {len(members)} examples for {len(parts)} "
                    "parts; lower num_partitions or num_classes_per_partition"
                )
            if parts:
                shuffled = generator.permutation(members)
                for part, piece in zip(parts, np.array_split(shuffled, len(parts)), strict=True):
                    pieces[part].append(piece)
        return [np.sort(np.concatenate(mine)) for mine in pieces]

    def _classes_of(self, part: int, count: int, generator: np.random.Generator) -> list[int]:
        wanted = self.num_classes_per_partition
        if self.class_assignment_mode == "deterministic":
            return [(part + offset) % count for offset in range(wanted)]
        order = [int(number) for number in generator.permutation(count)]
        if self.class_assignment_mode == "random":
            return order[:wanted]
        first = part % count
        return [first, *(number for number in order if number != first)][:wanted]


@dataclass(frozen=True, kw_only=True)
class ShardPartitioner:
    """Sorted by label, cut into shards, shards dealt at random (McMahan et al. 2017).

    Give `num_shards_per_partition`, or `shard_size`: then the number of shards follows from it, the
    last one may be smaller, and parts differ by one shard at most. Every example is in one part.
    """

    num_partitions: int
    num_shards_per_partition: int | None = None
    shard_size: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("num_partitions", self.num_partitions)
        if (self.num_shards_per_partition is None) == (self.shard_size is None):
            raise ValueError("give one of num_shards_per_partition and shard_size")
        if self.num_shards_per_partition is not None:
            _at_least_one("num_shards_per_partition", self.num_shards_per_partition)
        if self.shard_size is not None:
            _at_least_one("shard_size", self.shard_size)

    def partition(self, labels: Labels, seed: int) -> list[Indices]:
        """Split by (N,) labels; ValueError when the parts need more examples or shards."""
        order = np.argsort(labels, kind="stable")
        if self.num_shards_per_partition is not None:
            count = self.num_partitions * self.num_shards_per_partition
            _enough(len(labels), count)
            shards = np.array_split(order, count)
        else:
            assert self.shard_size is not None
            shards = np.split(order, range(self.shard_size, len(labels), self.shard_size))
            if len(shards) < self.num_partitions:
                raise ValueError(
                    f"{len(labels)} examples make {len(shards)} shards of {self.shard_size}, fewer "
                    f"than the {self.num_partitions} parts; lower shard_size or num_partitions"
                )
        dealt = np.random.default_rng(seed).permutation(len(shards))
        return [
            np.sort(np.concatenate([shards[shard] for shard in mine]))
            for mine in np.array_split(dealt, self.num_partitions)
        ]


@dataclass(frozen=True)
class NaturalIdPartitioner:
    """One part for each id (a writer, a person, a station), in the order of the sorted ids."""

    def partition(self, ids: Labels, seed: int = 0) -> list[Indices]:
        """Split by (N,) ids; the seed changes nothing. Every example is in one part."""
        _enough(len(ids), 1)
        return _by_class(ids)


Partitioner = (
    IidPartitioner
    | DirichletPartitioner
    | PathologicalPartitioner
    | ShardPartitioner
    | NaturalIdPartitioner
)


def _by_class(labels: Labels) -> list[Indices]:
    """Sorted indices of each class, in the order of the sorted classes."""
    order = np.argsort(labels, kind="stable")
    _, first = np.unique(labels[order], return_index=True)
    return np.split(order, first[1:])


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; allowed is 1 or more")


def _enough(count: int, needed: int) -> None:
    if count < needed:
        raise ValueError(f"there are {count} examples; this split needs at least {needed}")
