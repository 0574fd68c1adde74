"""A benchmark at several loads on one warm fleet: a sweep, or a search for the border.

Enters: a run on the leader whose fleet is ready. Leaves: a :class:`BenchResult` with its points.
Touches: what the driver touches; a directory for each point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from steps.bench_drivers import Measurement, goodput
from steps.bench_drivers.series import Series
from steps.core.case.case import Find
from steps.core.node.noderun import NodeRun
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record.records import Point
from steps.sizing import points
from steps.sizing.search import MOST, Border, Search, Seen

UNJUDGED = "these are no figures to hold the product to"


@dataclass(frozen=True)
class Sized:
    """What a benchmark at several loads came to.

    Attributes:
        measured: the numbers that its gates are held against, with the evidence that they count.
        missed: why no load holds the limits; empty: one does.
    """

    points: tuple[Point, ...]
    measured: Measurement
    missed: str = ""
    note: str = ""


def measure(run: NodeRun, entry: BenchmarkPlan, series: Series, directory: Path) -> Sized:
    """Measure every load that is asked for.

    Raises:
        RunEnded, StepFailed: as measuring does.
    """
    walk = _Walk(run, entry, series, directory)
    asked = entry.benchmark
    if asked.find is None:
        for changes in asked.sweep:
            if not walk.go(changes, asked.repeat):
                break
        found = swept(entry, walk.points, walk.broken)
    else:
        find = asked.find
        search = points.search_of(find, float(getattr(asked, find.knob)))
        seen: list[Seen] = []
        while (load := search.next(seen)) is not None:
            end = load in (find.low, find.high)
            value = int(load) if search.whole else load if end else float(f"{load:.4g}")
            if not walk.go({find.knob: value}):
                break
            seen.append(points.seen(find, walk.points[-1]))
        found = sought(entry, find, search, walk.points, walk.broken)
    notes = (found.note, series.way, f"{entry.skip_gates}: {UNJUDGED}" if entry.skip_gates else "")
    return replace(found, note="; ".join(filter(None, notes)))


class _Walk:
    """Points one after another; ``broken`` is the measurement that ends them."""

    def __init__(self, run: NodeRun, entry: BenchmarkPlan, series: Series, directory: Path) -> None:
        self._run, self._entry, self._series, self._directory = run, entry, series, directory
        self.points: list[Point] = []
        self.broken: Measurement | None = None

    def go(self, changes: Mapping[str, Any], repeat: int = 1) -> bool:
        """Measure one point; whether the next may follow."""
        number = len(self.points) + 1
        entry = points.at(self._entry, changes)
        place = self._directory / f"point-{number:02d}"
        places = [place / f"run-{turn + 1}" for turn in range(repeat)] if repeat > 1 else [place]
        before = len(self._series.found)
        self._series.take(places, confirms=False, entry=entry)
        found = self._series.found[before:]
        if len(found) < repeat and not (found and found[-1].error):
            reason = f"point {number} could not be measured like the first: {self._series.way}"
            self.broken = Measurement(error=reason, fault="infra")
            return False
        one = replace(found[-1], metrics=_middle(found))
        kept = replace(entry, benchmark=replace(entry.benchmark, find=self._entry.benchmark.find))
        rate = changes.get("request_rate")
        if rate and not self._entry.skip_gates:  # elsewhere no rate is the product's
            late = points.sent(_begun(places[-1]), rate)
            self.broken = Measurement(error=late, fault="infra") if late else None
        point = points.judged(kept, changes, one, place.name)
        self.points.append(point)
        name = self._entry.benchmark.name
        self._run.events.emit("benchmark", text=f"{name}: {told(point)}", name=name)
        if one.error or one.skipped:
            self.broken = one
        return self.broken is None


def _begun(place: Path) -> list[float]:
    """When each request was sent."""
    with contextlib.suppress(OSError, ValueError):
        return [float(row.get("begun") or 0.0) for row in goodput.rows(place / "requests.jsonl")]
    return []


def _middle(found: Sequence[Measurement]) -> dict[str, float]:
    """The median of each metric that every repetition has."""
    names = set.intersection(*(set(one.metrics) for one in found))
    return {
        name: median(one.metrics[name] for one in found)
        for name in found[0].metrics
        if name in names
    }


def told(point: Point) -> str:
    """A point in one line."""
    words = [str(point)]
    for key, label, unit in (
        ("output_throughput", "output", "token/s"),
        ("ttft_p99_ms", "TTFT p99", "ms"),
        ("tpot_p99_ms", "TPOT p99", "ms"),
    ):
        if key in point.metrics:
            words.append(f"{label} {point.metrics[key]:.1f} {unit}")
    if point.wrong:
        words.append(f"does not count: {point.wrong}")
    elif point.held is not None:
        words.append("holds" if point.held else f"misses {point.missed}")
    return ", ".join(words)


def swept(entry: BenchmarkPlan, found: Sequence[Point], broken: Measurement | None = None) -> Sized:
    """The result of a sweep: its numbers are those of the point with the most output."""
    good = [point for point in found if not point.wrong]
    top = max(good, key=lambda p: p.metrics.get("output_throughput", 0.0), default=None)
    bad = [f"{point}: {point.wrong}" for point in found if point.wrong]
    measured = broken or Measurement(
        top.metrics if top else {}, top.requests if top else {}, error="" if top else bad[0]
    )
    note = f"{len(good)} of {len(entry.benchmark.sweep)} points count"
    if top:
        note += f"; most output at {top}"
    missed = f"{len(bad)} points do not count, the first: {bad[0]}" if bad else ""
    return Sized(tuple(found), measured, missed, note)


def sought(
    entry: BenchmarkPlan,
    find: Find,
    search: Search,
    found: Sequence[Point],
    broken: Measurement | None = None,
) -> Sized:
    """The result of a search: its numbers are those of the largest load that held."""
    if broken:
        return Sized(tuple(found), broken)
    border = search.border([points.seen(find, point) for point in found])
    top = points.best(find, border, found)
    limits = ", ".join(map(str, find.limits))
    broke = [p for p in found if p.wrong and float(p.load[find.knob]) < border.low]
    if broke:
        reason = f"{broke[0]}, which is below the border: {broke[0].wrong}"
        return Sized(tuple(found), Measurement(top.metrics if top else {}), reason)
    if top is None:
        least = min(found, key=lambda point: float(point.load[find.knob]))
        reason = f"no load holds {limits}: {told(least)}"
        return Sized(tuple(found), Measurement(least.metrics, least.requests), reason)
    made = points.capacity(find, border, found)
    measured = Measurement({**top.metrics, **made}, top.requests)
    note = _sentence(find, border, made, len(found), limits) + _failing(found)
    return Sized(tuple(found), measured, note=note)


def _sentence(
    find: Find, border: Border, made: Mapping[str, float], count: int, limits: str
) -> str:
    unit = {"request_rate": "requests/s", "batch_size": "requests in flight"}[find.knob]
    if border.above > 0.5:
        return f"{limits} held at {find.high:g} {unit}, the end of the range, after {count} points"
    low, high = made["capacity_low"], made["capacity_high"]
    words = f"{limits} hold up to {find.maximise} {made['capacity']:g} ({low:g} to {high:g}, 95 %)"
    if find.maximise == "output_throughput":
        words += f" at {border.best:.4g} {unit}"
    if count >= MOST and border.doubt > find.tolerance:
        words += f"; not as sure as {100 * find.tolerance:g} %: too noisy for {MOST} points"
    return f"{words}; {count} points"


def _failing(found: Sequence[Point]) -> str:
    """Points whose requests failed, which bounds the load too."""
    bad = [f"{point}: {point.wrong}" for point in found if point.wrong]
    return f"; {len(bad)} had failures, the first: {bad[0]}" if bad else ""
