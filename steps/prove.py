"""prove: every side and every rank really served requests.

Enters: a :class:`NodeRun` on the leader after its benchmarks. Leaves: checks.
Touches: reads /metrics of every API server.

A split fleet whose decoders quietly compute everything themselves looks
healthy and fast; only the engines' own counters tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from steps.core.case.numbers import Refused
from steps.core.node import alone, http
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.plan.plan import NodePlan, Plan, Process
from steps.core.record.records import Check
from steps.core.vllm import commandline, kvports, metrics

#: Fewer requests than this for each engine prove nothing about an idle one.
ENOUGH = 2


@dataclass(frozen=True)
class Served:
    """What one API server's counters say: requests by engine, prompt tokens by source.

    Attributes:
        known: it tells them at all.
        odd: what it tells is no number, and proves nothing.
    """

    node: NodePlan
    process: Process
    requests: Mapping[str, float]
    tokens: Mapping[str, float]
    known: bool
    odd: str = ""

    @property
    def name(self) -> str:
        """Node and process."""
        return f"{self.node.name} {self.process.name}"


def run(run: NodeRun) -> None:
    """Check the counters of every API server.

    Raises:
        StepFailed: a side or a rank served nothing, class functional.
    """
    if not run.plan.proof:
        run.checks.append(Check("traffic", "skipped", "the case says proof: false"))
        return
    served = []
    for node, process in run.plan.servers():
        if process.api:
            run.check_end()
            served.append(read(node, process))
    checks = list(judge(run.plan, served))
    for check in checks:
        run.events.emit("check", name=check.name, status=check.status, detail=check.detail)
    run.checks += checks
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        raise StepFailed(
            run.cause_of(
                "proof",
                "functional",
                "; ".join(f"{check.name}: {check.detail}" for check in failed),
                hint="The fleet answered, but not as the case says it should; look at the proxy's "
                "backends and at kv_transfer_config. 'proof: false' in the case skips this.",
            )
        )


def read(node: NodePlan, process: Process) -> Served:
    """The counters of one server; unknown when it does not tell them."""
    reply = http.request("GET", process.access.at(metrics.PATH), 10, most=http.METRICS)
    if reply.status != 200:
        return Served(node, process, {}, {}, False)
    return served(node, process, reply.text)


def served(node: NodePlan, process: Process, text: str) -> Served:
    """What a server's /metrics say."""
    try:
        requests = metrics.by_label(text, metrics.REQUESTS, metrics.ENGINE)
        tokens = metrics.by_label(text, metrics.TOKENS, metrics.SOURCE)
    except Refused as error:
        return Served(node, process, {}, {}, False, str(error))
    return Served(node, process, requests, tokens, metrics.REQUESTS in text)


def judge(plan: Plan, served: list[Served]) -> Iterator[Check]:
    """Checks from counters, a pure function of them and the plan."""
    for entry in served:
        if entry.odd:
            yield Check(f"traffic {entry.name}", "fail", entry.odd)
        elif not entry.known:
            yield Check(f"traffic {entry.name}", "skipped", f"it does not tell {metrics.REQUESTS}")
    told = [entry for entry in served if entry.known]
    yield from _engines(told)
    if plan.proxy is None or all(node.side == "plain" for node in plan.nodes):
        return
    if plan.rehearsed and _by_files(plan):
        yield Check("handoff", "skipped", f"rehearsed: stand-ins do not play {kvports.BY_FILES}")
    else:
        yield from _sides(told)


def _by_files(plan: Plan) -> bool:
    return any(kvports.BY_FILES in word for _, process in plan.servers() for word in process.argv)


def _engines(told: list[Served]) -> Iterator[Check]:
    """Every rank of a data-parallel group served something."""
    groups: dict[str, list[Served]] = defaultdict(list)
    for entry in told:
        groups[entry.process.group].append(entry)
    for group, entries in sorted(groups.items()):
        counts = {
            f"{entry.name} engine {engine or 0}": count
            for entry in entries
            for engine, count in (entry.requests or {"0": 0.0}).items()
        }
        total = sum(counts.values())
        idle = [name for name, count in counts.items() if not count]
        detail = ", ".join(f"{name}: {count:g} requests" for name, count in counts.items())
        if total == 0 and all(entry.process.encodes for entry in entries):
            yield Check(f"traffic {group}", "skipped", "an encoder, and nobody sent a picture")
        elif total == 0:
            yield Check(f"traffic {group}", "fail", f"served nothing ({detail})")
        elif idle and total < ENOUGH * len(counts):
            reason = f"only {total:g} requests for {len(counts)} engines ({detail})"
            yield Check(f"traffic {group}", "skipped", reason)
        elif idle:
            yield Check(f"traffic {group}", "fail", f"{', '.join(idle)} served nothing ({detail})")
        else:
            yield Check(f"traffic {group}", "pass", detail)


def _sides(told: list[Served]) -> Iterator[Check]:
    """The decoders' prompt tokens came from the prefillers, not from themselves."""
    decoders = [entry for entry in told if entry.node.side == "decoder" and entry.tokens]
    if not decoders:
        yield Check("handoff", "skipped", f"no decoder tells {metrics.TOKENS}")
        return
    tokens: dict[str, float] = defaultdict(float)
    for entry in decoders:
        for source, count in entry.tokens.items():
            tokens[source] += count
    wrong = [why for entry in decoders for why in _computed(entry)]
    if not tokens.get(metrics.HANDED_OVER):
        reason = f"no prompt token reached a decoder as KV ({_listed(tokens)})"
        yield Check("handoff", "fail", reason)
    elif wrong:
        yield Check("handoff", "fail", "; ".join(wrong))
    else:
        yield Check("handoff", "pass", f"prompt tokens on the decoders: {_listed(tokens)}")


def _computed(decoder: Served) -> Iterator[str]:
    """What a decoder computed itself, where it is more than a connector of whole blocks leaves."""
    external = decoder.tokens.get(metrics.HANDED_OVER, 0.0)
    local = decoder.tokens.get(metrics.COMPUTED, 0.0)
    remainder = commandline.read(decoder.process.argv).block_size - 1
    if not sum(decoder.tokens.values()):
        return
    told = f"({_listed(decoder.tokens)})"
    if not external:
        yield f"{decoder.name}: no prompt token reached it as KV {told}"
    elif local > external:
        yield f"{decoder.name}: it computed most prompts itself {told}"
    elif local > remainder * sum(decoder.requests.values()):
        yield (
            f"{decoder.name}: it computed more of the prompts itself than the at most {remainder} "
            f"tokens a request that a connector of whole blocks leaves {told}"
        )


def _listed(tokens: Mapping[str, float]) -> str:
    return ", ".join(f"{source} {count:g}" for source, count in sorted(tokens.items()))


main = alone.step("prove", __doc__, lambda _: [("proof", run)], needs=True)

if __name__ == "__main__":
    raise SystemExit(main())
