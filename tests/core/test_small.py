"""Gates, options of a command, variables, evidence of benchmarks, counters: pure functions."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci.report import junit
from steps import bench, prove
from steps.bench_drivers import Measurement
from steps.bench_drivers.smoke import Sample, statistics_of, summarise
from steps.core.case import gates
from steps.core.plan import variables
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record.records import Cause, Check
from steps.core.record.verdict import compute
from steps.core.vllm import commandline
from tests.core.cases import ROUTING, SPLIT, plan_of
from tests.core.records import death, records_of

PLAN = plan_of(SPLIT)
ROUTED = plan_of(ROUTING)

# Gates


@pytest.mark.parametrize(
    ("text", "metrics", "baseline", "passed"),
    [
        ("ttft_p99_ms <= 2000", {"ttft_p99_ms": 2000}, None, True),
        ("ttft_p99_ms < 2000", {"ttft_p99_ms": 2000}, None, False),
        ("output_throughput >= 0.97 * baseline", {"output_throughput": 97}, 100, True),
        ("output_throughput >= 0.97*baseline", {"output_throughput": 96.9}, 100, False),
        ("output_throughput >= baseline * 0.5", {"output_throughput": 50}, 100, True),
        ("output_throughput >= baseline", {"output_throughput": 99}, 100, False),
        ("success_ratio == 1", {"success_ratio": 1.0}, None, True),
        ("success_ratio == 1", {"success_ratio": 0.999}, None, False),
        ("tpot_mean_ms <= 50", {}, None, False),
        ("tpot_mean_ms <= 50", {"tpot_mean_ms": math.nan}, None, False),
        ("output_throughput >= 1 * baseline", {"output_throughput": 99}, None, False),
    ],
)
def test_gates(text: str, metrics: dict[str, float], baseline: Any, passed: bool) -> None:
    assert gates.hold(gates.parse(text), metrics, baseline).passed is passed


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft_ms <= 1", "ttft_mean_ms =< 1", "ttft_mean_ms <= fast", "1 <= 2"]
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        gates.parse(text)


@given(st.floats(1, 1e6), st.floats(0.01, 2), st.floats(0, 2e6))
def test_upstreams_performance_rule(baseline: float, threshold: float, found: float) -> None:
    (gate,) = gates.upstream("performance", baseline, threshold)
    held = gates.hold(gate, {"output_throughput": found}, baseline)
    assert held.passed is (found >= threshold * baseline)


@pytest.mark.parametrize(
    ("found", "passed"), [(90, True), (100, True), (95, True), (89.99, False), (100.01, False)]
)
def test_upstreams_accuracy_rule(found: float, passed: bool) -> None:
    held = [gates.hold(g, {"accuracy": found}, 95) for g in gates.upstream("accuracy", 95, 5)]
    assert all(result.passed for result in held) is passed


def test_without_a_baseline_upstream_gates_nothing() -> None:
    assert gates.upstream("performance", None, 0.9) == ()
    assert str(gates.upstream("performance", 100, None)[0]).startswith("output_throughput >= 0.97")


# Options of a command


def test_options_are_read_as_the_real_parser_does() -> None:
    argv = [
        "vllm",
        "serve",
        "m",
        "-tp",
        "2",
        "--port=1",
        "--data_parallel_size",
        "4",
        "--port",
        "9",
    ]
    assert commandline.read(argv).number("--tensor-parallel-size", 1) == 2
    assert commandline.read(argv).text("--port") == "9"
    assert commandline.read(argv).number("--data-parallel-size", 1) == 4
    assert commandline.read([*argv, "--port", "x"]).number("--port", 8000) == 8000
    assert commandline.read([*argv, "--host"]).text("--host") == ""
    assert not commandline.read(argv).has("--headless")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["vllm", "serve", "m"], "m"),
        (["/opt/bin/vllm", "serve", "m", "--served-model-name", "a", "b"], "a"),
        (["vllm", "serve", "--model", "n"], "n"),
        (["python", "-m", "vllm.entrypoints.openai.api_server", "--model=n"], "n"),
        (["vllm", "serve"], ""),
        ([], ""),
    ],
)
def test_the_name_clients_ask_for(argv: list[str], name: str) -> None:
    assert commandline.read(argv).served_name == name


# Variables


def fill(envs: dict[str, str], **given_: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    unknown: list[tuple[str, str]] = []
    done, _ = variables.fill_environment(envs, given_, lambda *pair: unknown.append(pair))
    return done, unknown


def test_variables_use_one_another_in_any_order() -> None:
    assert fill({"A": "$B-x", "B": "${C}", "C": "$D"}, D="1") == (
        {"A": "1-x", "B": "1", "C": "1"},
        [],
    )


def test_rings_and_strangers_are_told_and_end() -> None:
    done, unknown = fill({"A": "$B", "B": "$A", "C": "$C", "D": "$NOBODY"})
    assert set(done) == {"A", "B", "C", "D"}
    assert {name for _, name in unknown} >= {"C", "NOBODY"}
    assert unknown[0][1] in ("A", "B")


def test_what_only_looks_like_a_variable_stays() -> None:
    assert fill({"A": "5$ $1 ${} $$"}) == ({"A": "5$ $1 ${} $$"}, [])


# What the smoke client measured, against a second calculation


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the closest ranks, written out anew."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    part = position - below
    above = ordered[min(below + 1, len(ordered) - 1)]
    return ordered[below] * (1 - part) + above * part


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_statistics(values: list[float]) -> None:
    found = statistics_of("x", values)
    assert found["x_mean_ms"] == pytest.approx(math.fsum(values) / len(values))
    assert (found["x_min_ms"], found["x_max_ms"]) == (min(values), max(values))
    for name, share in (("median", 0.5), ("p75", 0.75), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert found[f"x_{name}_ms"] == pytest.approx(percentile(values, share))


def sample(index: int, **more: Any) -> Sample:
    fields = {"ttft": 0.1, "e2el": 1.0, "input_tokens": 5, "output_tokens": 10, "text": "hi"}
    return Sample(index, itl=[0.1] * 9, **{**fields, **more})


def test_the_definitions_of_aisbench() -> None:
    found = summarise([sample(0), sample(1, e2el=1.9)], 2.0, 10, exact=True)
    assert found.metrics["output_throughput"] == 10.0
    assert found.metrics["total_throughput"] == 15.0
    assert found.metrics["request_throughput"] == 1.0
    assert found.metrics["tpot_mean_ms"] == pytest.approx((100 + 200) / 2)
    assert found.metrics["ttft_p99_ms"] == 100.0
    assert found.metrics["success_ratio"] == 1.0
    assert all(check.status == "pass" for check in found.checks)


@pytest.mark.parametrize(
    ("odd", "count"),
    [
        ({"error": "HTTP 503"}, "failed"),
        ({"text": " "}, "empty"),
        ({"output_tokens": 0}, "uncounted"),
        ({"output_tokens": 9}, "truncated"),
    ],
)
def test_one_bad_request_is_never_green(odd: dict[str, Any], count: str) -> None:
    found = summarise([sample(n) for n in range(99)] + [sample(99, **odd)], 2.0, 10, exact=True)
    assert found.requests[count] == 1
    assert found.requests["ok"] == 99
    assert found.metrics["success_ratio"] == 0.99
    assert judged(found).status == "fail"


def test_nothing_sent_is_never_green() -> None:
    assert judged(summarise([], 1.0, 10, exact=True)).status == "error"


# Judging

ENTRY = PLAN.benchmarks[0]


def judged(*found: Measurement, entry: BenchmarkPlan = ENTRY) -> Any:
    return bench.judge(entry, found, 0.0, 1.0, "00-perf")


def measured(throughput: float, **more: Any) -> Measurement:
    return Measurement({"output_throughput": throughput, "success_ratio": 1.0}, **more)


@pytest.mark.parametrize(
    ("found", "status", "fault"),
    [
        ([measured(97)], "pass", ""),
        ([measured(96)], "fail", "performance"),
        ([measured(50), measured(98), measured(99)], "pass", ""),  # the median counts
        ([measured(99), measured(50), measured(60)], "fail", "performance"),
        ([measured(99, checks=(Check("failed", "fail", "1"),))], "fail", "functional"),
        ([measured(99, checks=(Check("f", "fail", "1"),)), measured(99)], "fail", "functional"),
        ([measured(99), Measurement(error="it broke", fault="infra")], "error", "infra"),
        ([Measurement()], "error", "infra"),
        ([Measurement(skipped="cannot")], "skipped", ""),
        ([Measurement({"ttft_mean_ms": 1.0})], "fail", "performance"),  # nothing to gate on
    ],
)
def test_judge(found: list[Measurement], status: str, fault: str) -> None:
    result = judged(*found)
    assert (result.status, result.fault) == (status, fault)


def test_skipped_gates_are_shown_and_success_is_judged_all_the_same() -> None:
    success = gates.parse("success_ratio == 1")
    entry = replace(ENTRY, gates=(*ENTRY.gates, success), skip_gates="rehearsed")
    result = judged(measured(1), entry=entry)
    assert (result.status, [gate.passed for gate in result.gates]) == ("pass", [None, True])
    assert result.gates[0].reason == "rehearsed"
    failing = Measurement({"output_throughput": 1, "success_ratio": 0.5})
    assert judged(failing, entry=entry).status == "fail"


# What the engines' counters prove


def counters(requests: Mapping[str, object], tokens: Mapping[str, object]) -> str:
    lines = ["# HELP vllm:request_success_total Count", 'other{x="1"} 5']
    lines += [f'vllm:request_success_total{{engine="{e}",m="a"}} {n}' for e, n in requests.items()]
    lines += [f'vllm:prompt_tokens_by_source_total{{source="{s}"}} {n}' for s, n in tokens.items()]
    return "\n".join(lines)


def proof(prefill: str, decode: str) -> dict[str, str]:
    texts = {"prefiller": prefill, "decoder": decode}
    told = [prove.served(node, p, texts[node.side]) for node, p in PLAN.servers()]
    return {check.name: check.status for check in prove.judge(PLAN, told)}


KV = {"external_kv_transfer": 90.0, "local_compute": 10.0}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "0x5", "True", "9" * 400, "many"])
def test_a_counter_that_is_no_number_proves_nothing(value: Any) -> None:
    assert proof(counters({"0": 8}, {}), counters({"0": "1.2e+01"}, KV))["handoff"] == "pass"
    for text in (counters({"0": value}, KV), counters({"0": 8}, {"external_kv_transfer": value})):
        told = [prove.served(node, process, text) for node, process in PLAN.servers()]
        failed = [check for check in prove.judge(PLAN, told) if check.status == "fail"]
        assert len(failed) == len(told)
        assert all("expected a number" in check.detail for check in failed)


def test_a_server_without_counters_is_skipped() -> None:
    told = [prove.served(node, process, "other 5") for node, process in PLAN.servers()]
    assert {check.status for check in prove.judge(PLAN, told)} == {"skipped"}


@pytest.mark.parametrize(
    ("prefill", "decode", "handoff", "traffic"),
    [
        (counters({"0": 8}, {}), counters({"0": 8}, KV), "pass", "pass"),
        (counters({"0": 8}, {}), counters({"0": 8}, {"local_compute": 9}), "fail", "pass"),
        (
            counters({"0": 8}, {}),
            counters({"0": 8}, {"local_compute": 9, "external_kv_transfer": 1}),
            "fail",
            "pass",
        ),
        (counters({"0": 8}, {}), counters({"0": 0}, {}), "skipped", "fail"),
        (counters({"0": 8}, {}), counters({"0": 50, "1": 0}, KV), "pass", "fail"),
        (counters({"0": 8}, {}), counters({"0": 2, "1": 0}, KV), "pass", "skipped"),
        (counters({"0": 8}, {}), "nothing of ours", "skipped", "skipped"),
    ],
)
def test_traffic_and_handoff(prefill: str, decode: str, handoff: str, traffic: str) -> None:
    found = proof(prefill, decode)
    assert found["handoff"] == handoff
    decoder = [status for name, status in found.items() if "node-1" in name or "decoder" in name]
    assert decoder == [traffic]


@pytest.mark.parametrize(
    ("block", "tokens", "told"),
    [
        ("32", {"external_kv_transfer": 288, "local_cache_hit": 32, "local_compute": 124}, ""),
        ("32", {"external_kv_transfer": 500, "local_compute": 187}, "at most 31 tokens"),
        ("", {"external_kv_transfer": 500, "local_compute": 187}, ""),
        ("32", {"external_kv_transfer": 10, "local_compute": 11}, "most prompts"),
        ("32", {"local_compute": 11}, "no prompt token reached"),
    ],
)
def test_a_decoder_computes_less_than_a_block_of_each_prompt(
    block: str, tokens: dict[str, float], told: str
) -> None:
    (node, process), *_ = [(n, p) for n, p in PLAN.servers() if n.side == "decoder"]
    process = replace(process, argv=(*process.argv, *(("--block-size", block) if block else ())))
    good = prove.Served(node, process, {"0": 6}, {"external_kv_transfer": 9}, True)
    bad = prove.Served(node, process, {"0": 6}, tokens, True)
    alone, beside = prove.judge(PLAN, [bad]), prove.judge(PLAN, [good, bad])
    (found,) = [check for check in alone if check.name == "handoff"]
    assert (found.status, told in found.detail) == ("fail" if told else "pass", True)
    (found,) = [check for check in beside if check.name == "handoff"]
    assert found.status == ("fail" if told else "pass")


# JUnit

ODD = "a \x00\x0b\x1b[31m\ud800\ufffe <&>\"' ]]> é \u2028 \U0001f600"


def test_junit_is_well_formed_for_odd_characters() -> None:
    cause = death(10, evidence=(ODD, "]]>"), hint=ODD, process=ODD)
    later = Cause("exit", "crash", ODD, at=11.0)
    found = records_of(PLAN, cause=cause, causes=(cause, later), checks=(Check(ODD, "fail", ODD),))
    verdict = replace(compute(PLAN, found), case=ODD)
    tree = ET.fromstring(junit.xml(PLAN, verdict).encode())
    (run,) = [case for case in tree.iter("testcase") if case.get("name") == "run"]
    failure = run.find("failure")
    assert failure is not None
    assert failure.get("type") == "crash"
    assert "<&>" in (failure.text or "")


@pytest.mark.parametrize(
    ("verdict", "tag"),
    [
        ("crash", "failure"), ("startup", "failure"), ("hang", "failure"), ("infra", "error"),
        ("functional", "failure"), ("accuracy", "failure"), ("performance", "failure"),
        ("config", "error"), ("no-verdict", "error"), ("interrupted", "error"),
    ],
)  # fmt: skip
def test_junit_tells_faults_of_the_product_from_the_rest(verdict: str, tag: str) -> None:
    cause = Cause("exit", verdict, "why", at=1.0)
    found = compute(PLAN, records_of(PLAN, cause=cause, outcome=verdict))
    tree = ET.fromstring(junit.xml(PLAN, found).encode())
    (run,) = [case for case in tree.iter("testcase") if case.get("name") == "run"]
    assert [child.tag for child in run if child.tag in ("failure", "error")] == [tag]
    assert run.find(tag).get("type") == verdict  # type: ignore[union-attr]


def test_junit_of_a_pass_has_no_fault() -> None:
    text = junit.xml(PLAN, compute(PLAN, records_of(PLAN)))
    assert "<failure" not in text
    assert "<error" not in text
