"""Whether B is worse than A: what to start next, and when to say so.

Enters: what the starts of both variants showed so far. Leaves: the next variant to start, or
a verdict with effects, intervals and p-values. Touches: nothing.

The unit is a start: repeats on a warm fleet share what that start was like, so only their mean
counts. Variants take turns (A B B A ...), which cancels a drift of the machines that is even.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ci.compare import odds
from ci.compare.search import more_often


class Finding(enum.Enum):
    """What is said of B; the numbers are exit codes."""

    NO_WORSE = 0
    WORSE = 1
    UNKNOWN = 3


@dataclass(frozen=True)
class Started:
    """What one start of one variant showed.

    Attributes:
        variant: 0 is A, 1 is B.
        values: metric -> a value for each repeat.
        failure: class and signature of the product's failure; empty: it served.
        run: the name of its directory.
    """

    variant: int
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    failure: str = ""
    run: str = ""


class Test(enum.Enum):
    """How the p of two samples is computed."""

    PERMUTATION = "permutation of means"
    FISHER = "Fisher's exact test"

    def __call__(self, a: Sequence[float], b: Sequence[float]) -> float:
        if self is Test.PERMUTATION:
            return odds.permutation(a, b)
        failed = int(sum(a)), int(sum(b))
        return odds.fisher(failed[0], len(a) - failed[0], failed[1], len(b) - failed[1])


@dataclass(frozen=True)
class Judged:
    """One metric, or how often B failed.

    Attributes:
        a, b: a mean for each start; of failures 1 for each that failed, else 0.
        effect: B against A as it is better or worse: positive is better; None: no spread known.
    """

    name: str
    finding: Finding
    a: tuple[float, ...]
    b: tuple[float, ...]
    effect: odds.Effect | None = None
    test: Test = Test.PERMUTATION

    @property
    def p(self) -> float:
        """Two-sided, of the test named; 1 where a sample is empty."""
        return self.test(self.a, self.b) if self.a and self.b else 1.0


@dataclass(frozen=True)
class Pair:
    """How B is compared with A.

    Attributes:
        metrics: metric -> whether higher is better.
        margin: a loss below this share does not matter.
        error: how often an equal B may be called worse at one look.
        doubt: how often a B that is worse by the margin may be called no worse.
        starts: least and most starts of each variant.
        limits: metric -> the effect that B must have at least, where a gate says so; then that
            is judged, and not whether B is worse at all.
    """

    metrics: Mapping[str, bool]
    margin: float = 0.02
    error: float = 0.0015
    doubt: float = 0.05
    starts: tuple[int, int] = (3, 10)
    limits: Mapping[str, float] = field(default_factory=dict)

    def turn(self, seen: Sequence[Started]) -> int | None:
        """The variant to start next; None: the odds are good enough, or the budget is over."""
        counts = Counter(one.variant for one in seen)
        least, most = self.starts
        even = counts[0] == counts[1] >= least
        if even and (counts[0] >= most or self.finding(seen) is not Finding.UNKNOWN):
            return None
        return (0, 1, 1, 0)[len(seen) % 4]

    def finding(self, seen: Sequence[Started]) -> Finding:
        """The worst of all metrics and of the failures; unknown after too few starts."""
        counts = Counter(one.variant for one in seen)
        if min(counts[0], counts[1]) < self.starts[0]:
            return Finding.UNKNOWN
        return worst(one.finding for one in self.judged(seen))

    def judged(self, seen: Sequence[Started]) -> list[Judged]:
        """Each metric, and the failures."""
        return [self._failures(seen), *(self._metric(name, seen) for name in self.metrics)]

    def _metric(self, name: str, seen: Sequence[Started]) -> Judged:
        a, b = _means(name, 0, seen), _means(name, 1, seen)
        if min(len(a), len(b)) < 2 or not fmean(a):
            return Judged(name, Finding.UNKNOWN, a, b)
        sign = 1 if self.metrics[name] else -1
        effect = odds.effect(a, b, 1 - self.doubt).times(sign)
        finding = Finding.UNKNOWN
        limit = self.limits.get(name)
        broken = effect.estimate <= -self.margin / 2 if limit is None else True
        if broken and effect.above(limit or 0.0) <= self.error:
            finding = Finding.WORSE
        elif effect.above(-self.margin if limit is None else limit) >= 1 - self.doubt:
            finding = Finding.NO_WORSE
        return Judged(name, finding, a, b, effect)

    def _failures(self, seen: Sequence[Started]) -> Judged:
        a, b = (tuple(float(bool(one.failure)) for one in _of(v, seen)) for v in (0, 1))
        failed = int(sum(a)), int(sum(b))
        counts = failed[0], len(a) - failed[0], failed[1], len(b) - failed[1]
        finding = Finding.NO_WORSE if failed[1] <= failed[0] else Finding.UNKNOWN
        if more_often(counts[:2], counts[2:]) >= 1 - 3 * self.error:
            finding = Finding.WORSE
        elif all(a) or all(b):
            finding = Finding.UNKNOWN  # nothing was measured
        return Judged("failures", finding, a, b, test=Test.FISHER)


def worst(found: Iterable[Finding]) -> Finding:
    """What is said of several together; of none, that nobody knows."""
    every = {*found}
    order = (Finding.WORSE, Finding.UNKNOWN, Finding.NO_WORSE)
    return next((one for one in order if one in every), Finding.UNKNOWN)


def _of(variant: int, seen: Iterable[Started]) -> list[Started]:
    return [one for one in seen if one.variant == variant]


def _means(name: str, variant: int, seen: Iterable[Started]) -> tuple[float, ...]:
    return tuple(fmean(one.values[name]) for one in _of(variant, seen) if one.values.get(name))
