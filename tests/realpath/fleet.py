"""Runs on the tests' own engine, started as a user starts them: by one command, or node by node.

Enters: a case as plain data, words for the engine. Leaves: exit codes and run directories.
Touches: ``python -m ci.run --on local`` and ``python -m steps.node``, loopback, ``tmp_path``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from steps.core.plan.clusters import free_network
from tests import engine
from tests.faults.rehearse import ROOT, Outcome, left_of, undrawn

HERE = Path(engine.__file__).parent
PROXY = HERE / "proxy.py"
SERVE = "vllm serve $MODELS/tiny --served-model-name tiny --host $LOCAL_IP --port $SERVER_PORT"
CHAT = {
    "case_type": "performance",
    "dataset_path_local": "$DATASETS/sums",
    "request_conf": "vllm_api_stream_chat",
    "dataset_conf": "gsm8k/gsm8k_gen_0_shot_cot_str_perf",
    "num_prompts": 6,
    "max_out_len": 8,
    "batch_size": 2,
}
SUMS = {
    **CHAT,
    "case_type": "accuracy",
    "request_conf": "vllm_api_general_chat",
    "dataset_conf": "gsm8k/gsm8k_gen_0_shot_cot_chat_prompt",
    "max_out_len": 64,
    "temperature": 0,
}
Case = dict[str, Any]


def case(nodes: int, knobs: dict[int, str] | None = None, **more: Any) -> Case:
    """One data-parallel group over all nodes; ``knobs`` are words for the engine by node."""
    group = f"--data-parallel-size {nodes} --data-parallel-size-local 1 "
    group += "--data-parallel-address $MASTER_IP --data-parallel-rpc-port 13389"
    deployment = []
    for index in range(nodes):
        rank = f" --headless --data-parallel-start-rank {index}" if index else ""
        deployment.append({"server_cmd": f"{SERVE} {group}{rank}"})
    return _whole(deployment, knobs, **more)


def split(nodes: int, knobs: dict[int, str] | None = None, **more: Any) -> Case:
    """Half of the nodes prefill, half decode, behind upstream's proxy script."""
    half = nodes // 2
    deployment = []
    for index in range(nodes):
        role = "producer" if index < half else "consumer"
        config = {"kv_connector": "MooncakeConnectorV1", "kv_role": f"kv_{role}"}
        config["kv_port"] = "14000" if index < half else "14200"
        config["kv_connector_extra_config"] = {  # type: ignore[assignment]
            side: {"dp_size": 1, "tp_size": 1} for side in ("prefill", "decode")
        }
        words = json.dumps(config)
        deployment.append({"server_cmd": f"{SERVE} --kv-transfer-config '{words}'"})
    sides = {
        "enabled": True,
        "prefiller_host_index": list(range(half)),
        "decoder_host_index": list(range(half, nodes)),
    }
    return _whole(deployment, knobs, disaggregated_prefill=sides, **more)


def routing(pool_port: int, knobs: str = "", **more: Any) -> Case:
    """The routing dialect, two nodes of two ranks, with Mooncake's pool."""
    ranks = {"dp_rpc_port": 12321, "dp_size": 2, "dp_size_local": 2, "dp_rank_start": 0}
    words = ["--served-model-name", "tiny", "--host", "$LOCAL_IP", "--port", "${PORT}"]
    words += ["--data-parallel-size", "${DP_SIZE}", "--data-parallel-rank", "${DP_RANK}"]
    return {
        "test_name": "realpath routing",
        "model": "$MODELS/tiny",
        "num_nodes": 2,
        "npu_per_node": 2,
        "routing": {
            "type": "disaggregated_prefill",
            "groups": {"prefiller": [0], "decoder": [1]},
        },
        "env_common": {"TEST_ENGINE": knobs or "load=0"},
        "config": [
            {"node_index": i, "port_start": 7100, "tp_size": 1, "dp_address": f"${{NODE_{i}_IP}}"}
            | ranks
            for i in (0, 1)
        ],
        "templates": [
            {
                "node_index": i,
                "envs": {"TEST_ENGINE": knobs or "load=0"},
                "server_cmd_template": words,
            }
            for i in (0, 1)
        ],
        "kv_pool": {
            "type": "mooncake",
            "master_port": pool_port,
            "metrics_port": pool_port + 1,
            "config": {"global_segment_size": "1GB"},
        },
        "benchmarks": {"chat": {**CHAT, "gates": ["success_ratio == 1"]}},
        **more,
    }


def pool_port() -> int:
    """A port for a pool's master, which listens on every address: none that a client may get."""
    return random.randrange(20_000, 30_000, 2)


def _whole(deployment: list[Case], knobs: dict[int, str] | None, **more: Any) -> Case:
    for index, words in (knobs or {}).items():
        deployment[index]["envs"] = {"TEST_ENGINE": words}
    return {
        "test_name": f"realpath {len(deployment)}",
        "model": "$MODELS/tiny",
        "num_nodes": len(deployment),
        "npu_per_node": 1,
        "env_common": {"SERVER_PORT": 8080},
        "deployment": deployment,
        "benchmarks": {"chat": {**CHAT, "gates": ["success_ratio == 1"]}},
        **more,
    }


def environment(tmp: Path, **more: str) -> dict[str, str]:
    """A machine with the engine, a model and a data set on it, and nothing of the user's."""
    model, data = tmp / "models" / "tiny", tmp / "datasets" / "sums"
    scratch = tmp / "scratch"
    for folder in (model, data, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    rows = [{"question": f"What is {n} + 4?", "answer": f"#### {n + 4}"} for n in range(8)]
    for name in ("train", "test"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = [str(HERE / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(HERE / "lib"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp),
        "TMPDIR": str(scratch),
        "MODELS": str(tmp / "models"),
        "DATASETS": str(tmp / "datasets"),
        "DISAGGREGATED_PREFILL_PROXY_SCRIPT": str(PROXY),
        "TEST_PIP_LOG": str(tmp / "pip.log"),
        **more,
    }


def written(tmp: Path, data: Case) -> Path:
    """The case's file."""
    path = tmp / "case.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def local(
    tmp: Path, data: Case, *options: str, seconds: float = 100, draw: bool = False, **env: str
) -> Outcome:
    """``--on local`` to its end; nothing may be left."""
    path, whole = tmp / "run", environment(tmp, **env)
    argv = [sys.executable, "-m", "ci.run", str(written(tmp, data)), "--on", "local"]
    done = subprocess.run(
        [*argv, "--run-dir", str(path), *options],
        cwd=ROOT,
        env=whole if draw else undrawn(whole, tmp),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    found = Outcome(done.returncode, done.stdout, path)
    assert (path / "verdict.json").exists(), found.output
    assert not found.verdict["rehearsed"]
    if (path / "plan.json").exists():
        assert left_of(found, tmp) == []
    return found


class Nodes:
    """Node programs, each started as a person would on its machine."""

    def __init__(self, tmp: Path, data: Case, *options: str, **env: str) -> None:
        network, count = free_network(28999), data["num_nodes"]
        self.hosts = [f"127.{network}.{index + 1}" for index in range(count)]
        file = written(tmp, {**data, "cluster_hosts": self.hosts})
        self.dirs = [tmp / f"run-{index}" for index in range(count)]
        self.logs = [tmp / f"node-{index}.txt" for index in range(count)]
        self.running = []
        base = environment(tmp, MULTINODE_TOKEN="the-token-of-a-run", **env)
        for index in range(count):
            argv = [sys.executable, "-m", "steps.node", "--case", str(file)]
            argv += ["--node-index", str(index), "--run-dir", str(self.dirs[index]), *options]
            with self.logs[index].open("wb") as out:
                self.running.append(
                    subprocess.Popen(
                        argv, cwd=ROOT, env=base, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                    )
                )

    def codes(self, seconds: float = 100) -> list[int]:
        """Every exit code; killed, and failed, when one does not end."""
        try:
            return [process.wait(seconds) for process in self.running]
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text) from None
        finally:
            for process in self.running:
                process.kill()

    @property
    def text(self) -> str:
        """What all of them said."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def record(self, index: int) -> dict[str, Any]:
        """A node's own record."""
        path = self.dirs[index] / f"node-{index}" / "record.json"
        return json.loads(path.read_text())  # type: ignore[no-any-return]


def checks(found: Outcome) -> dict[str, str]:
    """The leader's checks."""
    record = json.loads((found.path / "node-0" / "record.json").read_text())
    return {check["name"]: check["status"] for check in record["checks"]}


def cause(found: Outcome, *fields: str) -> Sequence[Any]:
    """Fields of the verdict's cause."""
    return tuple((found.verdict["cause"] or {}).get(name) for name in fields)
