"""Cases for tests over hosts: one data-parallel group over all nodes, no proxy."""

from __future__ import annotations

from pathlib import Path

import yaml


def spread(path: Path, nodes: int, hosts: list[str] | None = None, **more: object) -> Path:
    """Write a case whose group spans ``nodes`` machines, one rank on each."""
    common = (
        "vllm serve demo/tiny-chat --host 0.0.0.0 --port $SERVER_PORT --tensor-parallel-size 1 "
        f"--data-parallel-size {nodes} --data-parallel-size-local 1 --data-parallel-address "
        "$MASTER_IP --data-parallel-rpc-port 13389"
    )
    deployment = [
        {"server_cmd": common if i == 0 else f"{common} --headless --data-parallel-start-rank {i}"}
        for i in range(nodes)
    ]
    bench = {
        "case_type": "performance",
        "dataset_path": "demo/arithmetic",
        "request_conf": "vllm_api_stream_chat",
        "dataset_conf": "gsm8k/gsm8k_gen_0_shot_cot_str_perf",
        "max_out_len": 16,
        "batch_size": 2,
        "num_prompts": 4,
        "gates": ["success_ratio == 1"],
    }
    data = {
        "test_name": f"spread-{nodes}",
        "model": "demo/tiny-chat",
        "num_nodes": nodes,
        "npu_per_node": 1,
        "env_common": {"SERVER_PORT": 8080},
        "deployment": deployment,
        "benchmarks": {"chat": bench},
        **({"cluster_hosts": hosts} if hosts else {}),
        **more,
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
