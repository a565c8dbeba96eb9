"""Importance of entries that few devices report."""

from __future__ import annotations

import pytest
import torch

from coppice.methods.prunefl.estimate import estimate

DEVICES, MASS = 10, 20.0


def test_entry_that_one_of_ten_reports_does_not_rank_lower_in_expectation() -> None:
    """Equal true gradients, with noise; half of the entries are reported by one device only."""
    generator = torch.Generator().manual_seed(0)
    ranks = []
    for _ in range(200):
        reports = torch.rand(DEVICES, 400, generator=generator).log().neg()
        reported = torch.ones(DEVICES, 400)
        reported[1:, 200:] = 0
        sums = (MASS * reports * reported).sum(dim=0)
        gains = estimate(sums, MASS * reported.sum(dim=0), prior_mass=MASS)
        ranks.append((gains[200:].mean() / gains[:200].mean()).item())
    assert sum(ranks) / len(ranks) == pytest.approx(1.0, abs=0.01)


def test_entry_that_none_reports_is_worth_the_mean() -> None:
    gains = estimate(torch.tensor([6.0, 2.0, 0.0]), torch.tensor([2.0, 2.0, 0.0]), 1.0)
    torch.testing.assert_close(gains, torch.tensor([8 / 3, 4 / 3, 2.0], dtype=torch.float64))


def test_chance_of_one_report_counts_for_less_than_that_of_many() -> None:
    gains = estimate(torch.tensor([5.0, 50.0, 0.0]), torch.tensor([1.0, 10.0, 44.0]), 1.0)
    # Both were worth 5 to those who reported them; the mean is 1.
    assert gains[:2].tolist() == pytest.approx([3.0, 51 / 11])


def test_without_a_prior_it_is_the_mean_of_the_reports() -> None:
    gains = estimate(torch.tensor([4.0, 9.0]), torch.tensor([2.0, 3.0]), 0.0)
    assert gains.tolist() == [2.0, 3.0]
    assert estimate(torch.zeros(3), torch.zeros(3), 0.0).tolist() == [0.0, 0.0, 0.0]
