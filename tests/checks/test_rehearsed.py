"""Each check, and each kind of benchmark that looks at drafts, has a rehearsal that it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.rehearse import Outcome, left_of, rehearse

BENCH: dict[str, Any] = {
    "case_type": "performance",
    "dataset_path": "demo/data",
    "request_conf": "vllm_api_stream_chat",
    "dataset_conf": "gsm8k/gsm8k_gen_0_shot_cot_str_perf",
    "num_prompts": 8,
    "max_out_len": 16,
    "batch_size": 4,
    "baseline": 100,
}
DRAFTS = """--speculative-config '{"method": "ngram", "num_speculative_tokens": 2}'"""
RATES = {"case_type": "spec_decode", "dataset_conf": "gsm8k/gsm8k_gen_0_shot_cot_chat_prompt"}
COMPARED = {
    "test_content": ["benchmark_comparisons"],
    "benchmark_comparisons_args": [{"target": "second", "baseline": "first", "ratio": 0.5}],
    "benchmarks": {"first": BENCH, "second": BENCH},
}
ACCEPTED = {"test_content": ["spec_decode_acceptance"], "acceptance_rate": {"baseline": 0.7}}
SHORT = {"api_args": {"max_tokens": 20}}
TOKENS = {
    "test_content": ["chat_completion"],
    "chat_prompts": [{"seed": "one two three ", "target_tokens": 64}],
    "expected_response": {"completion_tokens": 12},
}


def case(**more: Any) -> dict[str, Any]:
    """One node whose engine drafts."""
    serve = f"vllm serve demo/tiny --port $SERVER_PORT --max-model-len 4096 {DRAFTS}"
    return {
        "test_name": "asked",
        "model": "demo/tiny",
        "num_nodes": 1,
        "npu_per_node": 2,
        "deployment": [{"server_cmd": serve}],
        "benchmarks": {"perf": BENCH},
        **more,
    }


def run(tmp: Path, data: dict[str, Any], *options: str) -> Outcome:
    path = tmp / "case.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    found = rehearse(str(path), tmp, *options, draw=False)
    assert left_of(found, tmp) == []
    return found


def checks(found: Outcome) -> dict[str, str]:
    return {
        check["name"].removeprefix("content "): check["status"]
        for check in found.verdict["checks"]
        if check["name"].startswith("content ")
    }


#: What is asked, the fault, and the check that fails: what was found, and the class of verdict.
FAILS: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "empty chat": (
        {"test_content": ["chat_completion"]},
        "empty@0:request2", "chat_completion", "no text", "functional"),
    "wrong counts": (TOKENS, "miscount@0", "chat_completion", "prompt_tokens 65", "functional"),
    "too long": (
        {**TOKENS, "expected_response": {"completion_tokens": 12, "max_model_len": 70}},
        "", "chat_completion", "76 tokens, more than max_model_len 70", "functional"),
    "refused": (
        {**TOKENS, "api_keyword_args": {"temperature": -1}},
        "", "chat_completion", "HTTP 400: ", "functional"),
    "empty completion": (
        {"test_content": ["completion"], "chat_prompts": ["a", "b"]},
        "empty@0:request2", "completion", "no text for prompt 1", "functional"),
    "empty message": (
        {"test_content": ["messages"]},
        "empty@0:request2", "messages", "no text", "functional"),
    "broken stream": (
        {"test_content": ["messages"], "api_keyword_args": {"stream": True}},
        "midstream@0:request2", "messages", "message_stop: ", "functional"),
    "no picture wanted": (
        {"test_content": ["image"], "mm_request": SHORT, "expected_response": {"status_code": 400}},
        "", "image", "expected HTTP 400; found", "functional"),
    "empty picture": (
        {"test_content": ["image"], "mm_request": SHORT},
        "empty@0:request2", "image", "no text", "functional"),
    "low acceptance": (
        ACCEPTED, "low-acceptance@0:bench", "spec_decode_acceptance", "found 0.3500 of",
        "performance"),
    "slow second benchmark": (
        COMPARED, "slow=20@0:bench2", "benchmark_comparisons second < first",
        "expected TTFT of second < 3 x", "performance"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILS)
def test_a_check_fails(name, tmp_path):
    asked, fault, check, words, verdict = FAILS[name]
    found = run(tmp_path, case(**asked), *(("--fault", fault) if fault else ()))
    assert (found.code, found.verdict["verdict"]) == (1, verdict), found.output
    assert checks(found)[check] == "fail"
    title = f"content {check}"
    [detail] = [each["detail"] for each in found.verdict["checks"] if each["name"] == title]
    assert words in detail
    cause = found.verdict["cause"]
    assert (cause["kind"], cause["phase"]) == ("check", "checks")
    assert title in cause["reason"]
    junit = (found.path / "junit.xml").read_text()
    assert f'type="{verdict}"' in junit
    assert f'name="check {title.replace("<", "&lt;")}"' in junit
    measured = {result["name"]: result["status"] for result in found.verdict["benchmarks"]}
    if "empty" not in fault and "midstream" not in fault and "miscount" not in fault:
        assert set(measured.values()) == {"pass"}, "a failed check does not stop the benchmarks"


def test_all_of_them_pass(tmp_path):
    asked = {
        **COMPARED,
        **TOKENS,
        **ACCEPTED,
        "test_content": [
            "chat_completion", "completion", "image", "messages", "check_rank0_process_count",
            "spec_decode_acceptance", "benchmark_comparisons",
        ],
        "mm_request": {**SHORT, "messages": [{"role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": ""}},
            {"type": "image_url", "image_url": {"url": "{IMAGE_0}"}},
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.jpg"}},
        ]}]},
    }  # fmt: skip
    asked["benchmarks"] = {**COMPARED["benchmarks"], "rates": {**BENCH, **RATES, "baseline": [0.7]}}
    found = run(tmp_path, case(**asked))
    assert (found.code, found.verdict["verdict"]) == (0, "pass"), found.output
    told = checks(found)
    assert [told[name] for name in asked["test_content"][:6]] == ["pass"] * 6
    phases = [phase["name"] for phase in found.verdict["phases"]]
    assert phases.index("probe") + 1 == phases.index("checks") == phases.index("bench") - 1
    for result in found.verdict["benchmarks"]:
        assert result["metrics"]["acceptance_rate_pos_0"] == pytest.approx(0.7), "gated or not"
        assert result["metrics"]["acceptance_rate_pos_1"] == pytest.approx(0.6)


def test_rates_by_position_fail_a_benchmark(tmp_path):
    rates = {**BENCH, **RATES, "baseline": [0.8, 0.6], "threshold": 0.1}
    found = run(tmp_path, case(benchmarks={"rates": rates}), "--fault", "low-acceptance@0")
    assert (found.code, found.verdict["verdict"]) == (1, "performance"), found.output
    [result] = found.verdict["benchmarks"]
    assert [gate["passed"] for gate in result["gates"]] == [False, False]
    assert "acceptance_rate_pos_1 >= 0.54" in result["reason"]
    assert not result["runs"], "nothing of minutes is measured again for chance's sake"


@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("performance", "truncate@0:bench", "answers truncated: 8"),
        ("accuracy", "empty@0:bench", "answers empty: 8"),
    ],
)
def test_a_benchmark_fails(kind: str, fault: str, reason: str, tmp_path: Path) -> None:
    entry = {**BENCH, "case_type": kind}
    if kind == "accuracy":
        entry |= {"dataset_conf": RATES["dataset_conf"], "request_conf": "vllm_api_general_chat"}
    found = run(tmp_path, case(benchmarks={"measured": entry}), "--fault", fault)
    assert (found.code, found.verdict["verdict"]) == (1, "functional"), found.output
    [result] = found.verdict["benchmarks"]
    assert (result["status"], reason in result["reason"]) == ("fail", True), result["reason"]


def test_a_failed_check_ends_the_run_where_the_case_says_so(tmp_path):
    asked = {**TOKENS, "checks": {"stop": True}}
    found = run(tmp_path, case(**asked), "--fault", "miscount@0")
    assert (found.code, found.verdict["verdict"]) == (1, "functional"), found.output
    [result] = found.verdict["benchmarks"]
    assert (result["status"], result["reason"]) == ("skipped", "was not run: the run ended before")
    assert "bench" not in {phase["name"] for phase in found.verdict["phases"]}


def test_a_second_server_is_counted(tmp_path):
    words = ["--port", "${PORT}", "-dp", "2", "--data-parallel-rank", "${DP_RANK}"]
    words += ["-dpa", "${DP_ADDRESS}", "-dpp", "${DP_RPC_PORT}"]
    data = {
        "model": "demo/tiny",
        "num_nodes": 1,
        "npu_per_node": 2,
        "routing": {"type": "generic_dp", "groups": {"worker": [0]}},
        "config": [{"port_start": 7100, "dp_rpc_port": 12321, "dp_size": 2, "dp_size_local": 2,
                    "dp_address": "${NODE_0_IP}"}],
        "templates": [{"envs": {}, "server_cmd_template": words}],
        "test_content": ["check_rank0_process_count"],
        "benchmarks": {},
    }  # fmt: skip
    found = run(tmp_path, data)
    assert (found.code, found.verdict["verdict"]) == (1, "functional"), found.output
    assert "expected 1; found 2" in found.verdict["cause"]["reason"]


def test_behind_a_proxy(tmp_path):
    """Tokens are counted by a prefiller, drafts by the decoder: proxies do neither."""
    serve = f"vllm serve demo/tiny --port $SERVER_PORT --max-model-len 4096 {DRAFTS}"
    kv = (
        '{"kv_connector": "MooncakeConnectorV1", "kv_role": "%s", "kv_port": "%d", '
        '"engine_id": "%d"}'
    )
    commands = [
        f"{serve} --kv-transfer-config '{kv % (role, port, index)}'"
        for index, (role, port) in enumerate((("kv_producer", 30000), ("kv_consumer", 30100)))
    ]
    data = case(
        num_nodes=2,
        deployment=[{"server_cmd": command} for command in commands],
        disaggregated_prefill={
            "enabled": True, "prefiller_host_index": [0], "decoder_host_index": [1],
        },
        **{**TOKENS, **ACCEPTED,
           "test_content": ["chat_completion", "spec_decode_acceptance"]},
    )  # fmt: skip
    found = run(tmp_path, data)
    assert (found.code, found.verdict["verdict"]) == (0, "pass"), found.output
    told = checks(found)
    assert (told["chat_completion"], told["spec_decode_acceptance"]) == ("pass", "pass")
    low = tmp_path / "low"
    low.mkdir()
    found = run(low, data, "--fault", "low-acceptance@1:bench")
    assert found.verdict["verdict"] == "performance", found.output
