"""What the engines of each side did over the run, for the charts under the timeline.

Enters: a run that is over. Leaves: charts. Touches nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from ci.tools.plots import Chart
from steps.core.record import telemetry
from steps.core.record.outcome import Finished
from steps.core.record.telemetry import Engine, Span

#: Stretches that a chart has at most; none is shorter than two looks.
MOST, SHORTEST = 90, 2.0
Value = Callable[[Engine, Span], float]


def charts(over: Finished, seconds: float) -> Iterator[Chart]:
    """Small multiples by side over ``seconds`` of the run."""
    count = max(1, min(MOST, int(seconds / SHORTEST)))
    edges = tuple(seconds * at / count for at in range(count + 1))
    for side, engines in telemetry.by_side(over.engines).items():
        uneven = telemetry.balance(engines, over.measured)
        named = uneven.engine if uneven and uneven.ratio >= telemetry.OUTLYING else ""
        whose = telemetry.named(side)
        for what, value in _SHOWN:
            yield _chart(f"{whose}: {what}", engines, value, edges, over.verdict.started, named)


def _gauge(short: str, scale: float = 1.0) -> Value:
    def value(engine: Engine, span: Span) -> float:
        found = engine.values(short, span)
        return scale * sum(found) / len(found) if found else math.nan

    return value


def _tokens(engine: Engine, span: Span) -> float:
    if not engine.values("running", span):
        return math.nan
    grown = sum(engine.grown(short, span) for short in ("prompt_tokens", "generation_tokens"))
    return grown / (span[1] - span[0])


_SHOWN: tuple[tuple[str, Value], ...] = (
    ("requests running", _gauge("running")),
    ("requests waiting", _gauge("waiting")),
    ("KV cache, % full", _gauge("kv_usage", 100.0)),
    ("tokens/s", _tokens),
)


def _chart(
    name: str,
    engines: Sequence[Engine],
    value: Value,
    edges: tuple[float, ...],
    started: float,
    named: str,
) -> Chart:
    spans = [(started + low, started + high) for low, high in itertools.pairwise(edges)]
    by_engine = {engine.name: [value(engine, span) for span in spans] for engine in engines}
    lows, means, highs, titles = [], [], [], []
    for at, (low, high) in enumerate(itertools.pairwise(edges)):
        known = {n: values[at] for n, values in by_engine.items() if not math.isnan(values[at])}
        lows.append(min(known.values(), default=math.nan))
        highs.append(max(known.values(), default=math.nan))
        means.append(sum(known.values()) / len(known) if known else math.nan)
        busiest = max(known, key=lambda n: known[n]) if known else ""
        said = f"mean {means[-1]:,.1f}, {lows[-1]:,.1f} to {highs[-1]:,.1f} ({busiest})"
        titles.append(f"{name}, {low:.0f} to {high:.0f} s: {said if known else 'no answer'}")
    outlier = tuple(by_engine.get(named, ()))
    head = f"{name}; apart: {named}" if outlier else name
    return Chart(head, edges, tuple(lows), tuple(means), tuple(highs), tuple(titles), outlier)
