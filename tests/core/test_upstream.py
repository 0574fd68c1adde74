"""The results file in upstream's shape: each dialect against a file written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.core.case.fields import FIELDS
from steps.core.plan.plan import Plan
from steps.core.plan.resolver import Options, resolve
from steps.core.record import upstream
from steps.core.record.records import BenchResult, Record
from steps.core.record.verdict import compute
from tests.core.cases import (
    DATA_PARALLEL,
    DIALECTS,
    MEMCACHE,
    MOONCAKE,
    ROUTING,
    SPLIT,
    case_from,
    cluster_of,
    data_of,
    plan_of,
)
from tests.core.records import death, record_of, records_of

EXPECTED = Path(__file__).parent / "results"
OTHERS = {"ttft_mean_ms": 812.5, "acceptance_rate_pos_0": 0.8, "request_throughput": 3.0}
PERF = {
    "duration_ms": 525960.70001,
    "input_throughput": 900.0,
    "output_throughput": 90.12345,
    "total_throughput": 990.12345,
    **OTHERS,
}
PERFORMANCE = {
    "case_type": "performance",
    "dataset_path": "vllm-ascend/GSM8K-in3500-bs400",
    "request_conf": "vllm_api_stream_chat",
    "dataset_conf": "gsm8k/gsm8k_gen_0_shot_cot_str_perf",
    "num_prompts": 400,
    "max_out_len": 1500,
    "batch_size": 100,
    "request_rate": 11.2,
    "baseline": 100,
    "threshold": 0.97,
}
ACCURACY = {
    "case_type": "accuracy",
    "dataset_path_local": "/data/aime",
    "request_conf": "vllm_api_general_chat",
    "dataset_conf": "aime2025/aime2025_gen_0_shot_chat_prompt",
    "max_out_len": 32768,
    "batch_size": 32,
    "baseline": 83.33,
}
DRAFTS = {**PERFORMANCE, "case_type": "spec_decode", "baseline": [0.8, 0.6], "threshold": 0.05}
SPECULATIVE = '--speculative-config \'{"method": "mtp", "num_speculative_tokens": 2}\''
W8A8 = "Vendor/Tiny-W8A8"
VERSIONS = {"vllm": "0.19.0", "vllm-ascend": "0.30.0rc2", "vllm-ascend-commit": "f" * 40}


def planned(text: str, model: str, server: str, extra: Mapping[str, Any], **more: Any) -> Plan:
    """The plan of a text with other benchmarks, model and ends of commands."""
    data = {**data_of(text), "model": model, **extra}
    for node in data.get("deployment", ()):
        node["server_cmd"] = f"{node['server_cmd'].strip()} {server}"
    for node in data.get("templates", ()):
        node["server_cmd_template"] = [*node["server_cmd_template"], *server.split("|")]
    case = case_from(data)
    return resolve(case, cluster_of(case.num_nodes, **more), Options("run-1", "aisbench"))


def dp() -> tuple[Plan, tuple[BenchResult, ...]]:
    extra = {"benchmarks": {"acc": ACCURACY, "drafts": DRAFTS}, "test_name": "dp case"}
    server = (
        f"--quantization ascend --enable-expert-parallel {SPECULATIVE} "
        "--additional_config "
        '\'{"enable_fused_mc2": 1, "torchair_graph_config": {"enabled": true}}\' '
        '--compilation-config \'{"cudagraph_mode": "FULL_DECODE_ONLY"}\''
    )
    rates = {"acceptance_rate_pos_0": 0.91, "acceptance_rate_pos_1": 0.51, "drafts": 100.0}
    return planned(DATA_PARALLEL, W8A8, server, extra), (
        BenchResult("acc", "aisbench", "accuracy", "pass", metrics={"accuracy": 80.0}),
        BenchResult(
            "drafts", "aisbench", "spec_decode", "fail", metrics={"accuracy": 1.0, **rates}
        ),
    )


def pd() -> tuple[Plan, tuple[BenchResult, ...]]:
    extra = {"benchmarks": {"perf": PERFORMANCE, "acc": ACCURACY}}
    missed = BenchResult("perf", "aisbench", "performance", "fail", metrics=PERF)
    plan = planned(SPLIT, "demo/tiny", "", extra, proxy_script="/w/proxy.py")
    return plan, (missed,)


def routing() -> tuple[Plan, tuple[BenchResult, ...]]:
    data = data_of(ROUTING)
    for node in data["templates"]:
        node["envs"]["VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE"] = 1
    server = '--async-scheduling|--additional-config|{"enable_mlapo": true}'
    extra = {"benchmarks": {"perf": PERFORMANCE}, "templates": data["templates"]}
    plan = planned(ROUTING, W8A8, server, extra, proxy_script="/w/proxy.py")
    return plan, (BenchResult("perf", "aisbench", "performance", "pass", metrics=PERF),)


def single() -> tuple[Plan, tuple[BenchResult, ...]]:
    data = data_of(SPLIT)
    del data["disaggregated_prefill"]
    data.update(num_nodes=1, deployment=data["deployment"][:1], benchmarks={"perf": PERFORMANCE})
    plan = planned(json.dumps(data), "demo/tiny", "", {})
    passed = BenchResult("perf", "aisbench", "performance", "pass", metrics=PERF)
    return replace(plan, dialect="single"), (passed,)


def content(plan: Plan, results: tuple[BenchResult, ...], **leader: Any) -> dict[str, Any]:
    records: dict[int, Record | None] = records_of(
        plan, benchmarks=results, versions=VERSIONS, **leader
    )
    found = upstream.results(plan, compute(plan, records), records)
    [(name, made)] = found.items()
    assert name.startswith("results-") and " " not in name
    return dict(json.loads(json.dumps(made)))


@pytest.mark.parametrize("name", ["dp", "pd", "routing", "single"])
def test_the_file_is_upstreams(name: str) -> None:
    made = content(*globals()[name]())
    assert made == json.loads((EXPECTED / f"{name}.json").read_text(encoding="utf-8"))


def test_a_run_that_dies_leaves_its_file_too() -> None:
    plan, _ = pd()
    dead = death(10.0)
    records = records_of(plan, benchmarks=(), outcome="crash", cause=dead, causes=(dead,))
    [made] = upstream.results(plan, compute(plan, records), records).values()
    assert [(task["pass_fail"], task["metrics"]) for task in made["tasks"]] == [("fail", {})] * 2
    assert made["vllm_version"] == ""
    gone = {0: None, 1: record_of(plan, 1)}
    assert upstream.results(plan, compute(plan, gone), gone)


@pytest.mark.parametrize(
    ("cluster", "hardware"),
    [
        ("a3-560t", "A3"),
        ("a2", "A2"),
        ("linux-aarch64-A3-800i", "A3"),
        ("a5", "a5"),
        ("310p", "310p"),
    ],
)
def test_hardware_is_upstreams_label(cluster: str, hardware: str) -> None:
    plan, results = pd()
    named = replace(plan, cluster=replace(plan.cluster, name=cluster))
    assert content(named, results)["hardware"] == hardware


@pytest.mark.parametrize("pool", [MOONCAKE, MEMCACHE])
def test_what_a_pool_adds_is_not_the_case_s(pool: str) -> None:
    made = content(plan_of(ROUTING + pool, proxy_script="/w/proxy.py"), ())
    assert made["environment"] == {"SHARED": "7"}
    assert "MOONCAKE_" not in json.dumps(made) and "MMC_" not in json.dumps(made)
    own = data_of(SPLIT)
    own["env_common"]["MOONCAKE_CONFIG_PATH"] = "/x.json"
    plan = plan_of(json.dumps(own), proxy_script="/w/proxy.py")
    assert content(plan, ())["environment"]["MOONCAKE_CONFIG_PATH"] == "/x.json"


def test_every_dialect_has_its_form() -> None:
    assert set(upstream.FORMS) >= set(FIELDS)
    assert all(plan_of(text).dialect in FIELDS for text in DIALECTS.values())


def test_a_rehearsal_says_so() -> None:
    plan = plan_of(SPLIT, rehearsed=True, router="/t/vllm-router")
    made = content(plan, ())
    assert made["hardware"] == "rehearsal"
    assert "REHEARSAL" not in json.dumps(made)
