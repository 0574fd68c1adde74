"""The base cases of the rules' examples: small, correct, without a finding.

An example of a rule is one of these with a few words changed; the examples are
the rules' tests and stand on their reference page.
"""

from __future__ import annotations

from steps.lint.registry import Example

#: Two nodes, one data-parallel group, the second node headless.
PARALLEL = """\
test_name: example two-node data parallel
model: demo/moe
num_nodes: 2
npu_per_node: 16
env_common:
  SERVER_PORT: 8080
  HCCL_BUFFSIZE: 1024
  OMP_NUM_THREADS: 10
deployment:
  - server_cmd: >
      vllm serve demo/moe
      --host 0.0.0.0
      --port $SERVER_PORT
      --data-parallel-size 4
      --data-parallel-size-local 2
      --data-parallel-address $LOCAL_IP
      --data-parallel-rpc-port 13389
      --tensor-parallel-size 8
      --enable-expert-parallel
      --max-num-seqs 32
      --max-model-len 8192
      --max-num-batched-tokens 8192
  - server_cmd: >
      vllm serve demo/moe
      --headless
      --data-parallel-size 4
      --data-parallel-size-local 2
      --data-parallel-start-rank 2
      --data-parallel-address $MASTER_IP
      --data-parallel-rpc-port 13389
      --tensor-parallel-size 8
      --enable-expert-parallel
      --max-num-seqs 32
      --max-model-len 8192
      --max-num-batched-tokens 8192
benchmarks:
  perf:
    case_type: performance
    dataset_path: vllm-ascend/GSM8K-in3500-bs2800
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 512
    max_out_len: 1500
    batch_size: 128
    request_rate: 0
    baseline: 1800
    threshold: 0.97
  acc:
    case_type: accuracy
    dataset_path: vllm-ascend/gsm8k-lite
    request_conf: vllm_api_general_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_chat_prompt
    max_out_len: 4096
    batch_size: 64
    baseline: 95
    threshold: 5
"""

#: One prefill node, one decode node.
SPLIT = """\
test_name: example prefill and decode
model: demo/moe-w8a8
num_nodes: 2
npu_per_node: 16
env_common:
  SERVER_PORT: 8080
disaggregated_prefill:
  enabled: true
  prefiller_host_index: [0]
  decoder_host_index: [1]
deployment:
  - server_cmd: >
      vllm serve demo/moe-w8a8
      --host 0.0.0.0
      --port $SERVER_PORT
      --data-parallel-size 2
      --tensor-parallel-size 8
      --quantization ascend
      --enforce-eager
      --max-num-seqs 16
      --max-model-len 8192
      --max-num-batched-tokens 8192
      --additional-config '{"enable_cpu_binding": true}'
      --kv-transfer-config
      '{"kv_connector": "MooncakeConnectorV1",
      "kv_role": "kv_producer",
      "kv_port": "14000",
      "engine_id": "0",
      "kv_connector_extra_config": {
        "prefill": {"dp_size": 2, "tp_size": 8},
        "decode": {"dp_size": 4, "tp_size": 4}}}'
  - server_cmd: >
      vllm serve demo/moe-w8a8
      --host 0.0.0.0
      --port $SERVER_PORT
      --data-parallel-size 4
      --tensor-parallel-size 4
      --quantization ascend
      --max-num-seqs 24
      --max-model-len 8192
      --max-num-batched-tokens 256
      --speculative-config '{"method": "mtp", "num_speculative_tokens": 1}'
      --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY",
      "cudagraph_capture_sizes": [4, 8, 16, 32, 48]}'
      --kv-transfer-config
      '{"kv_connector": "MooncakeConnectorV1",
      "kv_role": "kv_consumer",
      "kv_port": "14200",
      "engine_id": "1",
      "kv_connector_extra_config": {
        "prefill": {"dp_size": 2, "tp_size": 8},
        "decode": {"dp_size": 4, "tp_size": 4}}}'
benchmarks:
  perf:
    case_type: performance
    dataset_path: vllm-ascend/GSM8K-in3500-bs2800
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 256
    max_out_len: 1500
    batch_size: 64
    baseline: 900
"""

#: Two nodes whose ranks are servers of their own.
ROUTING = """\
test_name: example external data parallel
model: demo/moe
num_nodes: 2
npu_per_node: 16
routing:
  type: disaggregated_prefill
  groups:
    prefiller: [0]
    decoder: [1]
config:
  - node_index: 0
    port_start: 7100
    dp_rpc_port: 12321
    dp_size: 2
    dp_size_local: 2
    dp_rank_start: 0
    tp_size: 8
    dp_address: ${NODE_0_IP}
  - node_index: 1
    port_start: 7100
    dp_rpc_port: 12321
    dp_size: 4
    dp_size_local: 4
    dp_rank_start: 0
    tp_size: 4
    dp_address: ${NODE_1_IP}
templates:
  - node_index: 0
    envs:
      ASCEND_RT_VISIBLE_DEVICES: ${VISIBLE_DEVICES}
    server_cmd_template:
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
      - --max-model-len
      - "8192"
      - --kv-transfer-config
      - '{"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_producer", "kv_port": "14000",
        "kv_connector_extra_config": {"prefill": {"dp_size": 2, "tp_size": 8},
        "decode": {"dp_size": 4, "tp_size": 4}}}'
  - node_index: 1
    envs:
      ASCEND_RT_VISIBLE_DEVICES: ${VISIBLE_DEVICES}
    server_cmd_template:
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
      - --max-model-len
      - "8192"
      - --kv-transfer-config
      - '{"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_consumer", "kv_port": "14200",
        "kv_connector_extra_config": {"prefill": {"dp_size": 2, "tp_size": 8},
        "decode": {"dp_size": 4, "tp_size": 4}}}'
benchmarks:
  perf:
    case_type: performance
    dataset_path: vllm-ascend/GSM8K-in3500-bs2800
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 256
    max_out_len: 1500
    batch_size: 64
    baseline: 900
"""

BASES = {"parallel": PARALLEL, "split": SPLIT, "routing": ROUTING}


def parallel(*edits: tuple[str, str]) -> Example:
    """The two-node data-parallel case with edits."""
    return Example("parallel", edits)


def split(*edits: tuple[str, str]) -> Example:
    """The prefill/decode case with edits."""
    return Example("split", edits)


def routing(*edits: tuple[str, str]) -> Example:
    """The external data-parallel case with edits."""
    return Example("routing", edits)


def text_of(example: Example) -> str:
    """The example's whole case; each edit changes the first place where its old text stands.

    Raises:
        ValueError: an old text does not stand in the base.
    """
    text = BASES[example.base]
    for old, new in example.edits:
        if old not in text:
            raise ValueError(f"{old!r} is not in the base {example.base}")
        text = text.replace(old, new, 1)
    return text
