"""Verdicts: computed from records, a pass only with evidence, the first cause first."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps import report
from steps.core.errors import Exit
from steps.core.plan.plan import to_json
from steps.core.record.records import Cause, Check, record_from, to_dict
from steps.core.record.rundir import RunDir, write_json, write_text
from steps.core.record.verdict import CLASSES, compute, first_cause
from tests.core.cases import DATA_PARALLEL, SPLIT, plan_of
from tests.core.records import COMPLETION, death, record_of, records_of, result_of

PLAN = plan_of(SPLIT)
BARE = plan_of(DATA_PARALLEL)


def test_all_is_well() -> None:
    verdict = compute(PLAN, records_of(PLAN))
    assert (verdict.verdict, verdict.exit_code, verdict.cause) == ("pass", 0, None)
    assert verdict.seconds == 61.0
    assert compute(BARE, records_of(BARE)).verdict == "pass"


def test_exit_codes_are_those_of_the_readme() -> None:
    assert {name: int(code) for name, code in CLASSES.items()} == {
        "pass": 0,
        "startup": 1,
        "crash": 1,
        "functional": 1,
        "accuracy": 1,
        "performance": 1,
        "config": 2,
        "infra": 3,
        "no-verdict": 3,
        "hang": 4,
        "interrupted": 130,
    }
    assert Exit.DEADLINE == 4


@pytest.mark.parametrize("missing", [{0}, {1}, {0, 1}])
def test_a_missing_record_is_never_a_pass(missing: set[int]) -> None:
    found = {n: None if n in missing else r for n, r in records_of(PLAN).items()}
    for records in (found, {n: r for n, r in found.items() if r}):
        verdict = compute(PLAN, records)
        assert (verdict.verdict, verdict.exit_code) == ("no-verdict", 3)
        assert verdict.missing == tuple(sorted(missing))
        assert verdict.cause
        assert all(f"node {n}" in verdict.cause.reason for n in missing)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"checks": ()}, "no-verdict"),
        ({"checks": (Check("completion", "fail", "no text"),)}, "functional"),
        ({"checks": (COMPLETION, Check("traffic", "fail", "idle"))}, "functional"),
        ({"checks": (COMPLETION, Check("traffic", "skipped", "why"))}, "pass"),
        ({"benchmarks": ()}, "no-verdict"),
        ({"benchmarks": (result_of("another"),)}, "no-verdict"),
        ({"benchmarks": (result_of("perf", "fail", fault="performance"),)}, "performance"),
        ({"benchmarks": (result_of("perf", "error", fault="infra"),)}, "infra"),
        ({"benchmarks": (result_of("perf", "fail"),)}, "functional"),
        ({"benchmarks": (result_of("perf", "green"),)}, "functional"),
        ({"benchmarks": (result_of("perf", "skipped"),)}, "pass"),
        ({"outcome": "infra"}, "no-verdict"),
        ({"processes": ()}, "no-verdict"),
        ({"cause": Cause("exit", "pass", "odd")}, "no-verdict"),
        ({"cause": Cause("exit", "of-tomorrow", "odd")}, "no-verdict"),
        ({"cause": Cause("interrupt", "interrupted", "Ctrl-C")}, "interrupted"),
        ({"cause": Cause("stall", "hang", "still")}, "hang"),
    ],
)
def test_a_pass_needs_evidence(changes: dict[str, Any], verdict: str) -> None:
    found = compute(PLAN, records_of(PLAN, **changes))
    assert found.verdict == verdict
    assert (found.cause is None) == (verdict == "pass")
    assert (found.exit_code == 0) == (verdict == "pass")


def test_a_worker_without_its_server_proves_nothing() -> None:
    found = records_of(PLAN)
    found[1] = record_of(PLAN, 1, processes=())
    verdict = compute(PLAN, found)
    assert verdict.verdict == "no-verdict"
    assert verdict.cause
    assert (verdict.cause.node, verdict.cause.process) == (1, "server")


def test_a_workers_cause_counts_when_the_leader_knows_of_none() -> None:
    found = records_of(PLAN)
    found[1] = record_of(PLAN, 1, cause=death(1030, 1), outcome="crash")
    assert compute(PLAN, found).verdict == "crash"


def test_what_the_leader_told_is_the_cause_and_the_rest_follows() -> None:
    told = death(1030, 1)
    later = [death(1031, 0), death(1032, 1, process="proxy")]
    found = records_of(PLAN, cause=told, causes=(told, *later), outcome="crash")
    found[1] = record_of(PLAN, 1, cause=told, causes=(told, later[0]), outcome="crash")
    verdict = compute(PLAN, found)
    assert verdict.cause == told
    assert verdict.consequences == tuple(later)


def test_what_the_backend_saw_explains_a_node_the_leader_lost() -> None:
    lost = Cause("lost", "infra", "node 1 is lost", node=1, at=1034.0)
    seen = Cause("lost", "infra", "the pod was OOM killed", node=1, process="pod", at=1030.0)
    other = Cause("exit", "infra", "something else", node=0, at=1020.0)
    found = records_of(PLAN, cause=lost, causes=(lost,), outcome="infra")
    verdict = compute(PLAN, found, [seen, other])
    assert verdict.cause == seen
    assert lost in verdict.consequences
    assert compute(PLAN, found, [other]).cause == lost


def test_a_lost_leader_is_explained_by_who_saw_it() -> None:
    seen = Cause("lost", "infra", "the node program was killed", node=0, at=1030.0)
    found = records_of(PLAN)
    found[0] = None
    told = Cause("lost", "infra", "the leader is lost", node=0, at=1033.0)
    found[1] = record_of(PLAN, 1, cause=told, causes=(told,), outcome="infra")
    verdict = compute(PLAN, found, [seen])
    assert verdict.cause == seen
    assert verdict.missing == (0,)


def test_a_benchmark_that_never_ran_is_shown() -> None:
    found = records_of(PLAN, cause=death(1030), benchmarks=(), outcome="crash")
    (shown,) = compute(PLAN, found).benchmarks
    assert shown.status == "skipped"
    assert "ended before" in shown.reason


# First causes


def test_no_cause_is_none() -> None:
    assert first_cause([]) is None


def soft(at: float, kind: str = "completion") -> Cause:
    return Cause(kind, "functional", kind, node=0, at=at)


#: The first of each row is the cause.
ORDERS = {
    "the earliest death": [death(10), death(11, 1), death(12, 2)],
    "a death before what a client noticed earlier": [death(12, 1), soft(10), soft(11, "benchmark")],
    "a death before a stall": [death(12), soft(10, "stall")],
    "in a tie the signal": [death(10.2, 1, signal="SIGKILL", exit_code=None), death(10.0)],
    "in a tie not who blames another": [death(10.2, 1), death(10.0, consequence=True)],
    "within seconds not who blames another": [death(13.5, 1), death(10.0, consequence=True)],
    "in a tie an error before a clean exit": [death(10.2, 1), death(10.0, exit_code=0)],
    "in a tie an interrupt": [
        Cause("interrupt", "interrupted", "Ctrl-C", at=10.2),
        death(10.0, 1, signal="SIGTERM", exit_code=None),
    ],
    "in a tie a lost node": [Cause("lost", "infra", "lost", node=1, at=10.2), death(10.0)],
    "an interrupt before what it makes of clients": [
        Cause("interrupt", "interrupted", "Ctrl-C", at=10.0),
        soft(9.0),
    ],
    "an interrupt after a death does not hide it": [
        death(10.0),
        Cause("interrupt", "interrupted", "Ctrl-C", at=11.0),
    ],
    "beyond a tie the time": [death(10.0, exit_code=0), death(10.5, 1, signal="SIGKILL")],
    "a stall alone": [soft(10, "stall")],
    "the earliest of what clients noticed": [soft(10), soft(11, "benchmark")],
}


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_first_cause(name: str) -> None:
    causes = ORDERS[name]
    for order in itertools.permutations(causes):
        assert first_cause(order) == causes[0]


# Records on disk


def test_records_survive_json() -> None:
    gated = replace(
        result_of("perf", metrics={"ttft_mean_ms": 1.5}, requests={"ok": 3}, runs=({"a": 1.0},)),
        checks=(Check("requests failed", "pass", "0"),),
    )
    cause = death(10, evidence=("Traceback", "ValueError: x"), consequence=True)
    record = record_of(PLAN, 0, cause=cause, causes=(cause,), benchmarks=(gated,), left=("pid 1",))
    assert record_from(json.loads(json.dumps(to_dict(record)))) == record


@pytest.mark.parametrize(
    "data",
    [None, 1, "x", [], {}, {"schema": 1}, {"schema": 99}, {"schema": 1, "phases": 3}],
)
def test_what_is_no_record_is_none(data: Any) -> None:
    assert record_from(data) is None


def test_a_record_with_a_part_missing_or_odd_is_none_or_a_record() -> None:
    whole = json.loads(json.dumps(to_dict(record_of(PLAN, 0, cause=death(1)))))
    for key in whole:
        torn = {k: v for k, v in whole.items() if k != key}
        record_from(torn)
        for odd in (None, 7, "x", [1], {"a": 1}, [None], [{}]):
            record_from({**whole, key: odd})
    assert record_from({k: v for k, v in whole.items() if k != "node"}) is None


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run").make()
    write_text(made.plan, to_json(PLAN))
    for index, record in records_of(PLAN).items():
        write_json(made.node(index).make().record, to_dict(record))
    return made


def test_a_whole_run_directory_passes(run_dir: RunDir) -> None:
    verdict = report.run(run_dir).verdict
    assert verdict.verdict == "pass"
    data = json.loads(run_dir.verdict.read_text())
    assert set(data) >= {
        "schema", "run", "case", "verdict", "exit_code", "cause", "phases", "benchmarks",
    }  # fmt: skip
    assert data["cause"] is None
    assert "PASS" in run_dir.summary.read_text()
    (results,) = run_dir.path.glob("results-*.json")
    assert json.loads(results.read_text())["tasks"][0]["pass_fail"] == "pass"


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("damage", ["absent", "torn", "empty", "another run", "another node"])
def test_a_damaged_record_is_no_verdict(run_dir: RunDir, node: int, damage: str) -> None:
    path = run_dir.node(node).record
    text = path.read_text()
    if damage == "absent":
        path.unlink()
    elif damage in ("torn", "empty"):
        path.write_text(text[: len(text) // 2] if damage == "torn" else "")
    else:
        data = json.loads(text)
        data.update({"run": "other"} if damage == "another run" else {"node": 7})
        path.write_text(json.dumps(data))
    verdict = report.run(run_dir).verdict
    assert (verdict.verdict, verdict.exit_code, verdict.missing) == ("no-verdict", 3, (node,))


def test_the_same_records_give_the_same_files(run_dir: RunDir) -> None:
    report.run(run_dir)
    before = {p.name: p.read_bytes() for p in run_dir.path.iterdir() if p.is_file()}
    report.run(run_dir)
    assert {p.name: p.read_bytes() for p in run_dir.path.iterdir() if p.is_file()} == before
