"""Measuring again: a further measurement finds the caches as the first did, or does not count."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steps.bench_drivers import caches, practice, smoke
from steps.core.plan.plan import Access, Plan, Process
from tests.bench import ais, engine
from tests.bench.conftest import Bench
from tests.faults.rehearse import undrawn

ROOT = Path(__file__).parents[2]
CASE = """\
test_name: warm
model: demo/m
num_nodes: 1
npu_per_node: 1
env_common: {{SERVER_PORT: {port}}}
deployment:
  - server_cmd: >
      vllm serve demo/m --host 127.0.0.1 --port $SERVER_PORT --tensor-parallel-size 1 {words}
proof: false
benchmarks:
  chat:
    case_type: performance
    dataset_path_local: {folder}/gsm8k
    model_path: {folder}/tokenizer
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 16
    max_out_len: 16
    batch_size: 2
    baseline: 1000
    {more}
"""
COLD = 557.0973


def nap(_: float) -> None:
    """No wait at all."""


def free_port() -> int:
    """A port that nobody has, on any address: other tests run beside."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def program(path: Path, module: ModuleType) -> Path:
    """A module of the tests as a program."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{module.__file__}" "$@"\n')
    path.chmod(0o755)
    return path


def run(
    tmp_path: Path, reset: str, more: str = "", words: str = "", *, driver: str = "aisbench"
) -> tuple[int, dict[str, Any]]:
    """A run's code and its benchmark, on this machine with the tests' engine, nothing rehearsed."""
    practice.write_arithmetic(tmp_path / "gsm8k")
    practice.write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "case.yaml").write_text(
        CASE.format(more=more, words=words, folder=tmp_path, port=free_port())
    )
    vllm = program(tmp_path / "bin" / "vllm", engine)
    env = {
        **os.environ, "PATH": f"{vllm.parent}:{os.environ['PATH']}", "ENGINE_SLOW": "0.4",
        "ENGINE_RESET": reset, "MULTINODE_CACHE": str(tmp_path / "cache"),
        "MULTINODE_AIS_BENCH": str(program(tmp_path / "ais_bench", ais)),
    }  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "ci.run", str(tmp_path / "case.yaml"), "--on", "local",
            "--bench", driver, "--run-dir", str(tmp_path / "run"),
        ],
        cwd=ROOT, env=undrawn(env, tmp_path),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    [found] = verdict["benchmarks"]
    assert found["note"] in done.stdout
    return done.returncode, found


def speeds(found: dict[str, Any]) -> list[float]:
    return [each["output_throughput"] for each in found["runs"]]


@pytest.mark.parametrize(
    ("reset", "words", "said"),
    [
        ("works", "", "the prefix caches of every engine were reset in between"),
        ("", "--no-enable-prefix-caching", "prefix caching is off on every engine"),
    ],
)
def test_a_real_miss_is_confirmed_before_cold_caches(
    tmp_path: Path, reset: str, words: str, said: str
) -> None:
    code, found = run(tmp_path, reset, words=words)
    assert (code, found["status"], speeds(found)) == (1, "fail", [COLD] * 3)
    assert "median of 3 measurements" in found["note"] and said in found["note"]


@pytest.mark.parametrize(
    ("reset", "said"),
    [
        ("", "not measured again: node-0 server has no /reset_prefix_cache"),
        ("refuses", "not measured again: node-0 server did not reset its prefix cache"),
        ("lies", "does not count: the caches gave it 100 % of its prompt tokens, the first 0 %"),
    ],
)
def test_a_real_miss_stays_red_where_caches_stay_warm(
    tmp_path: Path, reset: str, said: str
) -> None:
    code, found = run(tmp_path, reset)
    assert (code, found["status"], speeds(found)) == (1, "fail", [])
    assert found["fault"] == "performance" and found["metrics"]["output_throughput"] == COLD
    assert said in found["note"]


@pytest.mark.parametrize(("reset", "runs"), [("works", [COLD] * 3), ("", [])])
def test_a_repetition_finds_the_caches_as_the_first_did(
    tmp_path: Path, reset: str, runs: list[float]
) -> None:
    code, found = run(tmp_path, reset, more="repeat: 3\n    confirm: 0")
    assert (code, speeds(found)) == (1, runs)


def test_the_smoke_driver_sends_other_prompts(tmp_path: Path) -> None:
    code, found = run(tmp_path, "", more="repeat: 2", driver="smoke")
    assert code == 0
    assert "each time with other prompts (node-0 server has no /reset_prefix" in found["note"]
    assert all(ttft["ttft_min_ms"] >= 400 for ttft in found["runs"])


def plan_of(
    bench: Bench, *words: str, kind: str = "server", case_type: str = "performance"
) -> Plan:
    plan = bench.run.plan
    [node] = plan.nodes
    [server] = node.processes
    changed: Process = replace(server, argv=(*server.argv, *words))
    more = () if kind == "server" else (replace(server, name=kind, kind=kind, api=""),)
    entry = replace(
        plan.benchmarks[0], benchmark=replace(plan.benchmarks[0].benchmark, case_type=case_type)
    )
    node = replace(node, processes=(changed, *more))
    return replace(plan, nodes=(node,), benchmarks=(entry, entry))


def connector(name: str, **more: object) -> tuple[str, str]:
    return "--kv-transfer-config", json.dumps({"kv_connector": name, **more})


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ((), "pool", "the KV pool keeps prefixes"),
        (connector("LMCacheConnectorV1"), "server", "the connector LMCacheConnectorV1 may keep"),
        (
            connector("MultiConnector", kv_connector_extra_config={
                "connectors": [{"kv_connector": "MooncakeConnectorV1"},
                               {"kv_connector": "AscendStoreConnector"}]}),
            "server", "the connector AscendStoreConnector may keep",
        ),
        (("--no-enable-prefix-caching",), "pool", "the KV pool keeps prefixes"),
    ],
)  # fmt: skip
def test_what_a_reset_does_not_reach_is_not_reset(
    bench: Bench, words: tuple[str, ...], kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_ask", lambda method, url: (200, ""))
    plan = plan_of(bench, *words, kind=kind)
    fixed = caches.way(plan, 0, False, nap)
    assert not fixed.ok and said in fixed.text
    varied = caches.way(plan, 0, True, nap)
    assert varied.ok and varied.prompts and said in varied.text


def test_a_benchmark_that_began_warm_is_not_measured_again_cold(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_ask", lambda method, url: (200, ""))
    plan = plan_of(bench)
    assert caches.way(plan, 0, False, nap).ok
    second = caches.way(plan, 1, False, nap)
    assert not second.ok and "with the same data set" in second.text
    colder = caches.way(plan, 1, False, nap, confirms=True)
    assert colder.ok and "colder than at first" in colder.text


def test_without_caches_or_for_a_score_nothing_need_be_reset(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_ask", lambda method, url: pytest.fail("nothing to ask"))
    off = caches.way(plan_of(bench, "--no-enable-prefix-caching"), 1, False, nap)
    assert off.ok and "is off on every engine" in off.text
    assert caches.way(plan_of(bench, case_type="accuracy"), 1, False, nap) == caches.Way(True, "")
    both = plan_of(bench, "--no-enable-prefix-caching", "--enable_prefix_caching")
    monkeypatch.setattr(caches, "_ask", lambda method, url: (404, ""))
    assert not caches.way(both, 0, False, nap).ok


def test_every_engine_and_the_proxy_are_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answers: dict[str, tuple[int, str]] = {}

    def ask(method: str, to: Access) -> tuple[int, str]:
        asked.append(to.url)
        return next((answers[part] for part in answers if part in to.url), (200, ""))

    monkeypatch.setattr(caches, "_ask", ask)
    plan = plan_of(bench, kind="proxy")
    plan = replace(plan, endpoint=replace(plan.endpoint, url="http://proxy"))
    assert caches.reset(plan, nap) == ""
    paths = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
    server = plan.nodes[0].processes[0].api
    assert asked == [base + path for base in (server, "http://proxy") for path in paths]
    for status in (400, 404, 405):
        answers["http://proxy"] = (status, "")
        assert caches.reset(plan, nap) == ""
    answers["http://proxy"] = (502, "")
    assert "the proxy did not reset its prefix cache: HTTP 502" in caches.reset(
        plan, lambda _: None
    )
    answers["/reset_mm_cache"] = (500, "")
    assert "failed /reset_mm_cache" in caches.reset(plan, nap)
    answers[server] = (0, "ConnectionError: refused")
    assert "refused" in caches.reset(plan, nap)


def test_what_the_caches_gave_is_read_from_every_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        'vllm:prefix_cache_queries_total{engine="0"} 100.0\n'
        'vllm:prefix_cache_hits_total{engine="0"} 10\nvllm:prefix_cache_hits_total{engine="1"} 5\n'
    )
    monkeypatch.setattr(caches, "_ask", lambda method, url: (200, text))
    assert caches.given(plan_of(bench)) == (15.0, 100.0)
    assert caches.share((15, 100), (35, 200)) == 0.2
    assert caches.share(None, (35, 200)) is None and caches.share((1, 5), (1, 5)) is None
    assert caches.warmer(0.0, 0.2) and not caches.warmer(0.2, 0.21) and not caches.warmer(None, 1)
    for odd in (
        (500, text),
        (200, ""),
        *((200, f"{text}vllm:prefix_cache_hits_total {odd}\n") for odd in ("many", "NaN")),
    ):
        monkeypatch.setattr(caches, "_ask", lambda method, url, odd=odd: odd)
        assert caches.given(plan_of(bench)) is None


def test_the_prompts_of_two_numbers_share_nothing(bench: Bench) -> None:
    job = bench.job(bench.run.plan.benchmarks[0].benchmark.name)

    def prompts(number: int) -> list[str]:
        load = smoke._Load(replace(job, prompts=number))
        bodies = [json.loads(load._body(index)) for index in range(8)]
        return [body["messages"][0]["content"] for body in bodies]

    assert prompts(0) == prompts(0)
    assert len({prompt[:4] for number in range(3) for prompt in prompts(number)}) == 24
