"""``sweep`` and ``find`` in a case: what they mean, and what validate says of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.core.case.build import load_case
from steps.core.case.case import Benchmark
from steps.core.case.gates import Gate
from steps.core.errors import CaseError
from steps.core.plan import clusters
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.plan import from_json, to_json
from steps.core.plan.resolver import Options, resolve

CASE = """\
test_name: sized
model: demo/tiny
num_nodes: 1
npu_per_node: 1
deployment:
  - server_cmd: vllm serve demo/tiny --port $SERVER_PORT
benchmarks:
  chat:
    case_type: {kind}
    dataset_path: org/GSM8K-x
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 16
    max_out_len: 16
    batch_size: 4
    {more}
"""


def benchmark(folder: Path, more: str, kind: str = "performance") -> Benchmark:
    path = folder / "case.yaml"
    path.write_text(CASE.format(more=more, kind=kind))
    return load_case(path).benchmarks[0]


@pytest.mark.parametrize(
    ("more", "points"),
    [
        ("sweep: {batch_size: [1, 8]}", [{"batch_size": 1}, {"batch_size": 8}]),
        (
            "sweep: {batch_size: {from: 1, to: 10, times: 3}}",
            [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 9}, {"batch_size": 10}],
        ),
        (
            "sweep: {request_rate: {from: 0.5, to: 1.5, step: 0.5}}",
            [{"request_rate": 0.5}, {"request_rate": 1.0}, {"request_rate": 1.5}],
        ),
        (
            "sweep: {batch_size: [1, 2], max_out_len: [8]}",
            [{"batch_size": 1, "max_out_len": 8}, {"batch_size": 2, "max_out_len": 8}],
        ),
        ("sweep: {dataset: [{dataset_path: a/b}]}", [{"dataset_path": "a/b"}]),
    ],
)
def test_points_of_a_sweep(tmp_path: Path, more: str, points: list[dict[str, object]]) -> None:
    assert list(benchmark(tmp_path, more).sweep) == points


def test_what_is_found(tmp_path: Path) -> None:
    text = "find: {maximise: request_rate, subject_to: [tpot_p99_ms <= 50], within: [0.5, 20]}"
    found = benchmark(tmp_path, text).find
    assert found is not None and found.limits == (Gate("tpot_p99_ms", "<=", 50.0),)
    assert (found.low, found.high, found.tolerance, found.knob) == (0.5, 20, 0.05, "request_rate")


FIND = "find: {maximise: batch_size, subject_to: [tpot_p99_ms <= 50], within: [1, 64]"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("sweep: {batch_size: [1, 1]}", "twice"),
        ("sweep: {batch_size: [1, 2.5]}", "found 2.5, expected a whole number"),
        ("sweep: {batch_size: [0]}", "found 0, expected a whole number above 0"),
        ("sweep: {batch_size: {from: 1, to: 9}}", "'times' or 'step'"),
        ("sweep: {batch_size: {from: 9, to: 1, times: 2}}", "leads nowhere"),
        ("sweep: {batch_size: {from: 1, to: 100, step: 1}}", "at most 64"),
        ("sweep: {concurrency: [1]}", "concurrency"),
        (f"{FIND.replace('[1, 64]', '[64, 1]')}}}", "lower first"),
        (f"{FIND.replace('[1, 64]', '[0.5, 64]')}}}", "whole numbers from 1"),
        (f"{FIND.replace('tpot_p99_ms <= 50', 'tpott <= 50')}}}", "unknown metric 'tpott'"),
        (f"{FIND.replace('tpot_p99_ms <= 50', 'output_throughput >= 5')}}}", "not surely broken"),
        (f"{FIND.replace('tpot_p99_ms <= 50', 'tpot_p99_ms >= 50')}}}", "not surely broken"),
        (f"{FIND.replace('tpot_p99_ms <= 50', 'tpot_p99_ms == 50')}}}", "not surely broken"),
        (f"{FIND.replace('tpot_p99_ms <= 50', 'success_ratio <= 0.5')}}}", "not surely broken"),
        (f"{FIND}, tolerance: 0.9}}", "tolerance"),
        (f"{FIND}}}\n    repeat: 3", "repeats by itself"),
        (f"{FIND}}}\n    sweep: {{batch_size: [1]}}", "two benchmarks"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(CaseError) as caught:
        benchmark(tmp_path, more)
    told = [str(problem) for problem in caught.value.problems]
    assert any(said in f"{p} {p.hint}" for p in caught.value.problems), told
    assert all(problem.place.line >= 15 for problem in caught.value.problems), told


def test_only_performance_has_loads(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="stands in a benchmark of accuracy"):
        benchmark(tmp_path, "sweep: {batch_size: [1]}", "accuracy")


def test_the_plan_holds_the_points_and_a_rehearsal_makes_them_small(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(CASE.format(more="sweep: {batch_size: [1, 64, 256]}", kind="performance"))
    case = load_case(path)
    plan = resolve(case, clusters.local(case, rehearsal=Rehearsal()), Options("r"))
    assert [p["batch_size"] for p in plan.benchmarks[0].benchmark.sweep] == [1, 64]
    assert "points 2 for 3" in plan.benchmarks[0].scaled
    assert from_json(to_json(plan)) == plan
    real = resolve(case, clusters.local(case), Options("r"))
    assert [p["batch_size"] for p in real.benchmarks[0].benchmark.sweep] == [1, 64, 256]


def test_the_baseline_of_a_search_is_its_capacity(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(CASE.format(more=f"{FIND}}}\n    baseline: 40", kind="performance"))
    case = load_case(path)
    plan = resolve(case, clusters.local(case), Options("r"))
    assert [str(gate) for gate in plan.benchmarks[0].gates] == ["capacity >= 0.97 * baseline"]
    assert from_json(to_json(plan)) == plan
