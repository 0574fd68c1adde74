"""The real AISBench against a rehearsed fleet, both case types; needs its environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ci.tools import environments
from steps.core.system.guard import marked

from .conftest import CASE

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        environments.installed("aisbench") is None,
        reason="the aisbench environment is not built: python -m ci.tools.environments aisbench",
    ),
]


def rehearse(tmp_path: Path, *more: str) -> tuple[int, dict]:
    case = tmp_path / "case.yaml"
    case.write_text(CASE)
    place = tmp_path / "run"
    options = ("--rehearse", "--bench", "aisbench", "--run-dir", str(place), *more)
    done = subprocess.run(
        [sys.executable, "-m", "ci.run", str(case), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    verdict = place / "verdict.json"
    assert verdict.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(verdict.read_text())


def test_both_case_types(tmp_path):
    code, verdict = rehearse(tmp_path)
    assert (code, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    perf, acc = verdict["benchmarks"]
    assert perf["requests"]["ok"] == acc["requests"]["ok"] == 16
    assert perf["metrics"]["output_throughput"] > 0
    assert perf["metrics"]["ttft_p95_ms"] >= perf["metrics"]["ttft_median_ms"]
    assert acc["metrics"]["accuracy"] == 100
    assert {gate["reason"] for b in (perf, acc) for gate in b["gates"]} == {"rehearsed"}
    lines = (tmp_path / "run/node-0/bench/00-perf/requests.jsonl").read_text().splitlines()
    assert all(json.loads(line)["ttft"] > 0 for line in lines)
    place = tmp_path / "run/node-0/bench/00-perf"
    assert not list(marked(str(place.resolve()), name="MULTINODE_TOOL"))


def test_an_error_in_mid_stream_is_not_green(tmp_path):
    code, verdict = rehearse(tmp_path, "--fault", "midstream@0.server:request5")
    assert (code, verdict["verdict"]) == (1, "functional")
    assert "answers cut" in verdict["cause"]["reason"]
