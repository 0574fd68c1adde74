"""Gates on what the engines themselves tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from steps.bench_drivers import pressure
from steps.core.case import gates
from steps.core.plan.plan import Plan
from steps.core.record.telemetry import Engine
from tests.core.cases import SPLIT, plan_of
from tests.faults.rehearse import ROOT, rehearse
from tests.realpath import fleet
from tests.telemetry.test_derived import of, track

PRESSED = ["kv_cache_usage_max <= 0.9", "preemptions == 0", "rank_imbalance <= 1.5"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(SPLIT)


def test_validate_knows_them() -> None:
    for text in PRESSED:
        assert str(gates.parse(text)) == text
    assert gates.parse("acceptance_pos1 >= 0.8") == gates.parse("acceptance_rate_pos_0 >= 0.8")
    for wrong in ("acceptance_pos0 >= 1", "acceptance_pos17 >= 1", "preemption == 0"):
        with pytest.raises(ValueError, match="unknown metric"):
            gates.parse(wrong)


def test_what_engines_tell_is_counted_from_the_first_look(plan: Plan) -> None:
    prefiller = track(preemptions=[5, 7], kv_usage=[0.9, 0.2], prompt_tokens=[900, 1000])
    decoder = track(preemptions=[0], kv_usage=[0.1], prompt_tokens=[0, 5])
    whole = pressure.judged(of(plan, prefiller, decoder))
    assert whole == {"kv_cache_usage_max": 0.9, "preemptions": 2, "rank_imbalance": 1.0}
    tokens: dict[str, Sequence[float]] = {
        f"generation_tokens|{n}|": [7, 7 + 100 * (n + 1)] for n in range(2)
    }
    two = track(**tokens)
    node, server = next(iter(plan.servers()))
    found = pressure.judged([Engine(node, server.name, label, two) for label in two.engines()])
    assert found == {"rank_imbalance": pytest.approx(4 / 3, abs=1e-5)}
    assert pressure.judged([]) == {}
    assert pressure.judged(of(plan, track(prompt_tokens=[3]), track())) == {}


def test_a_rehearsal_measures_and_does_not_judge(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    case = tmp_path / "case.yaml"
    case.write_text(text + "".join(f"      - {gate}\n" for gate in PRESSED))
    found = rehearse(str(case), tmp_path)
    assert found.code == 0, found.output
    [result] = found.verdict["benchmarks"]
    assert [gate["passed"] for gate in result["gates"]] == [True, None, None, None]
    assert result["metrics"]["preemptions"] == 0
    assert result["metrics"]["rank_imbalance"] >= 1


def test_on_the_real_path_they_are_judged(tmp_path: Path) -> None:
    bench = {"chat": {**fleet.CHAT, "gates": ["preemptions == 0", "kv_cache_usage_max < 0.5"]}}
    words = {0: "preempts=3", 1: "preempts=0"}
    found = fleet.local(tmp_path, fleet.split(2, words, benchmarks=bench))
    assert found.code == 1, found.output
    [result] = found.verdict["benchmarks"]
    assert [gate["passed"] for gate in result["gates"]] == [False, True]
    assert result["metrics"]["preemptions"] == 21, "3 at each of 6 requests, and at the warm-up"
    assert result["metrics"]["kv_cache_usage_max"] == 0.25
