"""The check ``spec_decode_acceptance``: how many drafts the engines accepted in the benchmarks.

Enters: a run behind its benchmarks. Leaves: a check. Touches nothing: the counters of all decoding
engines were read around each benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steps.bench_drivers.acceptance import CHECK, DRAFTS, FIRST
from steps.checks.asking import said
from steps.core.case.content import Acceptance
from steps.core.node.noderun import NodeRun
from steps.core.record.records import BenchResult, Check

_NAME = "spec_decode_acceptance"
_ASKED = "the first drafted position, over all benchmarks"


def spec_decode_acceptance(run: NodeRun) -> Iterator[Check]:
    """The rate of the first position is as far from its baseline as the case lets it be."""
    yield judge(run.plan.content.acceptance, run.benchmarks)


def judge(wanted: Acceptance, results: Sequence[BenchResult]) -> Check:
    """Whether drafts were accepted as the case expects, a pure function."""
    measured = [result for result in results if result.status != "skipped"]
    told = [result.metrics for result in measured if FIRST in result.metrics]
    if not measured and results:
        return Check(_NAME, "skipped", f"no benchmark ran: {results[0].reason}", phase="checks")
    if not told or len(told) < len(measured):
        unknown = [c.detail for result in measured for c in result.checks if c.name == CHECK]
        why = unknown[0] if unknown else "nothing was measured"
        return said(_NAME, "fail", _ASKED, "the engines' counters", why)
    drafts = sum(metrics[DRAFTS] for metrics in told)
    accepted = sum(metrics[FIRST] * metrics[DRAFTS] for metrics in told)
    rate = accepted / drafts if drafts else 0.0
    found = f"{rate:.4f} of {drafts:g} drafts"
    if wanted.baseline is None:
        reason = f"the case names no acceptance_rate.baseline; found {found}"
        return Check(_NAME, "skipped", reason, phase="checks")
    low, high = (wanted.baseline * (1 + sign * wanted.tolerance) for sign in (-1, 1))
    good = low - 1e-6 <= rate <= high + 1e-6
    expected = f"{low:.4g} to {high:.4g}"
    return said(_NAME, "pass" if good else "fail", _ASKED, expected, found, "performance")
