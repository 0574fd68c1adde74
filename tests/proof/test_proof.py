"""A fleet that answers well, but not as its case says, must fail as functional: rehearsed runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ci.tools import environments
from steps import prove
from steps.core.case.build import load_case
from steps.core.plan import clusters
from steps.core.plan.resolver import Options, resolve
from tests.faults.rehearse import undrawn

ROOT = Path(__file__).parents[2]
PROXY = Path(__file__).with_name("one_sided.py")

KV = (
    '{"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_ROLE", "kv_port": "PORT", '
    '"kv_connector_extra_config": {"prefill": {"dp_size": 1, "tp_size": 1}, '
    '"decode": {"dp_size": 1, "tp_size": 1}}}'
)
SPLIT = """\
model: demo/tiny
num_nodes: 2
npu_per_node: 1
PROXY
disaggregated_prefill:
  enabled: true
  prefiller_host_index: [0]
  decoder_host_index: [1]
deployment:
  - server_cmd: >
      vllm serve demo/tiny --port $SERVER_PORT --kv-transfer-config 'PREFILL'
  - server_cmd: >
      vllm serve demo/tiny --port $SERVER_PORT --kv-transfer-config 'DECODE'
benchmarks:
  perf:
    case_type: performance
    dataset_path: org/GSM8K-x
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 8
    max_out_len: 4
    batch_size: 2
    gates:
      - success_ratio == 1
"""


def rehearse(folder: Path, proxy: str, **env: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Exit code, verdict, and the status of each check of the leader."""
    text = SPLIT.replace("PREFILL", KV.replace("ROLE", "producer").replace("PORT", "30000"))
    text = text.replace("DECODE", KV.replace("ROLE", "consumer").replace("PORT", "30100"))
    case, place = folder / "case.yaml", folder / "run"
    case.write_text(text.replace("PROXY", proxy, 1))
    options = ("--rehearse", "--bench", "smoke", "--run-dir", str(place))
    done = subprocess.run(
        [sys.executable, "-m", "ci.run", str(case), *options],
        cwd=ROOT,
        env=undrawn({**os.environ, **env}, folder),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    verdict = json.loads((place / "verdict.json").read_text())
    record = place / "node-0" / "record.json"
    assert record.exists(), done.stdout + done.stderr
    checks = json.loads(record.read_text())["checks"]
    return done.returncode, verdict, {check["name"]: check["status"] for check in checks}


def test_without_a_router_the_rehearsals_own_proxy_hands_over_and_says_so(tmp_path):
    cache = {"MULTINODE_CACHE": str(tmp_path / "cache"), "MULTINODE_VLLM_ROUTER": ""}
    code, verdict, checks = rehearse(tmp_path, "proxy: vllm-router", **cache)
    assert (code, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    assert checks["handoff"] == "pass"
    assert not (tmp_path / "cache" / "envs").exists()
    note = "proxy: the rehearsal's own proxy stands in for vllm-router, which is not on this"
    assert note in (tmp_path / "run" / "summary.md").read_text()


def one_sided(side: str) -> str:
    command = f"{sys.executable} {PROXY} $HOST $PORT ${side}_URLS"
    return f"proxy:\n  command: {command}\n"


@pytest.mark.skipif(
    environments.installed("vllm-router") is None,
    reason="the vllm-router environment is not built: python -m ci.tools.environments vllm-router",
)
def test_a_split_fleet_whose_proxy_hands_over_passes(tmp_path):
    code, verdict, checks = rehearse(tmp_path, "proxy: vllm-router")
    assert (code, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    assert checks["handoff"] == "pass"


@pytest.mark.parametrize("side", ["DECODER", "PREFILLER"])
def test_one_that_serves_everything_from_one_side_fails(tmp_path, side):
    code, verdict, checks = rehearse(tmp_path, one_sided(side))
    assert (code, verdict["verdict"]) == (1, "functional"), verdict["cause"]
    assert verdict["cause"]["kind"] == "proof"
    assert {entry["status"] for entry in verdict["benchmarks"]} == {"pass"}
    assert checks["handoff"] == "fail"
    assert "no prompt token reached a decoder as KV" in verdict["cause"]["reason"]


def test_the_case_can_switch_the_proof_off(tmp_path):
    code, verdict, checks = rehearse(tmp_path, f"{one_sided('DECODER')}proof: false\n")
    assert (code, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    assert checks["traffic"] == "skipped"


def judged(name: str, counts: dict[str, float]) -> dict[str, str]:
    """What the proof says of a case whose API server counted so many requests an engine."""
    case = load_case(ROOT / "configs" / "cpu" / name)
    plan = resolve(case, clusters.local(case, network="71.9"), Options(run="r"))
    servers = [(node, process) for node, process in plan.servers() if process.api]
    found = [prove.Served(node, process, counts, {}, True) for node, process in servers]
    return {check.name: check.status for check in prove.judge(plan, found)}


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"0": 3.0, "1": 3.0}, "pass"),
        ({"0": 6.0, "1": 0.0}, "fail"),
        ({"0": 0.0, "1": 0.0}, "fail"),
        ({"0": 1.0, "1": 0.0}, "skipped"),
    ],
    ids=["both", "one idle", "none", "too few requests"],
)
def test_every_rank_must_have_served(counts, status):
    assert set(judged("smollm2-dp2.yaml", counts).values()) == {status}


@pytest.mark.parametrize("count", ["NaN", "+Inf", "-Inf", "many"])
def test_a_counter_that_is_no_number_proves_nothing(count):
    text = f'vllm:request_success_total{{engine="0"}} {count}\n'
    assert prove.served(None, None, text).odd
