"""NPU-minutes of a run: what its devices spent their time on.

Enters: plan, verdict, records. Leaves: a :class:`Spent`. Touches nothing.

Devices are held from their node's start to its end, whatever the node does;
the leader's phases say what the fleet as a whole was doing meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steps.core.plan.plan import LEADER, Plan
from steps.core.record.records import Record
from steps.core.record.verdict import Verdict

OTHER = "other"


@dataclass(frozen=True)
class Spent:
    """NPU-minutes: by phase in order, in all, and from the first failure on."""

    phases: Mapping[str, float]
    total: float
    wasted: float


def spent(
    plan: Plan,
    verdict: Verdict,
    found: Mapping[int, Record | None],
    before: Mapping[str, float] | None = None,
) -> Spent:
    """What a run spent.

    Args:
        before: seconds that every node's devices were held before the node
            programs started, by phase (such as ``pull``), as the backend saw it.
    """
    phases: dict[str, float] = {}
    total = wasted = 0.0
    fleet_end = max((r.ended for r in found.values() if r), default=verdict.started)
    steps = [phase for phase in verdict.phases if phase["node"] == LEADER]
    fails = verdict.cause.at if verdict.cause and verdict.verdict != "pass" else 0.0
    for node in plan.nodes:
        record = found.get(node.index)
        start = record.started if record else verdict.started
        end = record.ended if record else fleet_end
        held = max(0.0, end - start)
        minutes = node.devices / 60
        for name, seconds in (before or {}).items():
            _add(phases, name, seconds * minutes)
            total += seconds * minutes
        named = 0.0
        for phase in steps:
            begun, ended = float(phase["started"]), float(phase["started"] + phase["seconds"])
            share = max(0.0, min(end, ended) - max(start, begun))
            named += share
            _add(phases, str(phase["name"]), share * minutes)
        _add(phases, OTHER, max(0.0, held - named) * minutes)
        total += held * minutes
        if fails:
            wasted += min(held, max(0.0, end - fails)) * minutes
    kept = {name: value for name, value in phases.items() if name != OTHER}
    return Spent({**kept, OTHER: phases.get(OTHER, 0.0)}, total, wasted)


def _add(phases: dict[str, float], name: str, minutes: float) -> None:
    phases[name] = phases.get(name, 0.0) + minutes
