"""The results file of the upstream harness, as those read it who come from there.

Enters: a run that is over. Leaves: values. Touches nothing.

Upstream (vllm-ascend 0.30) writes nothing when a benchmark misses; here the file is written
whatever the verdict, with the miss in it. A number it knows by a metric of ours has its name
for it, rounded as it rounds; others are left out, so that its own tools can read the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steps.core.case.case import Benchmark
from steps.core.case.gates import ACCEPTANCE
from steps.core.plan.plan import LEADER, NodePlan, Plan, Process
from steps.core.plan.scope import DEFAULT_ENV
from steps.core.record.records import BenchResult, Record
from steps.core.record.verdict import Verdict
from steps.core.vllm import commandline
from steps.core.vllm.commandline import Command

#: Kind of benchmark -> metric of ours -> upstream's name for it.
METRICS = {
    "accuracy": {"accuracy": "accuracy"},
    "performance": {
        "duration_ms": "Benchmark_Duration(BD)",
        "prefill_throughput": "Prefill_Token_Throughput(PTT)",
        "input_throughput": "Input_Token_Throughput(ITT)",
        "output_throughput": "Output_Token_Throughput(OTT)",
        "total_throughput": "Total_Token_Throughput(TTT)",
    },
    "spec_decode": {name: name for name in ACCEPTANCE},
}
#: Variables that say nothing of the case: they differ from run to run.
_PORTS = frozenset(("SERVER_PORT", "ENCODE_PORT", "PD_PORT", "PROXY_PORT"))
_NETWORK = frozenset(
    (
        *("HCCL_IF_IP", "HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"),
        *("LOCAL_IP", "NIC_NAME", "MASTER_IP", "DISAGGREGATED_PREFILL_PROXY_SCRIPT"),
    )
)
#: What the harness adds where it starts a pool.
_POOL = frozenset(("MOONCAKE_MASTER", "MOONCAKE_CONFIG_PATH", "MMC_LOCAL_CONFIG_PATH"))
_STAND_INS = "REHEARSAL_"
_SIDES = {"prefiller": "prefill", "decoder": "decode"}

Server = tuple[NodePlan, Process]
Servers = Sequence[Server]


def results(
    plan: Plan, verdict: Verdict, found: Mapping[int, Record | None]
) -> dict[str, dict[str, Any]]:
    """File name -> content of the results file."""
    form = FORMS[plan.dialect]
    servers = [
        (node, replace(process, env=_own(plan, process))) for node, process in plan.servers()
    ]
    leader = found.get(LEADER)
    versions = dict(leader.versions) if leader else {}
    tasks = [
        _task(entry.benchmark, result)
        for entry, result in zip(plan.benchmarks, verdict.benchmarks, strict=True)
    ]
    content = {
        "model_name": plan.model,
        "hardware": _hardware(plan),
        "dtype": _dtype(plan.model, servers),
        "feature": list(form.features(servers)),
        "vllm_version": versions.get("vllm", ""),
        "vllm_ascend_version": versions.get("vllm-ascend-commit")
        or versions.get("vllm-ascend", ""),
        "tasks": tasks,
        "serve_cmd": form.commands(servers),
        "environment": form.environment(servers),
    }
    if form.judged:
        content["pass_fail"] = "pass" if verdict.verdict == "pass" else "fail"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plan.case_name).strip("-") or "case"
    return {f"results-{name[:80]}.json": content}


def _task(entry: Benchmark, result: BenchResult) -> dict[str, Any]:
    _, _, named = entry.dataset_path.partition("/")
    configured = entry.dataset_conf.partition("/")[0]
    asked = {
        "num_prompts": entry.num_prompts,
        "max_out_len": entry.max_out_len,
        "batch_size": entry.batch_size,
        "request_rate": _plain(entry.request_rate),
    }
    baseline = list(entry.rates) or _plain(entry.baseline)
    target = {"baseline": baseline, "threshold": _plain(entry.threshold)}
    target = {key: value for key, value in target.items() if value is not None}
    return {
        "name": named or entry.dataset_path or configured or entry.name,
        "metrics": {
            name: round(result.metrics[own], 4)
            for own, name in METRICS.get(entry.case_type, {}).items()
            if own in result.metrics
        },
        "test_input": {key: value for key, value in asked.items() if value is not None},
        **({"target": target} if target else {}),
        "pass_fail": "pass" if result.status == "pass" else "fail",
    }


def _plain(number: float | None) -> float | int | None:
    """A whole number as the case has it: without a point."""
    return int(number) if number is not None and number == int(number) else number


def _hardware(plan: Plan) -> str:
    if plan.rehearsed:
        return "rehearsal"
    known = re.search(r"a[23]", plan.cluster.name, re.IGNORECASE)
    return known[0].upper() if known else plan.cluster.name


def _dtype(model: str, servers: Servers) -> str:
    methods = {command.text("--quantization") for command in _commands(servers)}
    return "w8a8" if "w8a8" in model.lower() and "ascend" in methods else "bf16"


def _commands(servers: Servers) -> list[Command]:
    return [commandline.read(process.argv) for _, process in servers]


def _own(plan: Plan, process: Process) -> dict[str, str]:
    """The case's own variables: neither the harness's, nor the cluster's, nor the network's."""
    others = {*DEFAULT_ENV.items(), *plan.cluster.env.items()}
    pooled = any(each.kind == "pool" for each in plan.nodes[LEADER].processes)
    left_out = _NETWORK | _POOL if pooled else _NETWORK
    return {
        key: value
        for key, value in process.env.items()
        if key not in left_out and (key, value) not in others and not key.startswith(_STAND_INS)
    }


def _without_ports(env: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if key not in _PORTS}


# What differs between the dialects


def _features_of_first(servers: Servers) -> Iterator[str]:
    """Features of the first server's command, in upstream's order."""
    (command, *_), env = _commands(servers), servers[0][1].env
    extra = command.mapping("--additional-config")
    for key, name in (("enable_fused_mc2", "fused_mc2"), ("enable_mlapo", "mlapo")):
        if extra.get(key):
            yield name
    if extra.get("weight_nz_mode") or extra.get("enable_weight_nz_layout"):
        yield "weight_nz_layout"
    for key, name in (
        ("torchair_graph_config", "torchair_graph"),
        ("ascend_scheduler_config", "ascend_scheduler"),
    ):
        inner = extra.get(key)
        if isinstance(inner, dict) and inner.get("enabled"):
            yield name
    if command.mapping("--compilation-config").get("cudagraph_mode"):
        yield "aclgraph"
    if drafting := command.mapping("--speculative-config"):
        yield str(drafting.get("method", "speculative"))
    if command.has("--enable-expert-parallel"):
        yield "expert_parallel"
    yield from _topk([env])


def _features_of_any(servers: Servers) -> Iterator[str]:
    """Features that any rank has, in upstream's order."""
    commands = _commands(servers)
    for flag, name in (
        ("--async-scheduling", "async_scheduling"),
        ("--enable-expert-parallel", "expert_parallel"),
        ("--speculative-config", "speculative"),
    ):
        if any(command.has(flag) for command in commands):
            yield name
    if any("cudagraph_mode" in word for _, process in servers for word in process.argv):
        yield "aclgraph"
    for key, name in (("enable_fused_mc2", "fused_mc2"), ("enable_mlapo", "mlapo")):
        if any(command.mapping("--additional-config").get(key) for command in commands):
            yield name
    yield from _topk([process.env for _, process in servers])


def _topk(environments: Sequence[Mapping[str, str]]) -> Iterator[str]:
    values = [env.get("VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE", "0") for env in environments]
    if any(value not in ("0", "", "false", "False") for value in values):
        yield "topk_optimize"


def _by_node(servers: Servers) -> dict[str, dict[str, str]]:
    """``pd`` with the servers of each side, numbered, or ``dp`` with those of each node."""
    texts: dict[str, str] = {}
    for node, process in servers:
        side = _SIDES.get(node.side)
        at = sum(key.startswith(f"{side}-") for key in texts)
        texts[f"{side}-{at}" if side else f"node{node.index}"] = shlex.join(process.argv)
    split = any(node.side in _SIDES for node, _ in servers)
    return {"pd" if split else "dp": texts}


def _by_rank(servers: Servers) -> dict[str, dict[str, str]]:
    """Each rank's command with its environment in front."""
    texts = {}
    for node, process in servers:
        rank = process.name.rpartition("-")[2]
        env = [f"{key}={shlex.quote(value)}" for key, value in sorted(process.env.items())]
        text = " ".join([*env, shlex.join(process.argv)])
        # Releases with groups that are not split had no such file; the name is ours.
        texts[f"{_SIDES.get(node.side, 'dp')}-node{node.index}-rank{rank}"] = text
    split = any(node.side in _SIDES for node, _ in servers)
    return {"external_dp_pd" if split else "external_dp": texts}


def _mixed(servers: Servers) -> dict[str, str]:
    return {"mix": "\n".join(shlex.join(process.argv) for _, process in servers)}


def _of_first(servers: Servers) -> dict[str, str]:
    return _without_ports(servers[0][1].env)


def _shared(servers: Servers) -> dict[str, str]:
    """What all ranks have in their environment, with one value."""
    first, *others = [process.env for _, process in servers]
    same = {k: v for k, v in first.items() if all(env.get(k) == v for env in others)}
    return _without_ports(dict(sorted(same.items())))


@dataclass(frozen=True)
class Form:
    """How a dialect's results file differs; ``judged``: it says at its top whether all passed."""

    features: Callable[[Servers], Iterator[str]]
    commands: Callable[[Servers], dict[str, Any]]
    environment: Callable[[Servers], dict[str, str]]
    judged: bool = False


FORMS = {
    "deployment": Form(_features_of_first, _by_node, _of_first),
    "routing": Form(_features_of_any, _by_rank, _shared),
    "single": Form(_features_of_first, _mixed, _of_first, judged=True),
}
