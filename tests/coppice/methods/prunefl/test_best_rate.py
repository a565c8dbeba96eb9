"""The largest gain per second: golden vector, exhaustive search, the paper's walk, invariances."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from coppice.methods.prunefl.reconfigure import best_rate


@dataclass(frozen=True)
class Case:
    """A choice: candidates with a gain and seconds each, beside a base."""

    gains: list[float]
    seconds: list[float]
    base_gain: float
    base_seconds: float

    def chosen(self) -> list[int]:
        rate = self.rate()
        pairs = zip(self.gains, self.seconds, strict=True)
        return [index for index, (gain, second) in enumerate(pairs) if gain > rate * second]

    def rate(self) -> float:
        # A layer for each price, as a model has them.
        prices = sorted(set(self.seconds))
        layers = [
            np.array([g for g, s in zip(self.gains, self.seconds, strict=True) if s == price])
            for price in prices
        ]
        return best_rate(layers, prices, self.base_gain, self.base_seconds)

    def rate_of(self, chosen: list[int] | tuple[int, ...]) -> float:
        seconds = self.base_seconds + sum(self.seconds[index] for index in chosen)
        gain = self.base_gain + sum(self.gains[index] for index in chosen)
        return gain / seconds if seconds else 0.0

    def walked(self) -> list[int]:
        """The paper's greedy walk, an entry at a time."""
        order = sorted(
            range(len(self.gains)), key=lambda index: -self.gains[index] / self.seconds[index]
        )
        taken: list[int] = []
        for index in order:
            if self.gains[index] / self.seconds[index] <= self.rate_of(taken):
                break
            taken.append(index)
        return sorted(taken)


def random_case(seed: int, most: int) -> Case:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, most + 1))
    prices = rng.uniform(0.01, 5, size=int(rng.integers(1, 5)))
    gains = rng.exponential(size=count) ** 3 * rng.integers(0, 4, size=count)
    return Case(
        gains=gains.tolist(),
        seconds=rng.choice(prices, size=count).tolist(),
        base_gain=float(rng.exponential() * 3) if seed % 3 else 0.0,
        base_seconds=float(rng.exponential() * 10) if seed % 6 else 0.0,
    )


GOLDEN = Case(gains=[6, 3, 2, 1, 0.4], seconds=[1, 1, 2, 0.5, 1], base_gain=1.0, base_seconds=2.0)


def test_golden_vector_keeps_the_first_two_at_a_rate_of_two_and_a_half() -> None:
    assert GOLDEN.chosen() == [0, 1]
    assert GOLDEN.rate() == 2.5


def test_no_set_has_a_larger_rate() -> None:
    with_base = 0
    for seed in range(1200):
        case = random_case(seed, most=10)
        sets = itertools.chain.from_iterable(
            itertools.combinations(range(len(case.gains)), size)
            for size in range(len(case.gains) + 1)
        )
        best = max(map(case.rate_of, sets))
        assert case.rate_of(case.chosen()) == pytest.approx(best, rel=1e-12, abs=0.0)
        with_base += case.base_seconds > 0
    assert 0 < with_base < 1200


def test_no_set_of_twelve_has_a_larger_rate() -> None:
    bits = (np.arange(2**12)[:, None] >> np.arange(12)) & 1
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gains, seconds = rng.exponential(size=12) ** 3, rng.choice([0.1, 1.0, 3.0], size=12)
        case = Case(gains.tolist(), seconds.tolist(), float(seed % 2), rng.exponential() * 5)
        rates = (case.base_gain + bits @ gains) / (case.base_seconds + bits @ seconds)
        assert case.rate_of(case.chosen()) == pytest.approx(rates.max(), rel=1e-12)
        assert case.rate() == pytest.approx(rates.max(), rel=1e-12)


def test_the_set_is_the_one_that_the_paper_walks_to() -> None:
    for seed in range(300):
        case = random_case(seed, most=400)
        if case.base_seconds:
            assert case.chosen() == case.walked()


def test_scale_of_the_gains_and_of_the_times_is_irrelevant() -> None:
    for seed in range(1, 100):
        case = random_case(seed, most=60)
        gainful = replace(case, gains=[g * 1e7 for g in case.gains], base_gain=case.base_gain * 1e7)
        slow = replace(
            case, seconds=[s * 8.1 for s in case.seconds], base_seconds=case.base_seconds * 8.1
        )
        assert gainful.chosen() == slow.chosen() == case.chosen()


def test_a_large_constant_keeps_whatever_has_a_gain() -> None:
    case = Case([3.0, 0.0, 1e-20, 5.0], [1.0, 1.0, 2.0, 1e3], base_gain=0.0, base_seconds=1e60)
    assert case.chosen() == [0, 2, 3]


def test_equal_ratio_does_not_join() -> None:
    assert Case([2.5, 2.6], [1.0, 1.0], base_gain=2.5, base_seconds=1.0).chosen() == [1]


def test_beside_nothing_only_the_best_ratio_is_kept() -> None:
    case = Case([3.0, 0.3, 0.7, 0.1], [1.0, 0.1, 1.0, 0.1], base_gain=0.0, base_seconds=0.0)
    assert case.chosen() == [0, 1]


def test_nothing_joins_a_gain_that_costs_nothing() -> None:
    case = Case([3.0], [1.0], base_gain=1e-20, base_seconds=0.0)
    assert case.chosen() == []
    assert case.rate() == math.inf


def test_candidates_without_gain_never_join() -> None:
    assert Case([0.0, 0.0], [1.0, 2.0], base_gain=0.0, base_seconds=1.0).chosen() == []
    assert Case([0.0, 0.0], [1.0, 2.0], base_gain=0.0, base_seconds=0.0).chosen() == []


def test_list_without_candidates_has_the_rate_of_the_base() -> None:
    assert best_rate([], [], 6.0, 2.0) == 3.0
    assert best_rate([np.array([])], [1.0], 6.0, 2.0) == 3.0


def test_sums_of_float32_gains_do_not_drift() -> None:
    gains = np.full(2_000_000, 0.1, dtype=np.float32)
    assert best_rate([gains], [1e-6], 0.0, 1.0) == pytest.approx(
        2e6 * float(np.float32(0.1)) / 3, rel=1e-12
    )
