"""What a round takes, from the slowest client of the rounds that were timed."""

from __future__ import annotations

import pytest
import torch

from coppice.domain import WORK_SECONDS, ClientId
from coppice.errors import RunFileError
from coppice.method import Update
from coppice.methods.prunefl.timing import MAX_SAMPLES, Timing
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights


def weights(ones: int) -> Weights:
    mask = Mask.of(torch.arange(100) < ones)
    return {"w": SparseTensor(mask, torch.zeros(ones)), "bias": torch.zeros(20)}


def answer(seconds: float | None, work: float, steps: int = 5) -> Update:
    return Update(ClientId("a"), {}, 1, steps, {WORK_SECONDS: work}, seconds)


def test_the_slowest_client_counts_and_its_link_grows_with_the_values() -> None:
    timing = Timing().with_round([answer(3.0, 2.0), answer(10.0, 2.0), answer(5.0, 4.0)], 5)
    time = timing.round_time(weights(80))
    # 8 s for 80 + 20 values; 2 s of work whatever the mask.
    assert time.seconds_per_weight["w"] == pytest.approx(0.08)
    assert time.constant_seconds == pytest.approx(2.0 + 20 * 0.08)
    assert time.seconds({"w": 80}) == pytest.approx(10.0)


def test_a_round_of_more_steps_counts_as_an_ordinary_one() -> None:
    timing = Timing().with_round([answer(51.0, 50.0, steps=500)], 5)
    assert timing.round_time(weights(80)).seconds({"w": 80}) == pytest.approx(0.5 + 1.0)


def test_of_many_rounds_the_median_counts() -> None:
    timing = Timing()
    for link in (1.0, 2.0, 90.0):
        timing = timing.with_round([answer(2.0 + link, 2.0)], 5)
    assert timing.round_time(weights(80)).seconds({"w": 80}) == pytest.approx(4.0)


def test_work_under_different_masks_tells_what_a_weight_costs() -> None:
    timing = Timing()
    for ones in (100, 50, 20):
        timing = timing.with_round([answer(1.0 + 0.01 * ones, 1.0 + 0.01 * ones)], 5)
        last = timing
        timing = timing.under_new_masks(weights(ones))
    assert timing.rounds == ()
    time = last.round_time(weights(20))
    assert time.seconds_per_weight["w"] == pytest.approx(0.01)
    assert time.constant_seconds == pytest.approx(1.0)


def test_work_that_no_line_explains_is_the_same_for_every_mask() -> None:
    timing = Timing()
    for ones, work in ((100, 1.0), (50, 9.0), (20, 2.0)):
        timing = timing.with_round([answer(work, work)], 5)
        last = timing
        timing = timing.under_new_masks(weights(ones))
    time = last.round_time(weights(20))
    assert time.seconds_per_weight == {"w": 0.0}
    assert time.constant_seconds == 2.0


def test_a_round_without_times_says_nothing() -> None:
    assert Timing().with_round([answer(None, 1.0)], 5) == Timing()
    assert Timing().under_new_masks(weights(5)) == Timing()
    with pytest.raises(RunFileError, match="none was timed"):
        Timing().round_time(weights(5))


def test_a_device_cannot_have_worked_longer_than_the_server_waited() -> None:
    timing = Timing().with_round([answer(3.0, 1e9)], 5)
    assert timing.round_time(weights(80)).seconds({"w": 80}) == pytest.approx(3.0)


def test_old_samples_are_forgotten() -> None:
    timing = Timing()
    for ones in range(1, MAX_SAMPLES + 3):
        timing = timing.with_round([answer(2.0, 1.0)], 5).under_new_masks(weights(ones))
    assert [sample.ones["w"] for sample in timing.samples] == list(range(3, MAX_SAMPLES + 3))
