"""Probabilities against values that others computed, and against their own meaning."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from ci.compare import odds

#: t, degrees of freedom, P(T < t): tables of Student's distribution, to 5 places.
TABLE = [(6.3138, 1, 0.95), (2.9200, 2, 0.95), (4.0321, 5, 0.995), (2.2281, 10, 0.975),
         (3.3852, 24, 0.99878), (1.6706, 60, 0.95)]  # fmt: skip


@pytest.mark.parametrize(("t", "freedom", "probability"), TABLE)
def test_student_is_as_in_the_tables(t: float, freedom: int, probability: float) -> None:
    assert odds.student(t, freedom) == pytest.approx(probability, abs=2e-5)
    assert odds.student(-t, freedom) == pytest.approx(1 - probability, abs=2e-5)
    assert odds.quantile(odds.student(t, freedom), freedom) == pytest.approx(t, rel=1e-6)


def test_student_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for t, freedom in itertools.product((-30, -3.3, -0.2, 0, 1e-9, 2, 9, 400), (1, 2, 3, 7, 40)):
        assert odds.student(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-9)


def test_ends_of_student() -> None:
    assert (odds.student(math.inf, 3), odds.student(-math.inf, 3)) == (1, 0)
    assert odds.student(0, 3) == 0.5


def test_permutation_counts_splits() -> None:
    assert odds.permutation([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert odds.permutation([1, 1], [1, 1]) == 1
    assert odds.permutation([1.0, 9.0], [5.0]) == 1
    assert odds.permutation([1, 2, 3, 4], [10, 11, 12, 13]) == pytest.approx(2 / 70)


def test_many_splits_are_drawn_and_the_same_each_time() -> None:
    rng = random.Random(3)
    a, b = [rng.gauss(0, 1) for _ in range(12)], [rng.gauss(0.9, 1) for _ in range(12)]
    assert odds.permutation(a, b) == odds.permutation(a, b)
    whole = sum(
        abs(2 * sum(part) - sum(a + b)) >= abs(sum(a) - sum(b)) - 1e-9
        for part in itertools.islice(itertools.combinations(a + b, 12), 0, None, 97)
    )
    assert odds.permutation(a, b) == pytest.approx(whole / (math.comb(24, 12) / 97), abs=0.01)


@pytest.mark.parametrize(
    ("counts", "p"),
    [((0, 3, 3, 0), 0.1), ((0, 5, 5, 0), 0.00794), ((1, 9, 11, 3), 0.00276), ((2, 2, 2, 2), 1.0),
     ((0, 4, 0, 4), 1.0)],
)  # fmt: skip
def test_fisher(counts: tuple[int, int, int, int], p: float) -> None:
    assert odds.fisher(*counts) == pytest.approx(p, abs=1e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = random.Random(1), 0
    for _ in range(2000):
        a = [100 * rng.gauss(1, 0.02) for _ in range(4)]
        b = [95 * rng.gauss(1, 0.02) for _ in range(5)]
        found = odds.effect(a, b, 0.9)
        held += found.low <= -0.05 <= found.high
    assert 0.87 < held / 2000 < 0.93


def test_an_effect_where_lower_is_better() -> None:
    found = odds.effect([10, 11, 12], [12, 13, 14]).times(-1)
    assert found.low < found.estimate < found.high < 0.2
    assert found.estimate == pytest.approx(-2 / 11)
    assert found.above(0) < 0.1


def test_values_without_spread() -> None:
    same = odds.effect([5, 5], [4, 4])
    assert (same.above(0), same.above(-0.3)) == (0, 1)


@pytest.mark.parametrize(("a", "b"), [([1], [2, 3]), ([1, 2], []), ([0, 0], [1, 2])])
def test_too_little_is_said(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="two values"):
        odds.effect(a, b)
