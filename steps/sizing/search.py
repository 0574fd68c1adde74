"""The largest load that holds limits: what to measure next, and how sure the answer is.

Enters: a range of loads, and what each measurement so far showed. Leaves: the next load, and the
border with its interval. Touches nothing.

Bisection believes one noisy measurement a step; here all of them count. Over the logarithm of the
load, how far a metric is over its limit follows ``log(r + (1 - r) * (load / border) ** p)``: a
floor ``r`` that no load changes, and growth from line (p 1) to wall (p 20). For each of several
floors and powers the likeliest border is computed, and how sure it is, with noise of unknown size
(Laplace's approximation, Student's t); together they are the border's odds. A measurement far
from the border tells little about it, so it counts less; one far off the curve that all others
follow counts less too. Several limits have a border each, and the least of them is the fleet's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import NormalDist, median

from steps.core.case.gates import Gate

MOST = 12
#: Noise that is expected before any was seen, and how many measurements that expectation is worth.
NOISE, BELIEF = 0.03, 4.0
#: A metric so far from its limit (logarithm of their quotient) counts half.
NEAR = 0.35
#: So many times the usual distance from the curve is odd.
ODD = 4.0
POWERS = (0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0, 20.0)
FLOORS = (0.0, 0.2, 0.4, 0.55, 0.7, 0.85)
#: At most so many steps to the likeliest border of a shape.
STEPS = 12
#: Points of a grid, and how far it reaches beyond the range.
POINTS, BEYOND = 400, math.log(4)
#: A load this near the best one repeats it.
AGAIN = 0.1
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Seen:
    """One measurement.

    Attributes:
        excess: limit -> logarithm of how many times over it the metric was; below 0: held.
        broke: requests failed, or a limit without a size was missed.
    """

    load: float
    excess: Mapping[str, float] = field(default_factory=dict)
    broke: bool = False

    @property
    def held(self) -> bool:
        """Whether it held every limit."""
        return not self.broke and all(over <= 0 for over in self.excess.values())


@dataclass(frozen=True)
class Border:
    """The largest load that holds; it is in ``low`` to ``high`` with 95 % certainty.

    ``above``, ``below``: the odds that it is outside the range.
    """

    low: float
    best: float
    high: float
    above: float = 0.0
    below: float = 0.0

    @property
    def doubt(self) -> float:
        """Half the interval's width, as a share."""
        return math.log(self.high / self.low) / 2


@dataclass(frozen=True)
class Search:
    """What is looked for.

    Attributes:
        low, high: the range of loads.
        whole: loads are whole numbers.
        start: a first guess; 0: the middle.
    """

    low: float
    high: float
    tolerance: float = 0.05
    whole: bool = False
    start: float = 0.0
    most: int = MOST

    def next(self, seen: Sequence[Seen]) -> float | None:
        """The load to measure next; None when the border is known well enough, or never will be."""
        if not seen:
            return self._fit(self.start or math.sqrt(self.low * self.high))
        if len(seen) >= self.most:
            return None
        border = self.border(seen)
        if self._known(seen, border):
            return None
        loads, held = [one.load for one in seen], {one.held for one in seen}
        best = border.best
        # Where no side of the border was seen yet, a flat curve says nothing of where it is.
        if len(seen) > 1 and held == {True}:
            best = max(best, math.sqrt(max(loads) * self.high), 2 * max(loads))
        elif len(seen) > 1 and held == {False}:
            best = min(best, math.sqrt(min(loads) * self.low), min(loads) / 2)
        return self._fit(best)

    def _known(self, seen: Sequence[Seen], border: Border) -> bool:
        """Whether the interval is as narrow as was asked, and the border was looked at again."""
        ends = ((border.above, self.high), (border.below, self.low))
        if any(odds > 0.975 and any(one.load == end for one in seen) for odds, end in ends):
            return True
        near = sum(abs(math.log(one.load / border.best)) <= AGAIN for one in seen)
        same = self.whole and int(border.low) == int(border.high)
        return near >= 3 and (border.doubt <= 0.8 * self.tolerance or same)

    def border(self, seen: Sequence[Seen]) -> Border:
        """Where the border is, from every measurement."""
        low, high = math.log(self.low), math.log(self.high)
        ends = low - BEYOND, high + BEYOND
        curves = [*_curves(seen, *ends)]

        def under(at: float) -> float:
            return 1 - math.prod(1 - curve.under(at) for curve in curves)

        left, middle, right = (_where(under, *ends, share) for share in (0.025, 0.5, 0.975))
        best = min(max(middle, low), high)
        least, most = math.exp(min(left, best)), math.exp(max(right, best))
        return Border(least, math.exp(best), most, 1 - under(high), under(low))

    def _fit(self, load: float) -> float:
        load = min(max(load, self.low), self.high)
        return float(round(load)) if self.whole else load


def excess(limit: Gate, found: float | None) -> float | None:
    """How many times over its limit a metric is, as a logarithm; None where that has no meaning."""
    if found is None or found <= 0 or limit.number <= 0 or limit.op == "==":
        return None
    over = math.log(found / limit.number)
    return over if limit.op in ("<=", "<") else -over


class _Curve:
    """Measurements of one limit, and the odds of its border: a mixture, a part for each shape."""

    def __init__(self, points: Sequence[tuple[float, float]], low: float, high: float) -> None:
        self._range = self._ends = low, high
        self._points = [(x, y, _weight(y)) for x, y in points]
        self._parts = self._fitted()
        if len(points) >= 5 and self._doubted():
            self._parts = self._fitted()

    def under(self, at: float) -> float:
        """The odds that the border is below."""
        if not self._ends[0] < at < self._ends[1]:
            return float(at >= self._ends[1])
        return sum(
            odds * (normal.cdf(at) - off) / wide for odds, normal, off, wide, _ in self._parts
        )

    def _fitted(self) -> list[_Part]:
        """The parts that matter; the border is behind what was held for sure."""
        sure = ODD * NOISE
        good = [(x, y) for x, y, w in self._points if math.isclose(w, _weight(y))]
        low = max((x for x, y in good if y < -sure), default=self._range[0])
        high = min((x for x, y in good if y > sure), default=self._range[1])
        self._ends = low, high = (low, high) if low < high else self._range
        freedom = BELIEF + len(self._points) - 1
        found: list[_Part] = []
        for power, floor in itertools.product(POWERS, FLOORS):
            shape = _Shape(power, floor)
            border, rest, bend = shape.fit(self._points, low, high)
            rest += BELIEF * NOISE**2
            # Student's t, as a normal distribution of the same variance.
            normal = NormalDist(border, math.sqrt(rest / (bend * (freedom - 2))))
            off = normal.cdf(low)
            wide = max(normal.cdf(high) - off, 1e-12)
            odds = -freedom / 2 * math.log(rest) - math.log(bend) / 2 + math.log(wide)
            found.append((odds, normal, off, wide, shape))
        most = max(odds for odds, *_ in found)
        kept = [(math.exp(part[0] - most), *part[1:]) for part in found if part[0] > most - 9]
        whole = sum(part[0] for part in kept)
        return [(part[0] / whole, *part[1:]) for part in kept]

    def _doubted(self) -> bool:
        """Let count less what is far off the likeliest curve; whether something is."""
        _, normal, _, _, shape = max(self._parts, key=lambda part: part[0])
        off = [abs(y - shape.over(x - normal.mean)[0]) * math.sqrt(w) for x, y, w in self._points]
        usual = ODD * max(NOISE, 1.4826 * median(off))
        self._points = [
            (x, y, w * (usual / far) ** 2 if far > usual else w)
            for (x, y, w), far in zip(self._points, off, strict=True)
        ]
        return max(off) > usual


def _weight(over: float) -> float:
    return 1 / (1 + (over / NEAR) ** 2)


#: Odds, border, what of that is left of the range and in it, shape.
_Part = tuple[float, NormalDist, float, float, "_Shape"]


@dataclass(frozen=True)
class _Shape:
    """How a metric grows with the load."""

    power: float
    floor: float

    def over(self, distance: float) -> tuple[float, float]:
        """How far over its limit, so far from the border, and how steep it is there."""
        grown = (1 - self.floor) * math.exp(min(max(self.power * distance, -50.0), 50.0))
        whole = self.floor + grown
        return math.log(whole), self.power * grown / whole

    def fit(
        self, points: Sequence[tuple[float, float, float]], low: float, high: float
    ) -> tuple[float, float, float]:
        """The likeliest border (Gauss-Newton), what it leaves unexplained, how fast that grows."""
        x, y, _ = max(points, key=lambda point: point[2])
        share = max((math.exp(min(y, 50.0)) - self.floor) / (1 - self.floor), 0.1)
        at, step = min(max(x - math.log(share) / self.power, low), high), 0.0
        best = (at, math.inf, 1.0)
        for _ in range(STEPS):
            rest = pull = bend = 0.0
            for x, y, weight in points:
                value, slope = self.over(x - at)
                rest += weight * (y - value) ** 2
                pull += weight * (y - value) * slope
                bend += weight * slope**2
            bend = max(bend, 1e-4)
            if rest < best[1]:
                best, step = (at, rest, bend), -pull / bend
            else:
                step /= 2
            if abs(step) < 1e-4:
                break
            at = min(max(best[0] + min(max(step, -0.5), 0.5), low), high)
        return best


class _Steps:
    """Measurements that only tell whether the load was carried."""

    def __init__(self, points: Sequence[tuple[float, bool]], low: float, high: float) -> None:
        self._low, self._step = low, (high - low) / (POINTS - 1)
        told = [
            math.prod(
                # One answer in a hundred is chance.
                0.01 + 0.98 * _NORMAL.cdf((at - x if held else x - at) / NOISE)
                for x, held in points
            )
            for at in (low + self._step * i for i in range(POINTS))
        ]
        self._below = [0.0, *accumulate(told)]

    def under(self, at: float) -> float:
        """The odds that the border is below."""
        place = min(max((at - self._low) / self._step + 0.5, 0.0), POINTS - 1e-9)
        known = self._below[int(place)], self._below[int(place) + 1]
        return (known[0] + (place % 1) * (known[1] - known[0])) / self._below[-1]


def _curves(seen: Sequence[Seen], low: float, high: float) -> Iterator[_Curve | _Steps]:
    for limit in dict.fromkeys(name for one in seen for name in one.excess):
        told = [(math.log(s.load), s.excess[limit]) for s in seen if limit in s.excess]
        yield _Curve(told, low, high)
    if any(one.broke for one in seen) or not any(one.excess for one in seen):
        yield _Steps([(math.log(one.load), not one.broke) for one in seen], low, high)


def _where(under: Callable[[float], float], low: float, high: float, share: float) -> float:
    """Where the odds of being below reach a share."""
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if under(middle) < share else (low, middle)
    return (low + high) / 2
