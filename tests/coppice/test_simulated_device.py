"""The private state of a simulated device: versions, as on a real one's disk."""

from __future__ import annotations

from dataclasses import dataclass

from coppice.simulated_device import MemoryPrivate


@dataclass(frozen=True)
class Kept:
    number: int


def committed(*numbers: int) -> MemoryPrivate:
    private = MemoryPrivate()
    for number in numbers:
        private.stage(Kept(number))
        private.commit()
    return private


def test_update_that_is_refused_at_the_close_takes_its_version_with_it() -> None:
    private = committed(1, 2)
    private.take_back()
    assert private.read(Kept) == Kept(1)
    private.take_back()
    assert private.read(Kept) == Kept(1), "the one before was counted"
    first = committed(1)
    first.take_back()
    assert first.read(Kept) is None


def test_update_that_kept_nothing_takes_nothing_with_it() -> None:
    private = committed(1, 2)
    private.commit()
    private.take_back()
    assert private.read(Kept) == Kept(2)
