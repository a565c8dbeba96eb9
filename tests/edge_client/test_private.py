"""Private state: versions, receipts, refusals, and a process that is killed at any moment."""

from __future__ import annotations

import itertools
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
from tests.edge_client.test_private import Kept, Other
from edge_client.private import PrivateState
private = PrivateState(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    private.stage(Kept(number, {"w": torch.full((50_000,), float(number))}))
    private.stage(Other(number))
    private.write()
    if number % 3 == 0:
        private.drop()
    else:
        private.promote(number)
    print(number, flush=True)
"""


#: A run's tasks, in their order.
TASKS = itertools.count(1)


@dataclass(frozen=True)
class Kept:
    number: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Other:
    number: int


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
    private.promote(next(TASKS))
    assert read(private) is None


def send(private: PrivateState, *values: object) -> None:
    """All up to the moment before the receipt."""
    for value in values:
        private.stage(value)
    private.write()


def test_staged_version_is_not_read_before_the_receipt(private: PrivateState) -> None:
    send(private, kept(1))
    assert read(private) is None
    private.promote(next(TASKS))
    assert read(private) == 1
    private.stage(kept(2))
    assert read(private) == 1
    private.write()
    assert read(private) == 1


def test_nothing_is_on_disk_before_it_is_written(private: PrivateState, tmp_path: Path) -> None:
    private.stage(kept(1))
    assert list(tmp_path.iterdir()) == []
    private.promote(next(TASKS))
    assert read(private) is None
    private.write()
    private.promote(next(TASKS))
    assert read(private) == 1
    # Nothing was staged since: there is no next version to write.
    before = sorted((tmp_path / "private" / "1-fedavg").iterdir())
    private.write()
    assert sorted((tmp_path / "private" / "1-fedavg").iterdir()) == before


def test_refused_version_is_dropped(private: PrivateState) -> None:
    send(private, kept(1))
    private.promote(next(TASKS))
    send(private, kept(2))
    private.drop()
    private.promote(next(TASKS))
    assert read(private) == 1


def test_task_that_was_given_up_leaves_nothing_for_the_next_one(private: PrivateState) -> None:
    private.stage(kept(1))
    private.drop()
    send(private, Other(2))
    private.promote(next(TASKS))
    assert read(private) is None
    assert private.read(Other) == Other(2)


def test_update_that_is_refused_after_its_receipt_takes_its_version_with_it(
    private: PrivateState, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        send(private, kept(number), Other(number))
        private.promote(100 + number)
    # A version is kept for that, and no more.
    assert len(list((tmp_path / "private" / "1-fedavg").iterdir())) == 2
    private.take_back(102)
    assert read(private) == 3, "only the newest can be refused"
    private.take_back(103)
    assert (read(private), private.read(Other)) == (2, Other(2))
    private.take_back(103)
    assert read(PrivateState(tmp_path / "private" / "1-fedavg")) == 2
    send(private, kept(4))
    private.promote(104)
    assert (read(private), private.read(Other)) == (4, Other(2))


def test_first_version_that_is_taken_back_leaves_none(private: PrivateState) -> None:
    send(private, kept(1))
    private.promote(7)
    private.take_back(7)
    assert read(private) is None


def test_what_the_server_has_lost_does_not_count(private: PrivateState) -> None:
    for number in (1, 2):
        send(private, kept(number))
        private.promote(10 * number)
    private.rewind(21)
    assert read(private) == 2
    private.rewind(20)
    assert read(private) == 1
    send(private, kept(2))
    private.promote(20)
    private.rewind(5)
    assert read(private) is None


def test_receipt_that_comes_twice_promotes_nothing_else(private: PrivateState) -> None:
    send(private, kept(1))
    private.promote(7)
    send(private, kept(2))
    private.promote(7)
    assert read(private) == 1


def test_version_is_known_by_its_digest_before_and_after_its_receipt(
    private: PrivateState,
) -> None:
    assert private.write() == ""
    private.stage(kept(1))
    digest = private.write()
    assert private.holds(7, digest)
    assert not private.holds(7, "0" * 64)
    private.promote(7)
    assert private.holds(7, digest)
    assert not private.holds(8, digest)
    private.take_back(7)
    assert not private.holds(7, digest)


def test_run_again_stages_another_version(private: PrivateState) -> None:
    send(private, kept(1), kept(2))
    private.promote(next(TASKS))
    assert read(private) == 2


def test_version_has_one_value_of_each_type(private: PrivateState) -> None:
    send(private, kept(1), Other(10))
    assert private.read(Other) is None
    private.promote(next(TASKS))
    assert (read(private), private.read(Other)) == (1, Other(10))
    # What is not staged anew stays as it was.
    send(private, Other(20))
    private.promote(next(TASKS))
    assert (read(private), private.read(Other)) == (1, Other(20))
    send(private, kept(2))
    private.drop()
    assert (read(private), private.read(Other)) == (1, Other(20))


@pytest.mark.parametrize("has_receipt", [True, False])
def test_process_that_ends_before_the_receipt_keeps_the_version_before(
    private: PrivateState, tmp_path: Path, has_receipt: bool
) -> None:
    send(private, kept(1), Other(1))
    private.promote(next(TASKS))
    send(private, kept(2), Other(2))
    if has_receipt:
        private.promote(next(TASKS))
    again = PrivateState(tmp_path / "private" / "1-fedavg")
    # What it finds at its next task never got a receipt.
    again.drop()
    again.promote(next(TASKS))
    number = 2 if has_receipt else 1
    assert (read(again), again.read(Other)) == (number, Other(number))


def test_versions_outlive_the_process(private: PrivateState, tmp_path: Path) -> None:
    send(private, kept(1))
    private.promote(next(TASKS))
    assert read(PrivateState(tmp_path / "private" / "1-fedavg")) == 1
    assert read(PrivateState(tmp_path / "private" / "2-fedavg")) is None


def test_forgotten_run_leaves_nothing(private: PrivateState, tmp_path: Path) -> None:
    send(private, kept(1))
    private.promote(next(TASKS))
    private.forget()
    private.forget()
    assert read(private) is None
    assert list((tmp_path / "private").iterdir()) == []


def test_another_version_of_the_type_cannot_be_read(private: PrivateState) -> None:
    @dataclass(frozen=True)
    class Kept:
        number: str

    send(private, Kept("one"))
    private.promote(next(TASKS))
    with pytest.raises(InvalidPayload):
        read(private)


def test_file_that_is_damaged_is_an_error(private: PrivateState, tmp_path: Path) -> None:
    send(private, kept(1))
    private.promote(next(TASKS))
    (file,) = (tmp_path / "private" / "1-fedavg").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InvalidPayload, match="is damaged"):
        read(private)


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
    # Both values are of one version.
    assert private.read(Other) == Other(committed)
    assert committed % 3 != 0, "a dropped version was committed"
    assert last - 2 <= committed <= last + 1
    private.promote(last + 2)
    after = read(private)
    assert after is not None
    assert committed <= after <= last + 1
