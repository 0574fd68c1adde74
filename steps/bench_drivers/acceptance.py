"""Drafted tokens that were accepted, from the counters of every engine that decodes.

Enters: a plan. Leaves: counters, and the rates between two looks. Touches: reads /metrics.

A proxy has no counters, and a rank counts only its own requests: so all engines are asked, each
itself, and their counters are added up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from steps.core.case.gates import ACCEPTED, POSITIONS
from steps.core.node import http
from steps.core.plan.plan import Plan
from steps.core.vllm import commandline, metrics

#: The metrics' names, and that of the check which says why there are none.
DRAFTS, FIRST, CHECK = "drafts", f"{ACCEPTED}0", "acceptance of drafts"


@dataclass(frozen=True)
class Drafts:
    """Steps with drafts, and tokens that were accepted of each of the ``positions`` drafted."""

    positions: int
    steps: float
    accepted: Mapping[int, float] = field(default_factory=dict)

    def rate(self, position: int) -> float:
        """The share of drafts of a position that was accepted; 0 without any draft."""
        return self.accepted.get(position, 0.0) / self.steps if self.steps else 0.0

    @property
    def rates(self) -> dict[str, float]:
        """By the names of the metrics."""
        each = {f"{ACCEPTED}{at}": self.rate(at) for at in range(self.positions)}
        return {DRAFTS: self.steps, **{name: round(rate, 6) for name, rate in each.items()}}


def read(plan: Plan) -> Drafts | str:
    """The counters of all engines together, or why one of them does not tell."""
    positions, steps = 0, 0.0
    accepted: dict[int, float] = defaultdict(float)
    for node, server in plan.drafting():
        name = f"{node.name} {server.name}"
        positions = max(positions, commandline.read(server.argv).drafts)
        reply = http.request("GET", server.access.at(metrics.PATH), 10, most=http.METRICS)
        if reply.status != 200:
            return f"{name} has no {metrics.PATH}: {reply.error or f'HTTP {reply.status}'}"
        try:
            told = metrics.drafted(reply.text)
        except ValueError as error:
            return f"{name}: {error}"
        if told is None:
            return f"{name} does not tell {metrics.DRAFTS}"
        steps += told[0]
        for position, count in told[1].items():
            accepted[position] += count
    return Drafts(min(positions, POSITIONS), steps, dict(accepted))


def between(before: Drafts | str, after: Drafts | str) -> Drafts | str:
    """What was drafted between two looks, or why nobody knows."""
    if isinstance(before, str):
        return before
    if isinstance(after, str):
        return after
    if after.steps < before.steps:
        return "the counters went back: an engine was started anew"
    accepted = {at: count - before.accepted.get(at, 0.0) for at, count in after.accepted.items()}
    return Drafts(after.positions, after.steps - before.steps, accepted)
