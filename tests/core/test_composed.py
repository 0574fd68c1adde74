"""Records that grow step by step: what counts, what is missing, what no later go takes back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from steps.core.plan.plan import Plan
from steps.core.record import composed
from steps.core.record.records import (
    BenchResult,
    Cause,
    Check,
    PhaseRecord,
    ProcessRecord,
    Record,
    StepRecord,
    record_from,
    to_dict,
)
from steps.core.record.verdict import compute, first_cause
from tests.core.cases import SPLIT, plan_of

PLAN = plan_of(SPLIT)
LEADING = ("preflight", "serve", "wait", "bench", "prove", "collect")


def go(name: str, at: float, outcome: str = "done", cause: Cause | None = None) -> StepRecord:
    return StepRecord(name, at, 1.0, outcome, cause)


def bench(status: str, at: float, fault: str = "performance") -> list[BenchResult]:
    return [
        BenchResult(
            entry.benchmark.name, entry.driver, "performance", status, "slow", fault, started=at,
            directory=f"at-{at:g}",
        )
        for entry in PLAN.benchmarks
    ]  # fmt: skip


def part(node: int, *steps: StepRecord, **more: object) -> Record:
    first = min(step.started for step in steps)
    given = {"started": first, "ended": first + 1, "plan": PLAN.fingerprint(), **more}
    return Record(PLAN.run, node, "", "", "", "", outcome="pass", steps=steps, **given)  # type: ignore[arg-type]


def whole(*parts: Record) -> Record:
    found = None
    for one in parts:
        found = composed.merged(found, one, first_cause)
    assert found
    assert record_from(json.loads(json.dumps(to_dict(found)))) is not None
    return found


def served(node: int) -> tuple[ProcessRecord, ...]:
    return tuple(ProcessRecord(p.name, 7, 7, (), "", 1.0) for p in PLAN.nodes[node].processes)


def chain(plan: Plan = PLAN, without: str = "", *more: Record) -> dict[int, Record]:
    """The records of a row that did everything, but for one step."""
    parts = []
    for at, name in enumerate(LEADING, 1):
        if name == without:
            continue
        given: dict[str, object] = {}
        if name == "serve":
            given["processes"] = served(0)
        if name == "wait":
            given["checks"] = (Check("completion", "pass"),)
        if name == "bench":
            given["benchmarks"] = tuple(bench("pass", 4.0))
            given["phases"] = (PhaseRecord("bench", 4.0, 1.0),)
        parts.append(part(0, go(name, float(at)), **given))
    worker = part(1, go("preflight", 1.0), go("serve", 2.0), go("collect", 6.0))
    return {0: whole(*parts, *more), 1: replace(worker, processes=served(1))}


def test_a_row_that_did_everything_passes_and_names_nothing() -> None:
    verdict = compute(PLAN, chain())
    assert (verdict.verdict, [c.name for c in verdict.checks]) == ("pass", ["completion"])


@pytest.mark.parametrize("step", ["preflight", "collect"])
def test_what_may_be_left_out_is_named(step: str) -> None:
    verdict = compute(PLAN, chain(PLAN, step))
    assert verdict.verdict == "pass"
    assert f"step {step} of node 0" in {check.name for check in verdict.checks}


@pytest.mark.parametrize("step", ["serve", "wait", "bench", "prove"])
def test_what_must_be_done_is_never_green(step: str) -> None:
    verdict = compute(PLAN, chain(PLAN, step))
    assert verdict.verdict == "no-verdict"
    assert verdict.cause
    assert f"{step} of node 0" in verdict.cause.reason


@pytest.mark.parametrize("outcome", ["begun", "failed", "lost"])
def test_a_step_that_never_ended_is_not_done(outcome: str) -> None:
    again = part(0, go("prove", 9.0, outcome))
    assert compute(PLAN, chain(PLAN, "", again)).verdict == "no-verdict"


def test_held_processes_are_named() -> None:
    verdict = compute(PLAN, chain(PLAN, "", part(0, go("serve", 9.0, "held"))))
    assert verdict.verdict == "pass"
    assert "step stop of node 0" in {check.name for check in verdict.checks}


def test_the_last_go_counts() -> None:
    late = Cause("deadline", "hang", "too slow", node=0, at=3.0)
    failed = chain(PLAN, "", part(0, go("wait", 8.0, "failed", late)))
    assert compute(PLAN, failed).verdict == "hang"
    mended = composed.merged(failed[0], part(0, go("wait", 9.0)), first_cause)
    verdict = compute(PLAN, {**failed, 0: mended})
    assert verdict.verdict == "pass"
    assert [cause.reason for cause in verdict.consequences] == ["too slow"]


@pytest.mark.parametrize(
    ("step", "found"), [("check", "pass"), ("collect", "pass"), ("prove", "interrupted")]
)
def test_an_interrupted_step_that_may_be_left_out_is_left_out(step: str, found: str) -> None:
    stopped = Cause("interrupt", "interrupted", "interrupted by SIGTERM", node=0, at=9.5)
    verdict = compute(PLAN, chain(PLAN, "", part(0, go(step, 9.0, "failed", stopped))))
    assert verdict.verdict == found


def test_a_death_is_not_made_good_by_another_go() -> None:
    death = Cause("exit", "startup", "died", node=0, phase="hold", at=4.5)
    first = part(0, go("serve", 2.5, "failed", death))
    verdict = compute(PLAN, chain(PLAN, "", first, part(0, go("serve", 8.0), processes=served(0))))
    assert (verdict.verdict, verdict.cause and verdict.cause.phase) == ("crash", "bench")


def test_a_death_after_all_was_judged_does_not_count() -> None:
    death = Cause("exit", "startup", "lost its peer", node=0, phase="hold", at=50.0)
    verdict = compute(PLAN, chain(PLAN, "", part(0, go("serve", 2.0, "done", death))))
    assert verdict.verdict == "pass"
    assert [cause.reason for cause in verdict.consequences] == ["lost its peer"]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("pass", "pass", "pass"),
        ("fail", "pass", "performance"),
        ("pass", "fail", "performance"),
        ("error", "pass", "pass"),
    ],
)
def test_a_missed_gate_is_not_made_good_by_another_measurement(
    first: str, second: str, found: str
) -> None:
    parts = [
        part(0, go("bench", at), benchmarks=tuple(bench(status, at)))
        for at, status in ((7.0, first), (8.0, second))
    ]
    records = chain(PLAN, "bench", *parts)
    assert len(records[0].benchmarks) == 2 * len(PLAN.benchmarks)
    verdict = compute(PLAN, records)
    assert verdict.verdict == found
    assert "measured 2 times" in verdict.benchmarks[0].note


def test_a_record_of_another_plan_is_refused() -> None:
    records = chain()
    verdict = compute(PLAN, {**records, 1: replace(records[1], plan="other")})
    assert verdict.verdict == "config"
    assert verdict.cause
    assert "node 1 ran another plan" in verdict.cause.reason
