"""How hard a benchmark pressed the engines: the metrics of its gates that only they can tell.

Enters: a plan, a place. Leaves: ``telemetry.jsonl.gz`` there, and metrics. Touches: asks every API
server for its /metrics once a second meanwhile; only where a gate wants to know.
"""

from __future__ import annotations

from pathlib import Path

from steps.core.case.gates import PRESSURE
from steps.core.node import sampler
from steps.core.plan.plan import BenchmarkPlan, Plan
from steps.core.record import telemetry
from steps.core.vllm import metrics

FIRST_LOOK = 5.0


def wanted(entry: BenchmarkPlan) -> bool:
    """Whether one of the gates needs it."""
    return any(gate.metric in PRESSURE for gate in entry.gates)


class Watch:
    """Looks at all engines from now on, until it is read."""

    def __init__(self, plan: Plan, place: Path) -> None:
        self._path = place / telemetry.NAME
        self._asked = {
            f"{node.name} {server.name}": (node, server)
            for node, server in plan.servers()
            if server.api
        }
        sources = [
            sampler.endpoint(name, server.access.at(metrics.PATH))
            for name, (_, server) in self._asked.items()
        ]
        self._sampler = sampler.Sampler(sources, self._path, {"run": plan.run})
        self._sampler.start(FIRST_LOOK)

    def read(self) -> dict[str, float]:
        """The metrics; none unless every engine told."""
        self._sampler.close()
        tracks = telemetry.read(self._path)
        if set(tracks) != set(self._asked) or not all(track.seen for track in tracks.values()):
            return {}
        engines = [
            telemetry.Engine(node, server.name, label, track)
            for name, track in tracks.items()
            for node, server in [self._asked[name]]
            for label in track.engines()
        ]
        return judged(engines)


def judged(engines: list[telemetry.Engine]) -> dict[str, float]:
    """By the names of gates, from the last of the first looks on; what nobody tells is absent."""
    span = max((engine.track.seen[0] for engine in engines), default=0.0), float("inf")
    whole = telemetry.figures(engines, (0.0, span[1]))
    found: dict[str, float] = {}
    if whole.kv_usage_max is not None:
        found["kv_cache_usage_max"] = whole.kv_usage_max
    if engines and all(engine.labels("preemptions") for engine in engines):
        found["preemptions"] = telemetry.figures(engines, span).preemptions
    ratios = [
        balance.ratio if (balance := telemetry.balance(side, span)) else 1.0
        for side in telemetry.by_side(engines).values()
        if any(e.grown(name, span) for e in side for name in ("prompt_tokens", "generation_tokens"))
    ]
    return {**found, "rank_imbalance": round(max(ratios), 6)} if ratios else found
