"""Fashion-MNIST dealt out to clients that differ, for scenarios."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coppice.data import Examples, Raw, examples_from
from coppice.domain import ClientId, DataSpec
from coppice.partition import DirichletPartitioner
from coppice.readers import read

DATA = DataSpec(
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    ),
    input_shape=(1, 28, 28),
    scale=255.0,
    mean=(0.286,),
    std=(0.353,),
    held_out=0.0,
)  # fmt: skip


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Where the data are."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data/fashion_mnist"),
        help="folder of the four IDX files (default: %(default)s)",
    )


def read_both(folder: Path) -> tuple[Raw, Raw]:
    """Training and test set; ends the program when they are not there."""
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {folder}: name it with --data")
    return (
        read(folder / "train-images-idx3-ubyte.gz", DATA),
        read(folder / "t10k-images-idx3-ubyte.gz", DATA),
    )


def deal_out(train: Raw, clients: int, alpha: float, seed: int) -> dict[ClientId, Raw]:
    """A Dirichlet split: the smaller alpha, the fewer classes has each client."""
    parts = DirichletPartitioner(num_partitions=clients, alpha=alpha).partition(
        train.labels, seed=seed
    )
    return {
        ClientId(f"c{number}"): Raw(train.inputs[part], train.labels[part])
        for number, part in enumerate(parts)
    }


def examples_of(parts: Mapping[ClientId, Raw]) -> dict[ClientId, Examples]:
    """The parts as a simulation wants them."""
    return {name: examples_from(part, DATA) for name, part in parts.items()}


def most_classes(parts: Mapping[ClientId, Raw]) -> ClientId:
    """The client whose rarest class has most examples: who prunes alone should know them all."""

    def rarest(name: ClientId) -> int:
        return int(np.bincount(parts[name].labels, minlength=len(DATA.classes)).min())

    return max(parts, key=rarest)
