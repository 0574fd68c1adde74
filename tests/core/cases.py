"""Cases written for these tests, and short ways to load and plan them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from steps.core.case.build import build_case
from steps.core.case.case import Case
from steps.core.case.source import parse_yaml
from steps.core.plan.cluster import Cluster, ClusterNode, Rehearsal, loopback_nodes
from steps.core.plan.plan import Plan
from steps.core.plan.resolver import Options, resolve

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if not {"clusters", "data"} & set(path.relative_to(ROOT / "configs").parts)
)

#: 1 prefiller and 1 decoder, in the deployment dialect.
SPLIT = textwrap.dedent(
    """\
    test_name: split
    model: demo/tiny
    num_nodes: 2
    npu_per_node: 4
    env_common:
      SERVER_PORT: 8080
      VLLM_USE_MODELSCOPE: true
      SHARED: common
    disaggregated_prefill:
      enabled: true
      prefiller_host_index: [0]
      decoder_host_index: [1]
    deployment:
      - name: prefiller
        envs:
          SHARED: own
        server_cmd: >
          vllm serve demo/tiny --port $SERVER_PORT
          --tensor-parallel-size 4
      - name: decoder
        server_cmd: >
          vllm serve demo/tiny --port ${SERVER_PORT}
          --tensor-parallel-size 4
    benchmarks:
      perf:
        case_type: performance
        dataset_path: demo/data
        request_conf: vllm_api_stream_chat
        dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
        num_prompts: 64
        max_out_len: 32
        batch_size: 8
        baseline: 100
    """
)

#: 2 nodes, one data-parallel group, the second headless.
DATA_PARALLEL = textwrap.dedent(
    """\
    model: demo/tiny
    num_nodes: 2
    npu_per_node: 8
    env_common: &common
      OMP_NUM_THREADS: 4
      SERVER_PORT: 8123
    deployment:
      - envs:
          <<: *common
        server_cmd: |
          vllm serve demo/tiny \\
            --host 0.0.0.0 --port $SERVER_PORT \\
            --data-parallel-size 4 --data-parallel-size-local 2 \\
            --data-parallel-address $LOCAL_IP --data-parallel-rpc-port 13389 \\
            --tensor-parallel-size 4
      - envs:
          <<: *common
        server_cmd: |
          vllm serve demo/tiny --headless \\
            --data-parallel-size 4 --data-parallel-size-local 2 \\
            --data-parallel-start-rank 2 \\
            --data-parallel-address $MASTER_IP --data-parallel-rpc-port 13389 \\
            --tensor-parallel-size 4
    benchmarks:
    """
)

#: 2 prefill nodes and 2 decode nodes, the second of each headless.
TWO_BY_TWO = textwrap.dedent(
    """\
    model: demo/tiny
    num_nodes: 4
    npu_per_node: 8
    disaggregated_prefill:
      enabled: true
      prefiller_host_index: [0, 1]
      decoder_host_index: [2]
    deployment:
      - server_cmd: "vllm serve demo/tiny --port $SERVER_PORT
          -dp 4 -dpl 2 -dpa $MASTER_IP -dpp 13000 -tp 4"
      - server_cmd: "vllm serve demo/tiny --headless
          -dp 4 -dpl 2 -dpr 2 -dpa $MASTER_IP -dpp 13000 -tp 4"
      - server_cmd: "vllm serve demo/tiny --port $SERVER_PORT
          -dp 4 -dpl 2 -dpa $MASTER_IP -dpp 13000 -tp 4"
      - server_cmd: "vllm serve demo/tiny --headless
          -dp 4 -dpl 2 -dpr 2 -dpa $MASTER_IP -dpp 13000 -tp 4"
    benchmarks: {}
    """
)

#: The routing dialect: two ranks a node, one prefill node, one decode node.
ROUTING = textwrap.dedent(
    """\
    model: demo/tiny
    num_nodes: 2
    npu_per_node: 8
    routing:
      type: disaggregated_prefill
      groups: {prefiller: [0], decoder: [1]}
    env_common: &common
      SHARED: "7"
      ASCEND_RT_VISIBLE_DEVICES: ${VISIBLE_DEVICES}
    config:
      - {node_index: 0, port_start: 7100, dp_rpc_port: 12321, dp_size: 2, dp_size_local: 2,
         dp_rank_start: 0, tp_size: 2, pp_size: 2, dp_address: "${NODE_0_IP}"}
      - {node_index: 1, port_start: 7200, dp_rpc_port: 12321, dp_size: 2, dp_size_local: 2,
         dp_rank_start: 0, tp_size: 4}
    templates:
      - node_index: 0
        envs: {<<: *common, SIDE: prefill}
        server_cmd_template: &arguments
          - --port
          - ${PORT}
          - --data-parallel-size
          - ${DP_SIZE}
          - --data-parallel-rank
          - ${DP_RANK}
          - --data-parallel-address
          - ${DP_ADDRESS}
          - --data-parallel-rpc-port
          - ${DP_RPC_PORT}
          - --tensor-parallel-size
          - ${TP_SIZE}
          - --seed
          - $SHARED
      - node_index: 1
        envs: {<<: *common, SIDE: decode}
        server_cmd_template: *arguments
    benchmarks: {}
    """
)
MOONCAKE = (
    "kv_pool:\n  type: mooncake\n  master_port: 50088\n  metrics_port: 9009\n"
    "  config: {global_segment_size: 1GB}\n"
)
MEMCACHE = (
    "kv_pool:\n  type: memcache\n  meta_service_port: 5005\n  config_store_port: 6006\n"
    "  config:\n    meta: {ock.mmc.log_level: info}\n"
    "    local: {ock.mmc.local_service.world_size: 4}\n"
)
DIALECTS = {
    "split": SPLIT,
    "data-parallel": DATA_PARALLEL,
    "two-by-two": TWO_BY_TWO,
    "routing": ROUTING,
    "routing-mooncake": ROUTING + MOONCAKE,
    "routing-memcache": ROUTING + MEMCACHE,
}


def case_of(text: str, file: str = "test.yaml") -> Case:
    """The case of a text.

    Raises:
        CaseError: with its problems.
    """
    return build_case(parse_yaml(text, file))


def case_from(data: Mapping[str, Any]) -> Case:
    """The case of plain data, written as YAML first."""
    return case_of(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True))


def data_of(text: str) -> Any:
    """A case's data, to change and to give to :func:`case_from`."""
    return yaml.safe_load(text)


def cluster_of(size: int, *, rehearsed: bool = False, **more: Any) -> Cluster:
    """Nodes 127.71.9.1 and so on, on which nothing depends on this machine."""
    rehearsal = Rehearsal(0.5, ("crash@1",)) if rehearsed else None
    settings: dict[str, Any] = {
        "known": {"HOME": "/root"},
        "python": "python3",
        **more,
    }
    nodes = settings.pop("nodes", loopback_nodes(size, "71.9"))
    return Cluster("test", "local", nodes, rehearsal=rehearsal, **settings)


def hosts_of(*addresses: str, interface: str = "eth0") -> tuple[ClusterNode, ...]:
    """Nodes at addresses."""
    return tuple(ClusterNode(i, a, interface) for i, a in enumerate(addresses))


def plan_of(text: str, *, rehearsed: bool = False, driver: str = "", **more: Any) -> Plan:
    """The plan of a text on such a cluster."""
    case = case_of(text)
    cluster = cluster_of(case.num_nodes, rehearsed=rehearsed, **more)
    return resolve(case, cluster, Options("run-1", driver))
