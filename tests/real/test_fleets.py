"""Whole runs of the ordinary path: proofs that hold, benchmarks that pass, a gate that fails."""

from __future__ import annotations

import json

import pytest

from tests.real.cases import ACCURACY, case, performance
from tests.real.fleet import running


def test_aisbench_measures_and_a_provoked_gate_fails(tmp_path):
    """The baselines could fail: the last benchmark's, a thousand times too high, does."""
    good = performance("perf", 4, 16, "baseline: 2", "threshold: 0.5")
    bad = performance("provoked", 4, 8, "baseline: 22000", "confirm: 0")
    path = case(tmp_path, "smollm2", good, ACCURACY, bad)
    with running(path, tmp_path, "--bench", "aisbench") as run:
        verdict = run.wait().verdict
    assert (run.process.returncode, verdict["verdict"]) == (1, "performance"), verdict["cause"]
    found = {entry["name"]: entry for entry in verdict["benchmarks"]}
    assert {name: entry["status"] for name, entry in found.items()} == {
        "perf": "pass",
        "accuracy": "pass",
        "provoked": "fail",
    }
    assert {entry["requests"]["failed"] for entry in found.values()} == {0}
    assert found["accuracy"]["metrics"]["accuracy"] > 0
    (gate,) = [gate for gate in found["provoked"]["gates"] if gate["passed"] is False]
    assert (gate["metric"], gate["limit"]) == ("output_throughput", pytest.approx(0.97 * 22000))


def test_a_prefiller_hands_over_and_the_decoder_computes_no_prompt(tmp_path):
    with running(case(tmp_path, "smollm2-1p1d"), tmp_path, "--bench", "smoke") as run:
        verdict = run.wait().verdict
    assert (run.process.returncode, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    status, detail = run.checks()["handoff"]
    assert status == "pass"
    told = dict(part.rsplit(" ", 1) for part in detail.split(": ", 1)[1].split(", "))
    assert float(told["external_kv_transfer"]) > 0
    assert float(told.get("local_compute", 0)) == 0


def test_both_data_parallel_ranks_serve(tmp_path):
    path = case(tmp_path, "smollm2-dp2", performance("perf", 8, 16), tiny=True)
    with running(path, tmp_path, "--bench", "smoke") as run:
        verdict = run.wait().verdict
    assert (run.process.returncode, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    (traffic,) = [c for name, c in run.checks().items() if name.startswith("traffic")]
    assert traffic[0] == "pass", traffic
    assert "engine 0" in traffic[1]
    assert "engine 1" in traffic[1]
    lines = (run.path / "node-0/bench/00-perf/requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["output_tokens"] for line in lines] == [16] * 8
