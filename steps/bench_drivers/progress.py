"""How a load goes on while it goes on: what is said of it, and how long it still takes.

Enters: counts of a load generator, what every node's engines do. Leaves: events ``load`` with a
row of the load generator and one of each side. Touches: the run's events.

An event comes every 2 s at first and every 10 s later, each half minute one that CI shows too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from steps.core.node.noderun import NodeRun
from steps.core.record import telemetry

FIRST, MOST, SAY = 2.0, 10.0, 30.0
#: The pace is compared between so many stretches of a load; at least so many steps make a pace.
STRETCHES, LEAST = 4, 8
#: Points that are kept of a load's course.
POINTS = 256
Load = Mapping[str, float]


@dataclass(frozen=True)
class Counts:
    """What a load generator tells.

    Attributes:
        asked: 0 where nobody knows.
        done: requests that ended, failed ones among them.
        flying: requests that were sent and have not ended.
        tokens: that came; None where it does not tell.
        ttft, tpot: seconds on the mean so far, None before the first.
        work, whole: how much is done, in requests or tokens; ``whole`` 0 where nobody knows.
        settled: a first round of requests is over, so its pace will be that of the rest.
        quiet: the request that is silent for longest, and for how long, where that is odd.
    """

    asked: int
    done: int
    flying: int
    failed: int = 0
    tokens: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    work: float = 0.0
    whole: float = 0.0
    settled: bool = False
    quiet: str = ""


class Forecast:
    """How long a load still takes, from its own course; nothing until that can be known."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def note(self, now: float, work: float) -> None:
        """So much was done by now; until something is, the clock does not run."""
        if not work:
            return
        if len(self._points) >= POINTS:
            del self._points[1::2]
        self._points.append((now, work))

    def left(self, whole: float) -> tuple[float, float | None] | None:
        """Seconds at least and at most; the latter None where it stood still for a stretch.

        The slowest and the fastest quarter of its course are the bounds.
        """
        points = self._points
        if len(points) <= STRETCHES:
            return None
        (began, first), (now, work) = points[0], points[-1]
        if work - first < LEAST or whole <= work:
            return None
        edges = [began + (now - began) * at / STRETCHES for at in range(STRETCHES + 1)]
        done = [self._at(edge) for edge in edges]
        paces = [(high - low) / (now - began) * STRETCHES for low, high in itertools.pairwise(done)]
        slow, fast = min(paces), max(paces)
        return (whole - work) / fast, (whole - work) / slow if slow > 0 else None

    def _at(self, moment: float) -> float:
        """What was done at a moment, by a straight line between the points beside it."""
        for (low, before), (high, after) in itertools.pairwise(self._points):
            if moment <= high:
                return before + (after - before) * (moment - low) / max(high - low, 1e-9)
        return self._points[-1][1]


def remaining(found: tuple[float, float | None] | None) -> str:
    """The forecast in words; empty while nobody can know."""
    if found is None:
        return ""
    least, most = found
    if most is None or most > 4 * least:
        return f"at least {_time(least)} left"
    if most - least <= max(0.15 * most, 2.0):
        return f"about {_time((least + most) / 2)} left"
    return f"{_time(least)} to {_time(most)} left"


def row(name: str, counts: Counts, rate: float | None, left: str) -> str:
    """What the load generator tells, in one line."""
    words = [
        f"{counts.done:,} of {counts.asked:,} done" if counts.asked else f"{counts.done:,} done"
    ]
    words += [f"{counts.failed:,} failed"] if counts.failed else []
    words.append(f"{counts.flying:,} in flight")
    words += [f"{rate:,.0f} tokens/s"] if rate is not None else []
    for label, seconds in (("TTFT", counts.ttft), ("TPOT", counts.tpot)):
        words += [f"{label} {_short(seconds)}"] if seconds is not None else []
    return f"{name}: {', '.join([*words, *filter(None, (counts.quiet, left))])}"


def side_row(side: str, now: Load, first: Load, before: Load, seconds: float) -> str:
    """What the engines of a side do: since the last row, and times since the load's begin."""

    def grown(key: str, base: Load) -> float:
        return now.get(key, 0.0) - base.get(key, 0.0)

    words = [f"{now.get('running', 0):,.0f} running, {now.get('waiting', 0):,.0f} waiting"]
    prefills, decodes = side != "decoder", side != "prefiller"
    for key, label, shown in (
        ("prompt_tokens", "prompt tokens/s", prefills),
        ("generation_tokens", "tokens/s", decodes),
    ):
        if shown and key in now and seconds > 0:
            words.append(f"{max(grown(key, before), 0) / seconds:,.0f} {label}")
    for key, label, shown in (("ttft", "TTFT", prefills), ("itl", "TPOT", decodes)):
        count = grown(f"{key}_count", first)
        if shown and count > 0:
            words.append(f"{label} {_short(grown(f'{key}_sum', first) / count)}")
    return f"{telemetry.named(side)}: {', '.join(words)}"


def loads(run: NodeRun) -> dict[int, Load]:
    """What every node's engines do, as far as it was told; the leader's own come first."""
    members = run.leader.members if run.leader else {}
    found = {run.me.index: run.load(), **{index: m.load for index, m in members.items()}}
    return {index: load for index, load in found.items() if load}


class Watch:
    """Follows one load and tells of it.

    Attributes:
        still: for how long no engine has moved; None where not all of them tell.
    """

    def __init__(self, run: NodeRun, name: str) -> None:
        self._run, self._name = run, name
        self._began = self._last = self._moved = time.monotonic()
        self._next, self._say = self._began + FIRST, self._began + SAY
        self._forecast = Forecast()
        self._first: dict[str, Load] = self._sides(loads(run))
        self._before, self._tokens = self._first, 0.0
        self._mark: dict[int, Load] = {}
        self.still: float | None = None

    def due(self) -> bool:
        """Whether to tell, now."""
        return time.monotonic() >= self._next

    def tell(self, counts: Counts) -> None:
        """One event, of what is now."""
        now = time.monotonic()
        found = loads(self._run)
        self._follow(found, now)
        self._forecast.note(now, counts.work)
        left = self._forecast.left(counts.whole) if counts.settled else None
        say = now >= self._say
        rows = list(self._rows(counts, found, now - self._last, remaining(left)))
        self._run.events.emit("load", rows=rows, name=self._name, say=say)
        self._last = now
        self._next = now + max(FIRST, min(MOST, 0.01 * (now - self._began)))
        self._say = now + SAY if say else self._say

    def _rows(
        self, counts: Counts, found: dict[int, Load], seconds: float, left: str
    ) -> Iterator[str]:
        sides = self._sides(found)
        rate = None
        if counts.tokens is not None and not sides:
            rate = max(counts.tokens - self._tokens, 0.0) / max(seconds, 1e-9)
        self._tokens = counts.tokens or 0.0
        yield row(self._name, counts, rate, left)
        for side, load in sides.items():
            first = self._first.setdefault(side, load)
            yield side_row(side, load, first, self._before.get(side, load), seconds)
        self._before = sides

    def _follow(self, found: dict[int, Load], now: float) -> None:
        """Note whether any engine has moved."""
        told = {node.index for node, server in self._run.plan.servers() if server.api}
        if found != self._mark:
            self._mark, self._moved = found, now
        self.still = now - self._moved if told <= set(found) else None

    def _sides(self, found: dict[int, Load]) -> dict[str, Load]:
        sides: dict[str, dict[str, float]] = {}
        for index, load in found.items():
            side = sides.setdefault(self._run.plan.nodes[index].side, {})
            for key, value in load.items():
                side[key] = side.get(key, 0.0) + value
        return dict(sides)


def _time(seconds: float) -> str:
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
