"""``--on local`` without ``--rehearse``: what a rehearsal skips or replaces."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.realpath import fleet
from tests.realpath.fleet import CHAT, SUMS, case, cause, checks, local, pool_port, routing, split


def bench(**more: Any) -> dict[str, Any]:
    """One performance benchmark."""
    return {"chat": {**CHAT, **more}}


def notes(tmp: Path) -> list[dict[str, Any]]:
    """What the fake pip was asked."""
    path = tmp / "pip.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def living(words: str) -> list[int]:
    """Processes with these words in their command line."""
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if words in " ".join([*(p.info["cmdline"] or ()), ""])]


# Whole fleets


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("shape", [case, split], ids=["group", "split"])
def test_a_fleet_passes_and_its_gates_are_judged(shape, nodes, tmp_path):
    gates = ["success_ratio == 1", "output_throughput > 0.1"]
    found = local(tmp_path, shape(nodes, benchmarks=bench(gates=gates)), draw=nodes == 2)
    assert (found.code, found.verdict["verdict"]) == (0, "pass"), found.output
    assert (found.path / "report.html").exists() == (nodes == 2 and bool(find_spec("matplotlib")))
    [result] = found.verdict["benchmarks"]
    assert result["driver"] == "aisbench"
    assert [gate["passed"] for gate in result["gates"]] == [True, True]
    assert result["requests"]["ok"] == 6
    [config] = found.path.glob("node-0/bench/*/case.json")
    asked = json.loads(config.read_text())
    assert asked["datasets"][0]["path"] == str(tmp_path / "datasets" / "sums")
    assert asked["models"][0]["path"] == str(tmp_path / "models" / "tiny")
    if shape is split:
        [argv] = [
            process["argv"]
            for process in found.plan["nodes"][0]["processes"]
            if process["kind"] == "proxy"
        ]
        assert argv[1] == str(fleet.PROXY)
        assert checks(found)["handoff"] == "pass"


def test_a_miss_stands_in_upstreams_results_file(tmp_path):
    found = local(tmp_path, case(2, benchmarks=bench(gates=["output_throughput > 9000000"])))
    assert (found.code, found.verdict["verdict"]) == (1, "performance"), found.output
    [results] = found.path.glob("results-*.json")
    [task] = json.loads(results.read_text())["tasks"]
    assert task["pass_fail"] == "fail"
    assert 0 < task["metrics"]["Output_Token_Throughput(OTT)"] < 9000000


def test_a_proxy_that_hands_nothing_over_is_found_out(tmp_path):
    found = local(tmp_path, split(2, {0: "forgets"}))
    assert found.code == 1, found.output
    assert cause(found, "kind", "verdict") == ("proof", "functional")
    assert checks(found)["handoff"] == "fail"


def test_a_kv_pool(tmp_path):
    found = local(tmp_path, routing(pool_port()))
    assert found.code == 0, found.output
    assert (found.path / "node-1" / "mooncake.json").is_file()
    assert "Master service started" in (found.path / "node-0" / "pool.log").read_text()


def test_a_kv_pool_whose_master_ends(tmp_path):
    found = local(tmp_path, routing(pool_port()), TEST_ENGINE="master_code=3")
    assert found.code == 1, found.output
    assert cause(found, "process", "exit_code") == ("pool", 3)


def test_a_kv_pool_whose_master_never_listens(tmp_path):
    data = routing(pool_port())
    found = local(tmp_path, data, "--timeout", "pool=2", TEST_ENGINE="master=60")
    assert (found.code, found.verdict["verdict"]) == (4, "hang"), found.output
    assert cause(found, "process", "phase") == ("pool", "pool")


# Install


INSTALL = {"special_dependencies": {"modelscope": "1.18.1"}}


@pytest.mark.parametrize("nodes", [2, 4])
def test_every_node_installs_before_any_server_starts(nodes, tmp_path):
    found = local(
        tmp_path, case(nodes, **INSTALL), "--timeout", "preflight=8", TEST_PIP="sleep=0.3"
    )
    assert found.code == 0, found.output
    asked = notes(tmp_path)
    assert [entry["argv"] for entry in asked] == [["install", "modelscope==1.18.1"]] * nodes
    over = max(entry["over"] for entry in asked)
    servers = [e["time"] for e in found.events if e["what"] == "started"]
    assert len(servers) > nodes - 1
    assert min(servers) >= over


def test_one_node_installs(tmp_path):
    found = local(tmp_path, case(1, **INSTALL))
    assert found.code == 0, found.output
    assert len(notes(tmp_path)) == 1
    assert "special_dependencies" not in checks(found)


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_install_that_fails_is_the_cause(nodes, tmp_path):
    found = local(tmp_path, case(nodes, **INSTALL), "--timeout", "preflight=8", TEST_PIP="fail=1")
    assert found.code == 3, found.output
    assert cause(found, "kind", "verdict", "phase") == ("install", "infra", "install")
    assert "No matching distribution" in "".join(found.verdict["cause"]["evidence"])


def test_a_worker_s_install_that_fails_is_the_cause(tmp_path):
    data = case(2, **INSTALL)
    data["deployment"][1]["envs"] = {"TEST_PIP": "fail=1"}
    found = local(tmp_path, data, "--timeout", "preflight=8")
    assert found.code == 3, found.output
    assert cause(found, "kind", "node") == ("install", 1)


def test_an_install_that_takes_too_long_is_ended(tmp_path):
    found = local(tmp_path, case(1, **INSTALL), "--timeout", "install=1", TEST_PIP="sleep=300")
    assert (found.code, found.verdict["verdict"]) == (4, "hang"), found.output
    assert cause(found, "phase") == ("install",)
    assert living("modelscope==1.18.1 ") == []


# What an artifact store does not take


def test_what_an_engine_leaves_can_be_uploaded(tmp_path):
    found = local(tmp_path, case(2, {1: "litter"}))
    assert found.code == 0, found.output
    work = found.path / "node-1" / "work"
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*")) == [
        "trace 12_30 _a__", "trace 12_30 _a__.1", "trace 12_30 _a__.1/rank_0_1.json",
    ]  # fmt: skip
    record = json.loads((found.path / "node-1" / "record.json").read_text())
    assert "work/trace 12_30 _a__.1/rank_0_1.json" in {a["path"] for a in record["artifacts"]}
    [told] = [e["text"] for e in found.events if "artifact stores" in e.get("text", "")]
    for words in ("pipe (a FIFO)", "ipc:0 (a socket)", "endless (a link to /dev/zero)", "12:30"):
        assert words in told, told


def test_nor_does_what_a_node_that_died_left_break_an_upload(tmp_path):
    found = local(tmp_path, case(2, {1: "litter=alone"}))
    assert found.code == 3, found.output
    work = found.path / "node-1" / "work"
    assert {path.name for path in work.iterdir()} == {"trace 12_30 _a__", "trace 12_30 _a__.1"}
    assert any("removed node-1/work/pipe (a FIFO)" in e.get("text", "") for e in found.events)


# AISBench and its gates


def test_a_missed_gate_is_the_product_s_failure(tmp_path):
    found = local(tmp_path, case(2, benchmarks=bench(baseline=1e7)))
    assert (found.code, found.verdict["verdict"]) == (1, "performance"), found.output
    assert found.verdict["benchmarks"][0]["gates"][0]["passed"] is False


@pytest.mark.parametrize(("knobs", "code", "verdict"), [("", 0, "pass"), ("wrong", 1, "accuracy")])
def test_accuracy_is_judged(knobs, code, verdict, tmp_path):
    entry = {**SUMS, "baseline": 100, "threshold": 5}
    found = local(tmp_path, case(2, {0: knobs}, benchmarks={"sums": entry}))
    assert (found.code, found.verdict["verdict"]) == (code, verdict), found.output


def test_requests_that_fail_are_no_pass(tmp_path):
    found = local(tmp_path, case(1, {0: "fail=4-5"}))
    assert (found.code, found.verdict["verdict"]) == (1, "functional"), found.output
    assert found.verdict["benchmarks"][0]["requests"]["failed"] == 2


def test_a_real_fleet_may_fail_more_completions_at_first_than_a_rehearsed_one(tmp_path):
    found = local(tmp_path, case(1, {0: "fail=1-6"}))
    assert found.code == 0, found.output


def test_the_smoke_client_judges_no_speed_and_says_so(tmp_path):
    gates = ["success_ratio == 1", "output_throughput > 10000000"]
    found = local(tmp_path, case(2, benchmarks=bench(gates=gates)), "--bench", "smoke")
    assert found.code == 0, found.output
    assert [gate["passed"] for gate in found.verdict["benchmarks"][0]["gates"]] == [True, None]


def test_confirm_does_not_measure_a_warm_cache(tmp_path):
    """Cold, every first token takes 0.3 s; the second time it takes none."""
    gates = ["ttft_mean_ms <= 150"]
    data = case(1, {0: "ttft=0.3 warm=0"}, benchmarks=bench(gates=gates, confirm=2))
    found = local(tmp_path, data)
    assert (found.code, found.verdict["verdict"]) == (1, "performance"), found.output


def test_confirm_keeps_a_lasting_miss(tmp_path):
    gates = ["ttft_mean_ms <= 100"]
    data = case(1, {0: "ttft=0.2"}, benchmarks=bench(gates=gates, confirm=2))
    found = local(tmp_path, data)
    assert (found.code, found.verdict["verdict"]) == (1, "performance"), found.output
    assert len(list((found.path / "node-0" / "bench").glob("*/confirm-*"))) == 2


# History


def test_what_counts_goes_into_the_history(tmp_path):
    store = tmp_path / "history"
    found = local(tmp_path, case(1), MULTINODE_HISTORY=str(store))
    assert found.code == 0, found.output
    [path] = store.rglob("*.json")
    kept = json.loads(json.loads(path.read_text())["result"])
    assert kept["rehearsed"] is False
    assert kept["benchmarks"]["chat"]["output_throughput"] > 0
    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "ci.nightly.trend",
            "--store",
            str(store),
            str(tmp_path / "case.yaml"),
        ],
        cwd=fleet.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "case: 1 runs" in told.stdout
    assert "over the last 1 good runs" in told.stdout, told.stdout
    assert "rehearsed" not in told.stdout


# Deaths, with the right cause


@pytest.mark.parametrize(
    ("knobs", "node", "verdict", "fields"),
    [
        ("crash=load code=7", 1, "startup", {"exit_code": 7, "phase": "load"}),
        ("crash=start code=-9", 0, "startup", {"signal": "SIGKILL"}),
        ("crash=request:3 code=5", 0, "crash", {"exit_code": 5, "phase": "bench"}),
        ("log_mb=20 crash=load", 1, "startup", {"exit_code": 1}),
    ],
)
def test_a_death_has_its_node_and_its_code(knobs, node, verdict, fields, tmp_path):
    found = local(tmp_path, case(2, {node: knobs}))
    assert (found.code, found.verdict["verdict"]) == (1, verdict), found.output
    assert cause(found, "node", "process") == (node, "server"), found.output
    assert {name: found.verdict["cause"][name] for name in fields} == fields
    if "-9" not in knobs:
        assert "told to end" in "".join(found.verdict["cause"]["evidence"])


def test_a_decoder_of_four_that_dies_under_load(tmp_path):
    found = local(tmp_path, split(4, {3: "crash=request:2 code=5"}))
    assert (found.code, found.verdict["verdict"]) == (1, "crash"), found.output
    assert cause(found, "node", "process", "exit_code") == (3, "server", 5)


def test_headless_ranks_that_hang_in_load_are_named(tmp_path):
    found = local(tmp_path, case(2, {1: "hang=load"}), "--timeout", "load=4")
    assert found.code == 4
    verdict, reason = cause(found, "verdict", "reason")
    assert verdict == "hang"
    assert "waits for headless ranks that nobody can ask: node-1 server" in reason


def test_a_long_line_does_not_decide(tmp_path):
    found = local(tmp_path, case(2, {1: "dashes=150 crash=load code=7"}))
    assert (found.code, found.verdict["verdict"]) == (1, "startup"), found.output


# Deadlines


def test_a_load_that_takes_too_long(tmp_path):
    found = local(tmp_path, case(2, {0: "load=60"}), "--timeout", "load=2")
    assert (found.code, found.verdict["verdict"]) == (4, "hang"), found.output
    assert cause(found, "node", "process", "phase") == (0, "server", "load")


def test_an_engine_that_answers_no_more(tmp_path):
    found = local(
        tmp_path, case(1, {0: "hang=request:4"}), "--timeout", "bench=3", "--bench", "smoke"
    )
    assert (found.code, found.verdict["verdict"]) == (4, "hang"), found.output
    assert cause(found, "node", "process", "phase") == (0, "server", "bench")


@pytest.mark.timing
def test_a_deadline_is_not_overrun_to_find_the_culprit(tmp_path):
    data = case(1, {0: "hang=request:4"})
    found = local(tmp_path, data, "--timeout", "bench=3")
    assert (found.code, found.verdict["verdict"]) == (4, "hang"), found.output
    assert cause(found, "node", "process", "phase") == (0, "server", "bench")
    assert found.verdict["cause"]["seconds"] < 40


# Preflight


def test_what_preflight_finds(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as holder:
        port = holder.getsockname()[1]
        data = case(2, benchmarks=bench(dataset_path_local="$DATASETS/none"), model="/absent")
        for entry in data["deployment"]:
            entry["server_cmd"] = entry["server_cmd"].replace("$MODELS/tiny", "/absent")
        data["env_common"]["SERVER_PORT"] = port
        found = local(tmp_path, data, TEST_NPU="python3")
    assert (found.code, found.verdict["verdict"]) == (3, "infra"), found.output
    said = found.output + json.dumps(found.verdict)
    for words in (
        "the model directory /absent is not there",
        "device 0/0 is busy: process python3 (pid 4711) holds it",
        "the data set",
        f"port {port} (api of server) is in use by",
    ):
        assert words in said, said
    assert not list(found.path.glob("node-*/server.log"))


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"TEST_NPU": "error"}, "npu-smi info failed with code 1: dcmi model initialized failed"),
        ({"MULTINODE_AIS_BENCH": "/nowhere/ais_bench"}, "/nowhere/ais_bench is not on the leader"),
        ({"DISAGGREGATED_PREFILL_PROXY_SCRIPT": "no.py"}, "the proxy script"),
    ],
)
def test_what_is_missing_is_named(env, words, tmp_path):
    found = local(tmp_path, split(2), **env)
    assert (found.code, found.verdict["verdict"]) == (3, "infra"), found.output
    assert words in found.output


def test_versions_are_the_engines_and_differences_are_shown(tmp_path):
    data = case(2)
    for index, version in enumerate(("0.32.0", "0.31.9")):
        info = tmp_path / f"site-{index}" / f"vllm-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        told = {"url": "https://git/vllm", "vcs_info": {"commit_id": f"{index}" * 40}}
        (info / "direct_url.json").write_text(json.dumps(told))
        data["deployment"][index]["envs"] = {"PYTHONPATH": str(info.parent)}
    found = local(tmp_path, data)
    assert found.code == 0, found.output
    for index, version in enumerate(("0.32.0", "0.31.9")):
        record = json.loads((found.path / f"node-{index}" / "record.json").read_text())
        assert record["versions"]["vllm"] == version
        assert record["versions"]["vllm-commit"] == f"{index}" * 40
    [row] = [line for line in found.output.splitlines() if line.startswith("| vllm ")]
    assert "0.32.0" in row and "0.31.9" in row
    both = f"{'0' * 40} (node 0), {'1' * 40} (node 1)"
    assert f'name="version.vllm-commit" value="{both}"' in (found.path / "junit.xml").read_text()


# Nothing left


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "session",
        "bare",
    ],
)
def test_no_stray_outlives_a_run(kind, tmp_path):
    found = local(tmp_path, case(2, {0: f"stray={kind}", 1: f"stray={kind}"}))
    left = living(f"stray of {tmp_path}")
    for pid in left:
        os.kill(pid, 9)
    assert left == [], found.output
    assert found.code == 0, found.output
