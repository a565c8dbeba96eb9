"""Private state: versions, receipts, refusals, and a process that is killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coppice.errors import InvalidPayload
from edge_client.private import PrivateState

#: Stages and promotes versions for ever. Within a version everything says its number.
WRITER = """
import sys
from pathlib import Path
import torch
from tests.edge_client.test_private import Kept
from edge_client.private import PrivateState
private = PrivateState(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    private.stage(Kept(number, {"w": torch.full((50_000,), float(number))}))
    if number % 3 == 0:
        private.drop()
    else:
        private.promote()
    print(number, flush=True)
"""


@dataclass(frozen=True)
class Kept:
    number: int
    tensors: Mapping[str, Tensor]


def kept(number: int) -> Kept:
    return Kept(number, {"w": torch.full((3,), float(number))})


@pytest.fixture
def private(tmp_path: Path) -> PrivateState:
    return PrivateState(tmp_path / "private" / "1-fedavg")


def read(private: PrivateState) -> int | None:
    found = private.read(Kept)
    if found is None:
        return None
    assert (found.tensors["w"] == found.number).all()
    return found.number


def test_nothing_is_there_at_first(private: PrivateState) -> None:
    assert read(private) is None
    private.drop()
    private.promote()
    assert read(private) is None


def test_staged_version_is_not_read_before_the_receipt(private: PrivateState) -> None:
    private.stage(kept(1))
    assert read(private) is None
    private.promote()
    assert read(private) == 1
    private.stage(kept(2))
    assert read(private) == 1


def test_refused_version_is_dropped(private: PrivateState) -> None:
    private.stage(kept(1))
    private.promote()
    private.stage(kept(2))
    private.drop()
    private.promote()
    assert read(private) == 1


def test_run_again_stages_another_version(private: PrivateState) -> None:
    private.stage(kept(1))
    private.stage(kept(2))
    private.promote()
    assert read(private) == 2


def test_versions_outlive_the_process(private: PrivateState, tmp_path: Path) -> None:
    private.stage(kept(1))
    private.promote()
    assert read(PrivateState(tmp_path / "private" / "1-fedavg")) == 1
    assert read(PrivateState(tmp_path / "private" / "2-fedavg")) is None


def test_forgotten_run_leaves_nothing(private: PrivateState, tmp_path: Path) -> None:
    private.stage(kept(1))
    private.promote()
    private.forget()
    private.forget()
    assert read(private) is None
    assert list((tmp_path / "private").iterdir()) == []


def test_another_method_cannot_read_it(private: PrivateState) -> None:
    private.stage({"number": "one"})
    private.promote()
    with pytest.raises(InvalidPayload):
        private.read(Kept)


@pytest.mark.parametrize("attempt", range(2))
def test_killed_process_leaves_a_whole_version(tmp_path: Path, attempt: int) -> None:
    folder = tmp_path / "1-fedavg"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, folder],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with writer:
        assert writer.stdout is not None
        for _ in range(5):
            last = int(writer.stdout.readline())
        # Not to wait for anything: to kill at another moment of the next version each time.
        time.sleep(attempt * 0.0007)
        os.kill(writer.pid, signal.SIGKILL)
        last = max(last, *map(int, writer.stdout.read().split()), 0)
    private = PrivateState(folder)
    committed = read(private)
    assert committed is not None
    assert committed % 3 != 0, "a dropped version was committed"
    assert last - 2 <= committed <= last + 1
    private.promote()
    after = read(private)
    assert after is not None
    assert committed <= after <= last + 1
