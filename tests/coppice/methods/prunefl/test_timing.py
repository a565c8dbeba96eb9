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


def answer(seconds: float | None, work: float) -> Update:
    return Update(ClientId("a"), {}, 1, metrics={WORK_SECONDS: work}, seconds=seconds)


def test_a_round_lasts_as_long_as_its_slowest_client_and_the_link_grows_with_the_values() -> None:
    timing = Timing().with_round([answer(3.0, 1.0), answer(10.0, 8.0), answer(5.0, 3.0)])
    time = timing.round_time(weights(80))
    # 2 s for 80 + 20 values; 8 s of work whatever the mask.
    assert time.seconds_per_weight["w"] == pytest.approx(0.02)
    assert time.constant_seconds == pytest.approx(8.0 + 20 * 0.02)
    assert time.seconds({"w": 80}) == pytest.approx(10.0)


def test_no_single_client_says_what_the_link_takes() -> None:
    honest = [answer(10.0, 2.0), answer(9.0, 2.0)]
    for claimed in (1e9, 0.0, -5.0):
        time = Timing().with_round([*honest, answer(11.0, claimed)]).round_time(weights(80))
        assert 0.06 < time.seconds_per_weight["w"] < 0.12


def test_a_weight_always_costs_some_time() -> None:
    time = Timing().with_round([answer(3.0, 3.0)]).round_time(weights(80))
    assert time.seconds_per_weight["w"] > 0


def test_a_round_that_is_no_ordinary_one_counts_by_its_shares() -> None:
    timing = Timing().with_round([answer(53.0, 50.0)], work_share=0.01, link_share=2 / 3)
    assert timing.round_time(weights(80)).seconds({"w": 80}) == pytest.approx(0.5 + 2.0)


def test_of_many_rounds_the_median_counts() -> None:
    timing = Timing()
    for link in (1.0, 2.0, 90.0):
        timing = timing.with_round([answer(2.0 + link, 2.0)])
    assert timing.round_time(weights(80)).seconds({"w": 80}) == pytest.approx(4.0)


def test_work_under_different_masks_tells_what_a_weight_costs() -> None:
    timing = Timing()
    for ones in (100, 50, 20):
        timing = timing.with_round([answer(1.0 + 0.01 * ones, 1.0 + 0.01 * ones)])
        last = timing
        timing = timing.under_new_masks(weights(ones))
    assert timing.rounds == ()
    time = last.round_time(weights(20))
    assert time.seconds_per_weight["w"] == pytest.approx(0.01, rel=1e-4)
    assert time.constant_seconds == pytest.approx(1.0, rel=1e-4)


def test_work_that_no_line_explains_is_the_same_for_every_mask() -> None:
    timing = Timing()
    for ones, work in ((100, 1.0), (50, 9.0), (20, 2.0)):
        timing = timing.with_round([answer(work, work)])
        last = timing
        timing = timing.under_new_masks(weights(ones))
    time = last.round_time(weights(20))
    assert time.seconds_per_weight["w"] < 1e-6
    assert time.constant_seconds == pytest.approx(2.0)


def test_a_round_without_times_says_nothing() -> None:
    assert Timing().with_round([answer(None, 1.0)]) == Timing()
    assert Timing().under_new_masks(weights(5)) == Timing()
    with pytest.raises(RunFileError, match="none was timed"):
        Timing().round_time(weights(5))


def test_old_samples_are_forgotten() -> None:
    timing = Timing()
    for ones in range(1, MAX_SAMPLES + 3):
        timing = timing.with_round([answer(2.0, 1.0)]).under_new_masks(weights(ones))
    assert [sample.ones["w"] for sample in timing.samples] == list(range(3, MAX_SAMPLES + 3))
