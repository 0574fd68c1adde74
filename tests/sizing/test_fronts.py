"""The report: throughput against what users feel, other runs beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci.report import sizing
from steps.core.case.build import load_case
from steps.core.errors import UsageError
from steps.core.plan import clusters
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.plan import to_json
from steps.core.plan.resolver import Options, resolve
from steps.core.record import outcome
from steps.core.record.records import BenchResult, Point
from steps.core.record.rundir import RunDir
from steps.core.record.verdict import Verdict
from tests.sizing.test_size import CASE


def point(load: int, output: float, tpot: float) -> Point:
    metrics = {"output_throughput": output, "tpot_mean_ms": tpot, "ttft_p99_ms": 20 * tpot}
    return Point({"batch_size": load}, metrics)


POINTS = (point(1, 50, 10), point(4, 150, 20), point(8, 140, 25), point(16, 200, 60))
RESULT = BenchResult("chat", "aisbench", "performance", "pass", points=POINTS)


def finished(place: Path, started: float, *, rehearsed: bool, verdict: str = "pass") -> Any:
    """A run with these points, as its directory has it."""
    place.mkdir(parents=True)
    source = place.parent / "case.yaml"
    source.write_text(CASE)
    case = load_case(source)
    stand_ins = Rehearsal() if rehearsed else None
    plan = resolve(case, clusters.local(case, rehearsal=stand_ins), Options(place.name))
    made = Verdict(place.name, "sized", verdict, None, (), (), (), 1.0, started, rehearsed)
    made = replace(made, benchmarks=(RESULT,))
    (place / "plan.json").write_text(to_json(plan))
    (place / "verdict.json").write_text(json.dumps(made.to_dict()))
    return SimpleNamespace(run_dir=RunDir(place), plan=plan, verdict=made)


@pytest.mark.parametrize("rehearsed", [True, False])
def test_only_a_run_of_the_same_kind_is_laid_beside(tmp_path: Path, rehearsed: bool) -> None:
    finished(tmp_path / "good", 100, rehearsed=rehearsed)
    finished(tmp_path / "failed", 200, rehearsed=rehearsed, verdict="crash")
    finished(tmp_path / "other", 300, rehearsed=not rehearsed)
    finished(tmp_path / "later", 900, rehearsed=rehearsed)
    over = finished(tmp_path / "now", 500, rehearsed=rehearsed)
    [last] = sizing.beside(over)
    assert last.label == "last good run, good" and last.points["chat"] == POINTS
    asked, _ = sizing.beside(over, tmp_path / "failed")
    assert asked.label == "failed"
    asked, _ = sizing.beside(over, tmp_path / "other")
    assert asked.label == f"other ({'not ' * rehearsed}rehearsed)"


def test_a_run_that_was_asked_for_is_laid_beside_or_refused(tmp_path: Path) -> None:
    over = finished(tmp_path / "now", 500, rehearsed=True)
    finished(tmp_path / "other", 300, rehearsed=True)
    plan, verdict = tmp_path / "other" / "plan.json", tmp_path / "other" / "verdict.json"
    plan.write_text(plan.read_text().replace(over.plan.model, "org/another"))
    assert sizing.beside(over, tmp_path / "other")[0].label == "other (org/another)"
    verdict.write_text(verdict.read_text().replace('"chat"', '"talk"'))
    with pytest.raises(UsageError, match="other has no loads of chat"):
        sizing.beside(over, tmp_path / "other")
    over.verdict = replace(over.verdict, benchmarks=())
    with pytest.raises(UsageError, match="now itself has no loads"):
        sizing.beside(over, tmp_path / "other")
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"none.plan\.json"):
        outcome.plan_of(RunDir(tmp_path / "none"))


def test_the_front_is_drawn_with_that_of_other_runs(tmp_path: Path) -> None:
    other = sizing.Other("before <b>", 2, {"chat": POINTS})
    speed, first = sizing.pictures(RESULT, 1, [other])
    assert "interactivity, tokens/s/user" in speed and "TTFT p99, ms" in first
    assert "this run: front" in speed and "before &lt;b&gt;: front" in speed
    assert "batch_size 16: 200.0 token/s a device" in speed
    assert "batch_size 16: 100.0 token/s a device" in speed  # two devices share the same load
    loads = sizing._loads("run", POINTS, 1, "tpot_mean_ms")
    assert [loads.dots[index].y for index in loads.front] == [50, 150, 200]


def test_points_that_do_not_count_are_not_drawn() -> None:
    bad = replace(RESULT, points=tuple(replace(p, wrong="requests failed: 1") for p in POINTS))
    assert list(sizing.pictures(bad, 1, [])) == []
