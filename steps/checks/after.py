"""Checks that look at the benchmarks: ``spec_decode_acceptance`` and ``benchmark_comparisons``.

Enters: a run before its benchmarks, and after them. Leaves: checks. Touches: one chat request and
reads of /metrics for the acceptance.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

from steps.bench_drivers import acceptance
from steps.checks.asking import post, said
from steps.core.case.content import Comparison
from steps.core.node.noderun import NodeRun
from steps.core.record.records import BenchResult, Check

Later = Callable[[], Iterator[Check]]
#: How far off a rehearsal may be: stand-ins have no prefix cache, and a machine that is busy.
ROOM = 3.0
_METRICS = {"TTFT": "ttft_mean_ms"}
_OPERATORS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
_ACCEPTANCE = "spec_decode_acceptance"


def spec_decode_acceptance(run: NodeRun) -> Later:
    """Read the counters of every decoding engine, and judge once the benchmarks are over."""
    plan = run.plan
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}
    post(run, f"{plan.endpoint.url}/v1/chat/completions", {"model": plan.endpoint.model, **chat})
    before = acceptance.read(plan)

    def later() -> Iterator[Check]:
        wanted = plan.content.acceptance
        found = acceptance.between(before, acceptance.read(plan))
        asked = "the first drafted position, over the benchmarks"
        if isinstance(found, str):
            yield said(_ACCEPTANCE, "fail", asked, "the engines' counters", found)
            return
        if wanted.baseline is None:
            reason = f"the case names no acceptance_rate.baseline; found {found}"
            yield Check(_ACCEPTANCE, "skipped", reason, phase="checks")
            return
        low, high = (wanted.baseline * (1 + sign * wanted.tolerance) for sign in (-1, 1))
        good = low - 1e-9 <= found.rate(0) <= high + 1e-9
        yield said(
            _ACCEPTANCE,
            "pass" if good else "fail",
            asked,
            f"{low:.4g} to {high:.4g}",
            found,
            fault="performance",
        )

    return later


def benchmark_comparisons(run: NodeRun) -> Later:
    """Hold one benchmark against another, once both were measured."""

    def later() -> Iterator[Check]:
        done = {result.name: result for result in run.benchmarks}
        for comparison in run.plan.content.comparisons:
            yield compare(comparison, done, run.plan.rehearsed)

    return later


def compare(entry: Comparison, done: dict[str, BenchResult], rehearsed: bool) -> Check:
    """Whether a comparison holds, a pure function."""
    ratio, note = entry.ratio, ""
    if rehearsed:
        up = entry.operator.startswith("<")
        ratio = max(ratio, 1.0) * ROOM if up else min(ratio, 1.0) / ROOM
        note = f" (rehearsed: {entry.ratio:g} asked, stand-ins have no prefix cache)"
    name = f"{entry.metric} of {entry.target} {entry.operator} {ratio:g} x {entry.baseline}{note}"
    metric = _METRICS[entry.metric]
    values = {}
    for side in (entry.target, entry.baseline):
        result = done.get(side)
        if result is not None and metric in result.metrics:
            values[side] = result.metrics[metric]
        elif result is not None and result.status == "skipped":
            reason = f"{side} was not measured: {result.reason}"
            return Check(_title(entry), "skipped", reason, phase="checks")
        else:
            why = f"{side} has no {metric}"
            return said(_title(entry), "fail", name, "both measured", why)
    good = _OPERATORS[entry.operator](values[entry.target], values[entry.baseline] * ratio)
    found = ", ".join(f"{side} {value:.4g} ms" for side, value in values.items())
    return said(
        _title(entry), "pass" if good else "fail", name, "it holds", found, fault="performance"
    )


def _title(entry: Comparison) -> str:
    return f"benchmark_comparisons {entry.target} {entry.operator} {entry.baseline}"
