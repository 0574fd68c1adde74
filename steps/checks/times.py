"""The check ``benchmark_comparisons``: one benchmark held against another.

Enters: a run behind its benchmarks. Leaves: a check for each comparison. Touches nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from steps.checks.asking import said
from steps.core.case.content import Comparison
from steps.core.node.noderun import NodeRun
from steps.core.record.records import BenchResult, Check

#: How far off a rehearsal may be: stand-ins have no prefix cache, and a machine that is busy.
ROOM = 3.0
_ASKED = "the means of both benchmarks"
_METRICS = {"TTFT": "ttft_mean_ms"}
_OPERATORS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


def benchmark_comparisons(run: NodeRun) -> Iterator[Check]:
    """Hold one benchmark against another."""
    done = {result.name: result for result in run.benchmarks}
    for comparison in run.plan.content.comparisons:
        yield compare(comparison, done, run.plan.rehearsed)


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
            return said(_title(entry), "fail", _ASKED, name, why)
    good = _OPERATORS[entry.operator](values[entry.target], values[entry.baseline] * ratio)
    found = ", ".join(f"{side} {value:.4g} ms" for side, value in values.items())
    status = "pass" if good else "fail"
    return said(_title(entry), status, _ASKED, name, found, "performance")


def _title(entry: Comparison) -> str:
    return f"benchmark_comparisons {entry.target} {entry.operator} {entry.baseline}"
