"""How sure one may be: exact tests and Student's t on small samples.

Enters: numbers. Leaves: probabilities, intervals and odds. Touches: nothing.

Sources: Student (1908) and the continued fraction of the incomplete beta function
(Abramowitz & Stegun 26.5.8); Fisher's exact test; the two-sample permutation test on means.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

#: Splits of both samples that are all counted; of more, this many are drawn.
MOST_SPLITS = 20_000


@dataclass(frozen=True)
class Effect:
    """B against A, as a share of A's mean; negative: B is lower.

    Attributes:
        estimate, low, high: shares; ``low`` to ``high`` is the interval of the confidence asked.
        freedom: degrees of freedom of the noise.
        scale: standard error of the estimate, a share.
    """

    estimate: float
    low: float
    high: float
    freedom: int
    scale: float

    def above(self, share: float) -> float:
        """The probability that the true effect is above ``share``."""
        if self.scale == 0:
            return float(self.estimate > share)
        return student((self.estimate - share) / self.scale, self.freedom)

    def times(self, sign: int) -> Effect:
        """The same where lower is better: with ``sign`` -1, positive is better again."""
        low, high = sorted((sign * self.low, sign * self.high))
        return replace(self, estimate=sign * self.estimate, low=low, high=high)


def effect(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Effect:
    """The difference of two samples with one common spread.

    Raises:
        ValueError: fewer than two values in a sample, or A's mean is 0.
    """
    if min(len(a), len(b)) < 2 or fmean(a) == 0:
        raise ValueError("two values each, and a mean that is not 0, are needed")
    freedom = len(a) + len(b) - 2
    rest = squares(a) + squares(b)
    base = abs(fmean(a))
    scale = math.sqrt(rest / freedom * (1 / len(a) + 1 / len(b))) / base
    estimate = (fmean(b) - fmean(a)) / base
    wide = quantile(0.5 + confidence / 2, freedom) * scale
    return Effect(estimate, estimate - wide, estimate + wide, freedom, scale)


def squares(values: Sequence[float]) -> float:
    """The sum of squared distances from the mean."""
    mean = fmean(values) if values else 0.0
    return math.fsum((value - mean) ** 2 for value in values)


def student(t: float, freedom: float) -> float:
    """The probability that Student's t is below ``t``."""
    if math.isinf(t):
        return float(t > 0)
    tail = 0.5 * _beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return 1 - tail if t > 0 else tail


@functools.cache
def quantile(probability: float, freedom: float) -> float:
    """The t below which Student's t is with this probability."""
    low, high = -1e7, 1e7
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log1p(-x)) / a
    return front * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny, c = 1e-300, 1.0
    d = 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    total = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = total
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            total *= d * c
        if abs(total - before) < 1e-15 * abs(total):
            break
    return total


def permutation(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the permutation test on means: exact, or of drawn splits where many."""
    pool, size = [*a, *b], len(a)
    gap = abs(fmean(a) - fmean(b)) - 1e-12 * (abs(fmean(pool)) or 1.0)
    total = math.fsum(pool)
    splits: Iterable[Sequence[float]]
    if math.comb(len(pool), size) <= MOST_SPLITS:
        splits = itertools.combinations(pool, size)
    else:
        draw = random.Random(0)  # the same p for the same values
        splits = (draw.sample(pool, size) for _ in range(MOST_SPLITS))
    found = count = 0
    for split in splits:
        part = math.fsum(split)
        count += 1
        found += abs(part / size - (total - part) / (len(pool) - size)) >= gap
    return found / count


def fisher(failed_a: int, passed_a: int, failed_b: int, passed_b: int) -> float:
    """Two-sided p of Fisher's exact test on failures and passes."""
    failed, all_a = failed_a + failed_b, failed_a + passed_a
    everything = failed + passed_a + passed_b

    def weight(k: int) -> int:
        return math.comb(failed, k) * math.comb(everything - failed, all_a - k)

    seen = weight(failed_a)
    rest = range(max(0, all_a - (everything - failed)), min(failed, all_a) + 1)
    return sum(weight(k) for k in rest if weight(k) <= seen) / math.comb(everything, all_a)
