"""Records as nodes leave them, for the tests of verdicts and reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from steps.core.plan.plan import Plan
from steps.core.record.records import BenchResult, Cause, Check, PhaseRecord, ProcessRecord, Record

COMPLETION = Check("completion", "pass", "'4' from http://127.71.9.1:6000")


def record_of(plan: Plan, index: int, **changes: Any) -> Record:
    """What a healthy node of ``plan`` leaves."""
    node = plan.nodes[index]
    start = 1000.0 + index
    made = Record(
        run=plan.run,
        node=index,
        role=node.role,
        side=node.side,
        address=node.address,
        host="here",
        started=start,
        ended=start + 60.0,
        outcome="pass",
        phases=(PhaseRecord("load", start, 5.0), PhaseRecord("bench", start + 5, 50.0)),
        processes=tuple(
            ProcessRecord(p.name, 100 + n, 100 + n, p.argv, p.log, start)
            for n, p in enumerate(node.processes)
        ),
        benchmarks=tuple(
            result_of(entry.benchmark.name) for entry in (plan.benchmarks if index == 0 else ())
        ),
        checks=(COMPLETION,) if index == 0 else (),
        plan=plan.fingerprint(),
    )
    return replace(made, **changes)


def records_of(plan: Plan, **changes: Any) -> dict[int, Record | None]:
    """Every node's record; ``changes`` go to the leader's."""
    found: dict[int, Record | None] = {n.index: record_of(plan, n.index) for n in plan.nodes}
    found[0] = record_of(plan, 0, **changes)
    return found


def result_of(name: str, status: str = "pass", **more: Any) -> BenchResult:
    """A benchmark's result."""
    return BenchResult(name, "aisbench", "performance", status, started=1010.0, **more)


def death(at: float, node: int = 0, **more: Any) -> Cause:
    """A process that exited with an error."""
    fields = {"process": "server", "exit_code": 1, "phase": "load", **more}
    return Cause("exit", "crash", f"died at {at:g}", node=node, at=at, **fields)
