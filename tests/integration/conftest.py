"""Fixtures: digits dealt out to three devices, and fleets of real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fleet import Fleet
from benchmarks.program import ROOT
from coppice.partition import IidPartitioner
from tests.integration.runs import APP

DEVICES = ("pi-1", "pi-2", "pi-3")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Simulations compute with as many threads as the devices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of digits for each device, drawn twice as large so that every model takes them."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(ROOT / "deploy" / "demo" / "digits.npz", allow_pickle=False) as file:
        x, y = file["x"].repeat(2, axis=-1).repeat(2, axis=-2), file["y"]
    parts = IidPartitioner(num_partitions=len(DEVICES)).partition(y, seed=3)
    for name, part in zip(DEVICES, parts, strict=True):
        np.savez(folder / f"{name}.npz", x=x[part], y=y[part])
    return {name: folder / f"{name}.npz" for name in DEVICES}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path]) -> Iterator[Fleet]:
    """A server and three devices without an app."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        for name, path in digits.items():
            # What it trains is compared with simulations, bit by bit.
            fleet.join(name, path, "--no-kernels")
        yield fleet


@pytest.fixture(scope="module")
def app_fleet(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, Path]) -> Iterator[Fleet]:
    """A server and three devices with the app that has gates."""
    with Fleet(tmp_path_factory.mktemp("app_fleet")) as fleet:
        for name, path in digits.items():
            fleet.join(name, path, "--app", APP, "--no-kernels")
        yield fleet
