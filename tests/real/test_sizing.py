"""A sweep and a search on the real engine, with vLLM's own load generator."""

from __future__ import annotations

from steps.core.node.wishes import CONFIGS
from tests.real.fleet import FIGURES, running


def test_a_sweep_and_a_search(tmp_path):
    path = CONFIGS / "cpu" / "smollm2-sizing.yaml"
    with running(path, tmp_path, "--bench", "vllm-bench") as run:
        verdict = run.wait().verdict
    assert (run.process.returncode, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    ladder, border = verdict["benchmarks"]
    assert [point["load"]["batch_size"] for point in ladder["points"]] == [1, 2, 4, 8, 16]
    assert not any(point["wrong"] for point in ladder["points"])
    waits = [point["metrics"]["tpot_mean_ms"] for point in ladder["points"]]
    assert waits[0] < waits[-1]
    metrics = border["metrics"]
    assert metrics["capacity_low"] <= metrics["capacity"] <= metrics["capacity_high"]
    assert len(border["points"]) <= 12
    FIGURES.append(f"one core holds {border['note']}")
