"""What follows from the telemetry of a run's nodes.

Enters: tracks, stretches of time. Leaves: figures an engine and a side, lines that say where the
time went. Touches: reads the nodes' files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steps.core.case.numbers import is_finite
from steps.core.plan.plan import NodePlan, Plan
from steps.core.record.rundir import RunDir
from steps.core.record.telemetry.tracks import MACHINE, NAME, SCHEMA, Span, Track, read

__all__ = ["MACHINE", "NAME", "SCHEMA", "Span", "Track", "read"]

#: A side that is this much busier on one rank than on the mean has an outlier.
OUTLYING = 1.2


@dataclass(frozen=True)
class Engine:
    """One engine of one server, and where it stands."""

    node: NodePlan
    process: str
    label: str
    track: Track

    @property
    def name(self) -> str:
        """Node, process, and the engine where the server has several."""
        more = f" engine {self.label}" if len(self.track.engines()) > 1 else ""
        return f"{self.node.name} {self.process}{more}"

    def grown(self, short: str, span: Span, label: str = "") -> float:
        """How much one of its counters grew."""
        return self.track.grown(f"{short}|{self.label}|{label}", span)

    def values(self, short: str, span: Span) -> list[float]:
        """One of its gauges at each time it answered."""
        return self.track.values(f"{short}|{self.label}|", span)

    def labels(self, short: str) -> list[str]:
        """Values of the label that a series has beside the engine."""
        head = f"{short}|{self.label}|"
        return [key[len(head) :] for key in self.track.series if key.startswith(head)]


@dataclass(frozen=True)
class Figures:
    """What one engine, or all of a side, did in a stretch of time; None where nobody tells.

    Attributes:
        seen: looks that were answered.
        idle: share of looks at which nothing ran.
        acceptance: share of drafts that was accepted, by position.
        queue, prefill, decode, kv_transfer: seconds a request, on the mean.
        spent: the same in all, in seconds.
        queue_p95: seconds that 95 % of the requests waited at most, as far as buckets tell.
    """

    seen: int
    running: float | None
    running_max: float | None
    waiting: float | None
    waiting_p95: float | None
    kv_usage: float | None
    kv_usage_max: float | None
    idle: float | None
    prompt_rate: float
    generation_rate: float
    requests: float
    preemptions: float
    prefix_hits: float | None
    external_hits: float | None
    acceptance: tuple[float, ...]
    queue: float | None
    queue_p95: float | None
    prefill: float | None
    decode: float | None
    kv_transfer: float | None
    kv_failed: float
    spent: Mapping[str, float]

    @property
    def tokens_rate(self) -> float:
        """Prompt and generated tokens a second."""
        return self.prompt_rate + self.generation_rate


def engines_of(plan: Plan, tracks: Mapping[int, Mapping[str, Track]]) -> list[Engine]:
    """Every engine of the fleet that told anything; ``tracks`` by node and source."""
    return [
        Engine(node, server.name, label, track)
        for node, server in plan.servers()
        if (track := tracks.get(node.index, {}).get(server.name))
        for label in track.engines()
    ]


def of_run(run_dir: RunDir, plan: Plan) -> dict[int, dict[str, Track]]:
    """What every node left."""
    return {node.index: read(run_dir.node(node.index).path / NAME) for node in plan.nodes}


def figures(engines: Sequence[Engine], span: Span) -> Figures:
    """What these engines did together; gauges are those of one engine, counters of all."""
    seconds = max(span[1] - span[0], 1e-9)

    def total(short: str, label: str = "") -> float:
        return sum(engine.grown(short, span, label) for engine in engines)

    def gauge(short: str) -> list[float]:
        return sorted(value for engine in engines for value in engine.values(short, span))

    def ratio(part: str, whole: str) -> float | None:
        below = total(whole)
        return total(part) / below if below else None

    running, waiting, usage = gauge("running"), gauge("waiting"), gauge("kv_usage")
    positions = sorted({int(p) for e in engines for p in e.labels("accepted") if p.isdecimal()})
    drafts = total("drafts")
    times = ("queue", "prefill", "decode", "kv_transfer")
    means = {name: ratio(f"{name}_sum", f"{name}_count") for name in times}
    reasons = sorted({reason for engine in engines for reason in engine.labels("requests")})
    return Figures(
        seen=len(running),
        running=_mean(running),
        running_max=running[-1] if running else None,
        waiting=_mean(waiting),
        waiting_p95=_share_of(waiting, 0.95),
        kv_usage=_mean(usage),
        kv_usage_max=usage[-1] if usage else None,
        idle=bisect_right(running, 0.0) / len(running) if running else None,
        prompt_rate=total("prompt_tokens") / seconds,
        generation_rate=total("generation_tokens") / seconds,
        requests=sum(total("requests", reason) for reason in reasons),
        preemptions=total("preemptions"),
        prefix_hits=ratio("prefix_hits", "prefix_queries"),
        external_hits=ratio("external_hits", "external_queries"),
        acceptance=tuple(total("accepted", str(p)) / drafts for p in positions if drafts),
        queue_p95=_bucketed(engines, "queue_bucket", span, 0.95),
        kv_failed=total("kv_failed"),
        spent={name: total(f"{name}_sum") for name in times},
        **means,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share_of(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def _bucketed(engines: Sequence[Engine], short: str, span: Span, share: float) -> float | None:
    """The upper bound of the bucket up to which ``share`` of a histogram's values lie."""
    bounds: dict[float, float] = {}
    for engine in engines:
        for label in engine.labels(short):
            try:
                bound = float(label)
            except ValueError:
                continue
            bounds[bound] = bounds.get(bound, 0.0) + engine.grown(short, span, label)
    ordered = sorted(bounds)
    if not ordered or not bounds[ordered[-1]]:
        return None
    finite = [bound for bound in ordered if is_finite(bound)]
    wanted = share * bounds[ordered[-1]]
    return next((bound for bound in finite if bounds[bound] >= wanted), None)


@dataclass(frozen=True)
class Balance:
    """The busiest engine of a side, by tokens, against the mean of all; 1 is even."""

    ratio: float
    engine: str


def balance(engines: Sequence[Engine], span: Span) -> Balance | None:
    """How evenly the engines of a side worked; None for one alone, or without work."""
    tokens = {
        e.name: e.grown("prompt_tokens", span) + e.grown("generation_tokens", span) for e in engines
    }
    total = sum(tokens.values())
    if len(tokens) < 2 or not total:
        return None
    busiest = max(tokens, key=lambda name: tokens[name])
    return Balance(tokens[busiest] * len(tokens) / total, busiest)


def by_side(engines: Sequence[Engine]) -> dict[str, list[Engine]]:
    """Engines by their side."""
    sides: dict[str, list[Engine]] = {}
    for engine in engines:
        sides.setdefault(engine.node.side, []).append(engine)
    return sides


def where_time_went(engines: Sequence[Engine], span: Span) -> list[str]:
    """Three lines: how busy each side was, what requests waited for, what was short or uneven."""
    sides = by_side(engines)
    whole = {side: figures(found, span) for side, found in sides.items()}
    if not any(found.seen or found.requests for found in whole.values()):
        return []
    lines = [_busy(sides, whole, span), _waited(whole), _short(sides, whole, span)]
    return [line for line in lines if line]


def named(side: str) -> str:
    """The engines of a side, in words."""
    return "engines" if side == "plain" else f"{side}s"


def _busy(sides: Mapping[str, Sequence[Engine]], whole: Mapping[str, Figures], span: Span) -> str:
    parts = []
    for side, found in whole.items():
        text = f"{named(side)}: {found.tokens_rate:,.0f} tokens/s"
        if found.running is not None:
            text += f", nothing to run {100 * (found.idle or 0):.0f} % of the time, "
            text += f"{found.running:.1f} requests each on the mean (at most {found.running_max:g})"
        depths = {engine.name: figures([engine], span).waiting_p95 or 0.0 for engine in sides[side]}
        deepest = max(depths, key=lambda name: depths[name])
        parts.append(
            text + (f", {deepest} queue p95 {depths[deepest]:g}" if depths[deepest] else "")
        )
    return "; ".join(parts)


def _waited(whole: Mapping[str, Figures]) -> str:
    spent = {
        f"{named(side)}: {name.replace('_', ' ')}": seconds
        for side, found in whole.items()
        for name, seconds in found.spent.items()
        if seconds > 0
    }
    total = sum(spent.values())
    if not total:
        return "no engine tells how long requests were queued, prefilled and decoded"
    most = sorted(spent, key=lambda name: -spent[name])
    told = ", ".join(f"{name} {100 * spent[name] / total:.0f} %" for name in most)
    queues = [
        f"{named(side)} queue mean {found.queue:.2f} s"
        + (f", p95 at most {found.queue_p95:g} s" if found.queue_p95 is not None else "")
        for side, found in whole.items()
        if found.queue
    ]
    queues += [
        f"a KV transfer took {found.kv_transfer:.3f} s"
        for found in whole.values()
        if found.kv_transfer is not None
    ]
    return "; ".join([f"of the time of requests in engines: {told}", *queues])


def _short(sides: Mapping[str, Sequence[Engine]], whole: Mapping[str, Figures], span: Span) -> str:
    parts = []
    for side, found in whole.items():
        usage = found.kv_usage_max
        text = (
            ""
            if usage is None
            else f"KV cache {100 * (found.kv_usage or 0):.0f} % full on the mean"
        )
        text += "" if usage is None else f", at most {100 * usage:.0f} %, "
        text += f"{found.preemptions:g} preemptions"
        for name, rate in (("prefix", found.prefix_hits), ("external", found.external_hits)):
            text += "" if rate is None else f", {100 * rate:.0f} % {name} cache hits"
        if found.kv_failed:
            text += f", {found.kv_failed:g} KV transfers failed"
        uneven = balance(sides[side], span)
        if uneven and uneven.ratio >= OUTLYING:
            text += f", {uneven.engine} did {uneven.ratio:.2f} times the mean"
        parts.append(f"{named(side)}: {text}")
    return "; ".join(parts)
