"""A point of a sweep or a search: the load it asks for, and whether its numbers count.

Enters: a benchmark and what the point changes; what was measured. Leaves: the benchmark with
that load, a :class:`Point`, the result of all. Touches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from steps.bench_drivers import Measurement, believed
from steps.core.case import gates
from steps.core.case.case import Find
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record.records import Point
from steps.sizing.search import Border, Search, Seen, excess

#: Each place in flight is taken so often: with fewer requests the load never stands. A point asks
#: for so many, and does not count with fewer than the least.
TURNS, LEAST_TURNS = 4, 2
#: Loads this near (logarithm) say what the throughput is at the border.
NEAR = 0.4


def at(entry: BenchmarkPlan, changes: Mapping[str, Any]) -> BenchmarkPlan:
    """The benchmark with a point's load: enough requests, warm-ups by the load.

    With a request rate of the point's own nothing else holds requests back.
    """
    asked = replace(entry.benchmark, sweep=(), find=None)
    made = replace(asked, **changes)
    prompts = made.num_prompts
    if "request_rate" in changes and prompts is not None:
        prompts = max(prompts, math.ceil(made.request_rate * entry.lasts))
    if "request_rate" in changes and "batch_size" not in changes:
        made = replace(made, batch_size=max(prompts or 0, made.batch_size))
    elif prompts is not None:
        prompts = max(prompts, TURNS * made.batch_size)
    warm = max(asked.num_warmups or 1, min(math.ceil(made.batch_size / 8), 32))
    return replace(entry, benchmark=replace(made, num_prompts=prompts, num_warmups=warm))


def judged(
    entry: BenchmarkPlan, changes: Mapping[str, Any], found: Measurement, directory: str
) -> Point:
    """The point; ``entry`` has its load."""
    found = believed(found)
    limits = entry.benchmark.find
    over = [] if limits is None else _missed(limits, found.metrics)
    return Point(
        dict(changes),
        found.metrics,
        found.requests,
        wrong=wrong(entry, changes, found),
        held=None if limits is None else not over,
        missed=", ".join(f"{one.gate} ({_found(one.found)})" for one in over),
        directory=directory,
    )


def _found(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def wrong(entry: BenchmarkPlan, changes: Mapping[str, Any], found: Measurement) -> str:
    """Why a measurement says nothing of its load; empty when it does."""
    if found.error or found.skipped:
        return found.error or found.skipped
    failed = [f"{check.name}: {check.detail}" for check in found.checks if check.status == "fail"]
    if failed or not found.metrics:
        return "; ".join(failed) or "the driver measured nothing"
    asked, width = found.requests.get("asked", 0), entry.benchmark.batch_size
    if "request_rate" not in changes and asked < LEAST_TURNS * width:
        return f"{asked} requests are too few for {width} at a time; the data set has no more"
    return ""


def sent(begun: Sequence[float], rate: float) -> str:
    """Why a client did not ask for the rate that it was told; empty when it did.

    Args:
        begun: when each request was sent, in seconds.
    """
    count, lasted = len(begun), max(begun, default=0.0) - min(begun, default=0.0)
    if count < 2 or lasted <= 0 or (count - 1) / lasted >= rate * (1 - max(0.2, 3.5 / count**0.5)):
        return ""
    return (
        f"the client sent {(count - 1) / lasted:.3g} requests/s of {rate:g}: it is the limit here"
    )


def _missed(find: Find, metrics: Mapping[str, float]) -> list[gates.GateResult]:
    held = (gates.hold(limit, metrics, None) for limit in find.limits)
    return [one for one in held if one.passed is False]


def seen(find: Find, point: Point) -> Seen:
    """What a point tells the search: failed requests are a border too."""
    load = float(point.load[find.knob])
    if point.wrong:
        return Seen(load, broke=True)
    sizes = {str(limit): excess(limit, point.metrics.get(limit.metric)) for limit in find.limits}
    missed = {one.gate for one in _missed(find, point.metrics)}
    known = {name: over for name, over in sizes.items() if over is not None}
    return Seen(load, known, broke=bool(missed - set(known)))


def search_of(find: Find, usual: float) -> Search:
    """The search; it begins where the case's own load is, if that is in the range."""
    start = usual if find.low <= usual <= find.high else 0.0
    whole = find.knob == "batch_size"
    return Search(find.low, find.high, find.tolerance, whole=whole, start=start)


def best(find: Find, border: Border, points: Sequence[Point]) -> Point | None:
    """The point with the largest load that held, not above the border by more than is noise."""
    able = [p for p in points if p.held and not p.wrong and p.load[find.knob] <= border.high]
    return max(able, key=lambda point: float(point.load[find.knob]), default=None)


def capacity(find: Find, border: Border, points: Sequence[Point]) -> dict[str, float]:
    """What is maximised at the border, and at both ends of its interval."""
    loads = (border.best, border.low, min(border.high, find.high))
    if find.maximise == "output_throughput":
        found = [throughput(find, load, points) for load in loads]
    elif find.knob == "batch_size":
        found = [float(math.floor(load + 1e-9)) for load in loads]
    else:
        found = [*loads]
    names = ("capacity", "capacity_low", "capacity_high")
    return {name: float(f"{value:.5g}") for name, value in zip(names, found, strict=True)}


def throughput(find: Find, load: float, points: Sequence[Point]) -> float:
    """The throughput at a load: a line through the points near it, in logarithms."""
    told = [
        (math.log(float(p.load[find.knob]) / load), math.log(value))
        for p in points
        if not p.wrong and (value := p.metrics.get("output_throughput", 0.0)) > 0
    ]
    if not told:
        return 0.0
    near = [(x, y) for x, y in told if abs(x) <= NEAR] or [min(told, key=lambda t: abs(t[0]))]
    x0, y0 = (sum(values) / len(near) for values in zip(*near, strict=True))
    wide = sum((x - x0) ** 2 for x, _ in near)
    slope = sum((x - x0) * (y - y0) for x, y in near) / wide if wide > 1e-6 else 0.0
    return math.exp(y0 - min(max(slope, 0.0), 1.0) * x0)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both numbers, of which more is better."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    found: list[int] = []
    for index in order:
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found
