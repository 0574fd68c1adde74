"""Which commit moved a metric, or broke the fleet: what to start next, and when to answer.

Enters: the candidates between a good and a bad commit, and what each start so far showed.
Leaves: the next commit to start, or an answer with its odds. Touches: nothing; the same
starts give the same step.

The model is one change between good and bad: the starts before it have one level and those
from it on another, with one common spread (values), or two rates of failing (failures).
Every start counts for every candidate, so nothing is decided by a fixed limit and a noisy
start only lowers the odds. The model may be wrong (two changes, a drift): therefore the
culprit and its parent are measured against each other before the culprit is named.
"""

from __future__ import annotations

import bisect
import enum
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from ci.compare import odds

#: No measurement of a fleet is steadier than this share of its level.
STEADIEST = 0.001
#: Odds at which two changes are believed rather than one.
TWO_RATHER_THAN_ONE = 20.0
#: After so many starts that tell nothing a commit is left out, unless others told half as much.
UNCLEAR = 3
#: What is believed of how often a fleet fails before anything is seen, as a beta
#: distribution: rarely before the change, at any rate after it.
RATES = ((0.1, 5.0), (1.0, 1.0))


@dataclass(frozen=True)
class Seen:
    """What one start of the fleet showed.

    Attributes:
        commit: 0 is good, the last is bad, between them the candidates from old to new.
        value: mean of the repeats; higher is better. None: nothing was measured.
        failed: it failed as bad does. None: it failed otherwise, which tells nothing.
    """

    commit: int
    value: float | None = None
    failed: bool | None = False


class Kind(enum.Enum):
    """How a search ends."""

    CULPRIT = "culprit"
    SUSPECTS = "suspects"
    NOT_REPRODUCED = "not reproduced"
    ENVIRONMENT = "environment"
    BUDGET = "budget over"


@dataclass(frozen=True)
class Start:
    """Start the fleet with this commit."""

    commit: int
    why: str


@dataclass(frozen=True)
class Answer:
    """The end of a search.

    Attributes:
        suspects: commit -> the probability that it is the culprit, the likeliest first.
        share: of the difference of good and bad, what the culprit explains; 0: not measured.
    """

    kind: Kind
    suspects: Mapping[int, float]
    why: str
    share: float = 0.0


@dataclass(frozen=True)
class Search:
    """What is searched, and how sure the answer must be.

    Attributes:
        last: the index of bad; good is 0.
        by_value: a metric moved; otherwise a failure appeared.
        out: commits that cannot be built or judged.
        weights: candidates that are less likely than others, with how much.
        edges: started first: the places between the commits of one product and of the next.
        sure: the probability at which the search ends and the culprit is confirmed.
        error: how often ends, or a parent and its culprit, may be called different in error.
        ends: least and most starts of each end.
        confirm: least and most starts of the culprit and of its parent.
        starts: the budget.
    """

    last: int
    by_value: bool = True
    out: frozenset[int] = frozenset()
    weights: Mapping[int, float] = field(default_factory=dict)
    edges: tuple[int, ...] = ()
    sure: float = 0.99
    error: float = 0.002
    ends: tuple[int, int] = (3, 12)
    confirm: tuple[int, int] = (4, 8)
    starts: int = 60

    def step(self, seen: Sequence[Seen]) -> Start | Answer:
        """What comes next."""
        usable = [one for one in seen if one.failed is not None]
        over, lost = len(seen) >= self.starts, unclear(seen)
        if 0 in lost:
            return Answer(Kind.ENVIRONMENT, {}, "good fails today, otherwise than bad does")
        if self.last in lost:
            return Answer(Kind.NOT_REPRODUCED, {}, "bad fails today, otherwise than is searched")
        return replace(self, out=self.out | lost)._next(usable, over)

    def _next(self, usable: Sequence[Seen], over: bool) -> Start | Answer:
        begin = self._ends(usable)
        if begin is not None:
            return self._over(usable, begin) if over and isinstance(begin, Start) else begin
        odds_of = self.probabilities(usable)
        block = self._block(max(odds_of, key=lambda k: self._mass(k, odds_of)))
        mass = sum(odds_of[k] for k in block)
        follow = self._confirm(usable, block, odds_of) if mass >= self.sure else self._half(odds_of)
        return self._over(usable, follow) if over and isinstance(follow, Start) else follow

    def _over(self, seen: Sequence[Seen], wish: Start) -> Answer:
        odds_of = self.probabilities(seen)
        return Answer(Kind.BUDGET, _likeliest(odds_of), f"commit {wish.commit} would come next")

    def _ends(self, seen: Sequence[Seen]) -> Start | Answer | None:
        """The next start of an end; an answer when the ends do not differ; None: they do."""
        good, bad = _at(seen, 0), _at(seen, self.last)
        least, most = self.ends
        if min(len(good), len(bad)) >= least:
            if self._apart(good, bad):
                return None
            if self._alike(good, bad) or min(len(good), len(bad)) >= most:
                return self._same(good, bad)
        if len(good) < len(bad):
            return Start(0, "good, as it is today")
        return Start(self.last, "bad, as it is today")

    def _same(self, good: Sequence[Seen], bad: Sequence[Seen]) -> Answer:
        if not self.by_value and any(one.failed for one in good):
            return Answer(Kind.ENVIRONMENT, {}, "good fails today as bad does")
        return Answer(Kind.NOT_REPRODUCED, {}, "today good and bad do not differ")

    def _apart(self, good: Sequence[Seen], bad: Sequence[Seen]) -> bool:
        if self.by_value:
            both = _values(good), _values(bad)
            return odds.effect(*both).above(0) <= self.error
        return more_often(_failures(good), _failures(bad)) >= 1 - 10 * self.error

    def _alike(self, good: Sequence[Seen], bad: Sequence[Seen]) -> bool:
        """Whether more starts would hardly tell them apart."""
        pairs = min(len(good), len(bad)) - self.ends[0]
        if self.by_value:
            return pairs >= 3 and odds.effect(_values(good), _values(bad)).above(0) > 0.2
        return pairs >= 5 and not any(one.failed for one in bad)

    def probabilities(self, seen: Sequence[Seen]) -> dict[int, float]:
        """Candidate -> the probability that it is the first that is bad.

        Where two changes explain the starts far better than one, the larger of them is meant.
        """
        marks = sorted({0, self.last, *(one.commit for one in seen)})
        gaps = [range(low + 1, high + 1) for low, high in itertools.pairwise(marks)]
        weights = [sum(self.weights.get(k, 1.0) for k in gap) for gap in gaps]
        shares = self._gaps(Sums.of(seen), gaps, weights)
        total = sum(shares)
        return {
            k: share / total * self.weights.get(k, 1.0) / weight
            for gap, share, weight in zip(gaps, shares, weights, strict=True)
            for k in gap
        }

    def _gaps(self, sums: Sums, gaps: Sequence[range], weights: Sequence[float]) -> list[float]:
        """How likely the change lies in each gap between commits that were started."""
        wide = sums.mean(range(1)) - sums.mean(range(self.last, self.last + 1))
        edges = [gap[0] for gap in gaps]

        def log(*at: int) -> float:
            changes = [0, *(edges[i] for i in at), self.last + 1]
            parts = [range(low, high) for low, high in itertools.pairwise(changes)]
            told = sums.levels(parts, abs(wide)) if self.by_value else sums.rates(parts)
            return told + sum(math.log(weights[i]) for i in at)

        indices = range(len(gaps))
        one: dict[tuple[int, ...], float] = {
            at: log(*at) for at in itertools.combinations(indices, 1)
        }
        pairs = itertools.combinations(indices, 2) if self.by_value else ()
        two: dict[tuple[int, ...], float] = {at: log(*at) for at in pairs}
        top = max([*one.values(), *two.values()])
        # As many ways to lay one change, and two, as there are candidates and pairs of them.
        singly = sum(math.exp(value - top) for value in one.values()) / sum(weights)
        doubly = sum(math.exp(value - top) for value in two.values()) / sum(weights) ** 2 * 2
        chosen, which = one, 0
        if doubly > TWO_RATHER_THAN_ONE * singly:
            i, j = max(two, key=lambda pair: two[pair])
            levels = [range(edges[i]), range(edges[i], edges[j]), range(edges[j], self.last + 1)]
            first, second, third = map(sums.mean, levels)
            chosen, which = two, int(second - third > first - second)
        shares = [0.0] * len(gaps)
        for at, value in chosen.items():
            shares[at[which]] += math.exp(value - top)
        return shares

    def _mass(self, k: int, odds_of: Mapping[int, float]) -> float:
        return sum(odds_of[i] for i in self._block(k))

    def _block(self, k: int) -> range:
        """The candidates that no start can tell from ``k``: those about it that cannot be built."""
        low, high = k, k
        while low - 1 in self.out:
            low -= 1
        while high in self.out:
            high += 1
        return range(low, high + 1)

    def _half(self, odds_of: Mapping[int, float]) -> Start:
        """The commit before which half of the probability stands, as nearly as may be."""
        every = [k for k in range(1, self.last) if k not in self.out]
        edges = [k for k in self.edges if k not in self.out]
        products = itertools.pairwise([0, *edges, self.last])
        known = max(sum(odds_of[k] for k in range(low + 1, high + 1)) for low, high in products)
        first = edges if known < self.sure else []
        before = list(itertools.accumulate(odds_of[k] for k in range(1, self.last)))
        best = min(first or every, key=lambda k: abs(before[k - 1] - 0.5), default=self.last)
        return Start(best, "which product it was" if first else "it halves what is left")

    def _confirm(
        self, seen: Sequence[Seen], block: range, odds_of: Mapping[int, float]
    ) -> Start | Answer:
        """Measure the culprit beside its parent; name it when they differ."""
        parent, culprit = block[0] - 1, block[-1]
        old, new = _at(seen, parent), _at(seen, culprit)
        least, most = self.confirm if self.by_value else (2, 2)
        if min(len(old), len(new)) < least:
            return self._fewer(parent, old, culprit, new)
        share = self._share(seen, old, new)
        if not self.by_value or (self._apart(old, new) and share >= 0.3):
            found = {k: odds_of[k] for k in block}
            kind = Kind.CULPRIT if len(block) == 1 else Kind.SUSPECTS
            return Answer(kind, _likeliest(found), "its parent was good, and it is bad", share)
        if min(len(old), len(new)) < most:
            return self._fewer(parent, old, culprit, new)
        return Answer(
            Kind.SUSPECTS,
            {k: 1 / len(block) for k in block},
            "its parent is no better; several changes, or a drift",
        )

    def _fewer(self, parent: int, old: Sequence[Seen], culprit: int, new: Sequence[Seen]) -> Start:
        if len(old) <= len(new):
            return Start(parent, "the suspect's parent must be good")
        return Start(culprit, "the suspect must be bad")

    def _share(self, seen: Sequence[Seen], old: Sequence[Seen], new: Sequence[Seen]) -> float:
        if not self.by_value:
            return 1.0
        whole = _mean(_at(seen, 0)) - _mean(_at(seen, self.last))
        return (_mean(old) - _mean(new)) / whole if whole else 0.0


def _likeliest(odds_of: Mapping[int, float], hold: float = 0.95) -> dict[int, float]:
    """The likeliest candidates that together hold this much."""
    found: dict[int, float] = {}
    for k in sorted(odds_of, key=lambda k: -odds_of[k]):
        if sum(found.values()) >= hold * sum(odds_of.values()):
            break
        found[k] = odds_of[k]
    return found


def more_often(old: tuple[int, int], new: tuple[int, int]) -> float:
    """The probability that ``new`` fails more often than ``old`` (failed, passed), flat priors."""
    a, b = old[0] + 1, old[1] + 1
    c, d = new[0] + 1, new[1] + 1

    # The chance of the one being below the other, summed over whole numbers (Evan Miller, 2015).
    return sum(
        math.exp(_beta(a + i, b + d) - math.log(d + i) - _beta(1 + i, d) - _beta(a, b))
        for i in range(c)
    )


@dataclass(frozen=True)
class Sums:
    """Running sums over starts in the order of their commits; a range of commits is soon told.

    Attributes:
        commits: of each start, ascending.
        values, squares, measured, failed: sums over the first n starts; values less ``level``.
    """

    commits: tuple[int, ...]
    level: float
    values: tuple[float, ...]
    squares: tuple[float, ...]
    measured: tuple[int, ...]
    failed: tuple[int, ...]

    @classmethod
    def of(cls, seen: Sequence[Seen]) -> Sums:
        """The sums of these starts."""
        order = sorted(seen, key=lambda one: one.commit)
        level = fmean(_values(order) or [0.0])
        near = [0.0 if one.value is None else one.value - level for one in order]
        return cls(
            tuple(one.commit for one in order),
            level,
            tuple(itertools.accumulate(near, initial=0.0)),
            tuple(itertools.accumulate((value * value for value in near), initial=0.0)),
            tuple(itertools.accumulate((one.value is not None for one in order), initial=0)),
            tuple(itertools.accumulate((bool(one.failed) for one in order), initial=0)),
        )

    def _over(self, commits: range) -> tuple[int, int]:
        return (
            bisect.bisect_left(self.commits, commits.start),
            bisect.bisect_left(self.commits, commits.stop),
        )

    def mean(self, commits: range) -> float:
        """Of the values of these commits; the level of all where there is none."""
        low, high = self._over(commits)
        count = self.measured[high] - self.measured[low]
        return self.level + (self.values[high] - self.values[low]) / (count or 1)

    def levels(self, parts: Sequence[range], wide: float) -> float:
        """The logarithm of how well one level for each part explains the values.

        The levels' prior is flat over ``wide``, the spread's flat in its logarithm.
        """
        floor = (STEADIEST * self.level) ** 2 * len(self.commits) or 1e-300
        rest, freedom, told = floor, -len(parts), 0.0
        for low, high in map(self._over, parts):
            count = self.measured[high] - self.measured[low]
            if not count:
                return 0.0
            total = self.values[high] - self.values[low]
            rest += max(self.squares[high] - self.squares[low] - total * total / count, 0.0)
            freedom += count
            told += 0.5 * math.log(math.pi / count) - math.log(wide or math.sqrt(floor))
        if freedom <= 0:
            return 0.0
        return told + math.lgamma(freedom / 2) - freedom / 2 * math.log(rest)

    def rates(self, parts: Sequence[range]) -> float:
        """The logarithm of their failures' chance: rare before the change, at any rate after."""
        told = 0.0
        for (low, high), prior in zip(map(self._over, parts), RATES, strict=True):
            failed = self.failed[high] - self.failed[low]
            told += _beta(failed + prior[0], high - low - failed + prior[1]) - _beta(*prior)
        return told


def _beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def unclear(seen: Iterable[Seen]) -> frozenset[int]:
    """The commits that cannot be judged: what they do is neither what good nor what bad does."""
    every = list(seen)
    told = Counter(one.commit for one in every if one.failed is not None)
    none = Counter(one.commit for one in every if one.failed is None)
    return frozenset(k for k, n in none.items() if n >= UNCLEAR and n > 2 * told[k])


def _at(seen: Iterable[Seen], commit: int) -> list[Seen]:
    return [one for one in seen if one.commit == commit]


def _values(seen: Iterable[Seen]) -> list[float]:
    return [one.value for one in seen if one.value is not None]


def _mean(seen: Sequence[Seen]) -> float:
    return fmean(_values(seen))


def _failures(seen: Iterable[Seen]) -> tuple[int, int]:
    """How many failed, and how many passed."""
    flags = [bool(one.failed) for one in seen]
    return sum(flags), len(flags) - sum(flags)
