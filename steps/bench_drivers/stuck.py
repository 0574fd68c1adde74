"""One request that hangs among many that do not: found after a bounded time, and named.

Enters: signs of life of the requests in flight, the seconds a request may be silent
(``timeouts: {request: ...}``). Leaves: the request, and a cause that names the engine that has it.
Touches: looks at every engine's /metrics twice, once a request is stuck.

Silence alone proves nothing: a long prompt is prefilled for minutes, a full fleet lets requests
wait. A request is stuck when it is silent for longer than the limit **and** for three times as long
as any other of this load has been before its next token came; before the first token of all,
nothing is known and the phase's own stall limit counts. When all requests in flight are that
silent, a fleet whose figures still move (a KV cache that fills with a prompt) is at work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from steps.core.node import http
from steps.core.node.noderun import NodeRun
from steps.core.plan.budgets import BUDGETS
from steps.core.plan.plan import NodePlan, Plan, Process
from steps.core.record.records import Cause
from steps.core.vllm import metrics

KIND, BUDGET = "stuck", "request"
FACTOR = 3.0
#: Seconds between two looks at the engines, and for one answer.
APART, PATIENCE = 1.0, 5.0
#: An engine of a server: node, server, its label where the server has several.
Place = tuple[int, str, str]


@dataclass
class Sign:
    """The last sign of life of one request: when, and how many times text had come by then."""

    index: int
    at: float
    texts: int = 0


@dataclass
class Signs:
    """Signs of life of all requests in flight; kept by one thread, looked at by another."""

    _open: dict[int, Sign] = field(default_factory=dict)
    #: The longest silence that ended, before a first token and after it.
    _longest: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def begin(self, index: int, now: float) -> None:
        """It was sent."""
        self._open[index] = Sign(index, now)

    def text(self, index: int, now: float) -> None:
        """Text of it came."""
        sign = self._open[index]
        kind = sign.texts > 0
        self._longest[kind] = max(self._longest[kind], now - sign.at)
        sign.at, sign.texts = now, sign.texts + 1

    def end(self, index: int) -> None:
        """It is over, well or not."""
        self._open.pop(index, None)

    def flying(self) -> list[Sign]:
        """Every request in flight."""
        return list(self._open.values())

    def stuck(self, now: float, limit: float) -> tuple[Sign | None, bool]:
        """The request that has been silent too long, and whether all others in flight are, too."""
        flying = self.flying()
        late = [sign for sign in flying if now - sign.at > self._bound(sign, limit)]
        return min(late, key=lambda sign: sign.at, default=None), len(late) == len(flying)

    def quiet(self, now: float, limit: float) -> str:
        """The request that may be found stuck soon, in words."""
        flying = self.flying()
        first = min(flying, key=lambda sign: sign.at) if flying else None
        if first is None or now - first.at <= self._bound(first, limit) / 3:
            return ""
        return f"{called(first.index)} silent for {now - first.at:.0f} s"

    def _bound(self, sign: Sign, limit: float) -> float:
        longest = self._longest[sign.texts > 0]
        return max(limit, FACTOR * longest) if sign.texts or longest else math.inf


def limit(plan: Plan) -> float:
    """Seconds that one request may be silent."""
    return plan.budgets.get(BUDGET, BUDGETS[BUDGET]).seconds


def called(index: int) -> str:
    """A request by its number in ``requests.jsonl``; warm-ups have negative ones."""
    return f"request {index}" if index >= 0 else f"warm-up {-index}"


@dataclass(frozen=True)
class Seen:
    """One look at an engine: requests it has, and all its figures."""

    requests: float
    figures: tuple[str, ...]


def look(plan: Plan) -> dict[Place, Seen]:
    """What every engine has at present; one that does not answer is left out."""
    servers = [(node, server) for node, server in plan.servers() if server.api]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda pair: _ask(*pair), servers)
        return {place: seen for part in found for place, seen in part.items()}


def _ask(node: NodePlan, server: Process) -> dict[Place, Seen]:
    to = server.access.at(metrics.PATH)
    reply = http.request("GET", to, PATIENCE, most=http.METRICS)
    reader = metrics.Reader()
    _, words = reader.read(reply.text if reply.status == 200 else "")
    figures: dict[str, dict[str, str]] = {}
    for key, word in zip(reader.keys, words, strict=True):
        short, label, more = key.split("|")
        figures.setdefault(label, {})[f"{short}|{more}"] = word
    return {
        (node.index, server.name, label if len(figures) > 1 else ""): Seen(
            sum(map(_number, (told.get("running|"), told.get("waiting|")))), tuple(told.values())
        )
        for label, told in figures.items()
    }


def _number(word: str | None) -> float:
    try:
        return float((word or "0").split()[0])
    except (ValueError, IndexError):
        return 0.0


def suspects(before: Mapping[Place, Seen], after: Mapping[Place, Seen]) -> list[Place]:
    """Engines that may have it: of those with requests the ones that stand still, else all."""
    have = [p for p, seen in after.items() if seen.requests and before.get(p, seen).requests]
    still = [p for p in have if p in before and before[p].figures == after[p].figures]
    return still or have


def cause(run: NodeRun, reason: str, first: bool) -> Cause:
    """The cause that a stuck request is, on the engine that has it where that can be known.

    Args:
        first: its first token has not come; otherwise no prefiller has it.
    """
    before = look(run.plan)
    run.sleep(APART)
    found = suspects(before, look(run.plan))
    if not first:
        found = [p for p in found if run.plan.nodes[p[0]].side != "prefiller"] or found
    node, process, where = _blamed(run, found)
    return run.cause_of(
        KIND,
        "hang",
        f"{reason}; {where}",
        node=node,
        process=process,
        log=f"{node.name}/{process}.log" if process else "",
        hint="The limit is timeouts: {request: ...}. Raise it where one prompt takes longer than "
        "that; stacks of hanging processes are in stacks-*.txt.",
    )


def _blamed(run: NodeRun, found: Sequence[Place]) -> tuple[NodePlan, str, str]:
    nodes = run.plan.nodes
    names = [
        f"{nodes[node].name} {server}{f' engine {label}' if label else ''}"
        for node, server, label in found
    ]
    if len(found) == 1:
        return nodes[found[0][0]], found[0][1], f"{names[0]} has it"
    if found:
        return run.me, "", f"one of {', '.join(names[:8])}{' and others' * (len(names) > 8)} has it"
    if any(process.kind == "proxy" for process in run.me.processes):
        return run.me, "proxy", "no engine has a request, so the proxy holds it"
    return run.me, "", "no engine says that it has a request"
