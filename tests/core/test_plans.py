"""Plans: what the upstream harness means, written down a second time; and golden plans.

The oracle below knows the rules from the description of the upstream harness
(vllm-ascend, tests/e2e/nightly/multi_node), not from our resolver. The golden
files show a change of any plan as a diff; after an intended change write them anew:

    python -m tests.core.test_plans
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.core.errors import CaseError, Severity
from steps.core.plan.plan import Plan, Process, to_dict
from steps.core.plan.resolver import examine
from tests.core.cases import (
    DATA_PARALLEL,
    MEMCACHE,
    MOONCAKE,
    ROUTING,
    SPLIT,
    TWO_BY_TWO,
    case_of,
    cluster_of,
    hosts_of,
    plan_of,
)  # fmt: skip

GOLDEN = Path(__file__).parent / "golden"
HOSTS = hosts_of("10.0.0.1", "10.0.0.2")
FOUR = hosts_of("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
PLANS: dict[str, Any] = {
    "1p1d-script": lambda: plan_of(SPLIT, nodes=HOSTS, proxy_script="/w/proxy.py"),
    "1p1d-router-rehearsed": lambda: plan_of(SPLIT, rehearsed=True, router="/t/vllm-router"),
    "1p1d-command": lambda: plan_of(
        SPLIT + "proxy: {command: 'my-proxy --on $HOST:$PORT $PREFILLER_URLS ${DECODER_PORTS}'}\n",
        nodes=HOSTS,
    ),
    "2-node-dp": lambda: plan_of(DATA_PARALLEL, nodes=HOSTS),
    "2p2d-headless": lambda: plan_of(TWO_BY_TWO, nodes=FOUR, proxy_script="/w/proxy.py"),
    "routing-mooncake": lambda: plan_of(ROUTING + MOONCAKE, nodes=HOSTS, proxy_script="/w/p.py"),
    "routing-memcache": lambda: plan_of(ROUTING + MEMCACHE, nodes=HOSTS, proxy_script="/w/p.py"),
}


def condensed(plan: Plan) -> str:
    """What a plan makes happen: processes, files, ports, benchmarks and their gates."""
    data = to_dict(plan)
    kept = {key: data[key] for key in ("nodes", "ports", "endpoint", "notes", "model")}
    kept["benchmarks"] = [
        [entry.benchmark.name, entry.driver, *map(str, entry.gates), entry.skip_gates, entry.scaled]
        for entry in plan.benchmarks
    ]
    return json.dumps(kept, indent=1, sort_keys=True).replace(str(Path.cwd()), ".") + "\n"


@pytest.mark.parametrize("name", sorted(PLANS))
def test_golden(name: str) -> None:
    wanted = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    assert condensed(PLANS[name]()) == wanted, "run: python -m tests.core.test_plans; read the diff"


def process(plan: Plan, node: int, name: str) -> Process:
    return next(p for p in plan.nodes[node].processes if p.name == name)


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def values_after(argv: tuple[str, ...], name: str) -> list[str]:
    found = []
    for word in argv[argv.index(name) + 1 :]:
        if word.startswith("--"):
            break
        found.append(word)
    return found


# The oracle: upstream's meaning

MASTERS = [
    (SPLIT, HOSTS, ["10.0.0.1", "10.0.0.2"]),  # the first decoder's for every other node
    (DATA_PARALLEL, HOSTS, ["10.0.0.1", "10.0.0.1"]),  # node 0's without a split
    (TWO_BY_TWO, FOUR, ["10.0.0.1", "10.0.0.1", "10.0.0.3", "10.0.0.3"]),
    (ROUTING, HOSTS, ["10.0.0.1", "10.0.0.2"]),
]


@pytest.mark.parametrize(("text", "nodes", "masters"), MASTERS)
def test_master_and_own_address_of_every_process(text: str, nodes: Any, masters: list[str]) -> None:
    plan = plan_of(text, nodes=nodes)
    for node, master in zip(plan.nodes, masters, strict=True):
        for server in node.processes:
            if server.kind != "server":
                continue
            env = server.env
            assert env["MASTER_IP"] == master
            assert env["HCCL_IF_IP"] == env["LOCAL_IP"] == nodes[node.index].address
            for name in ("HCCL", "GLOO", "TP"):
                assert env[f"{name}_SOCKET_IFNAME"] == "eth0"
            assert env["NIC_NAME"] == "eth0"
            assert env["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
            assert env["HF_HUB_OFFLINE"] == "1"
            assert env["VLLM_ENGINE_READY_TIMEOUT_S"] == "1800"


def test_a_node_in_no_list_belongs_to_the_group_before_it() -> None:
    plan = plan_of(TWO_BY_TWO, nodes=FOUR)
    assert [node.side for node in plan.nodes] == ["prefiller", "prefiller", "decoder", "decoder"]
    assert [node.headless for node in plan.nodes] == [False, True, False, True]
    assert [node.role for node in plan.nodes] == ["leader", "worker", "worker", "worker"]


def test_environment_in_the_order_upstream_merges_it() -> None:
    plan = plan_of(SPLIT, nodes=HOSTS)
    first, second = process(plan, 0, "server"), process(plan, 1, "server")
    assert (first.env["SHARED"], second.env["SHARED"]) == ("own", "common")
    assert first.env["VLLM_USE_MODELSCOPE"] == "True"  # Python's str
    assert first.env["SERVER_PORT"] == "8080"


def test_the_server_port_has_a_default() -> None:
    plan = plan_of(SPLIT.replace("  SERVER_PORT: 8080\n", ""), nodes=HOSTS)
    assert process(plan, 0, "server").api == "http://10.0.0.1:8080"


def test_variables_of_a_command_come_from_the_nodes_environment() -> None:
    plan = plan_of(DATA_PARALLEL, nodes=HOSTS)
    assert option(process(plan, 0, "server").argv, "--port") == "8123"
    assert option(process(plan, 0, "server").argv, "--data-parallel-address") == "10.0.0.1"
    assert option(process(plan, 1, "server").argv, "--data-parallel-address") == "10.0.0.1"


def test_benchmarks_go_to_the_proxy_else_to_node_0() -> None:
    split = plan_of(SPLIT, nodes=HOSTS, proxy_script="/w/p.py")
    assert (split.endpoint.kind, split.endpoint.url) == ("proxy", "http://10.0.0.1:6000")
    plain = plan_of(DATA_PARALLEL, nodes=HOSTS)
    assert (plain.endpoint.kind, plain.endpoint.url) == ("server", "http://10.0.0.1:8123")
    assert plain.proxy is None
    routing = plan_of(ROUTING, nodes=HOSTS)
    assert routing.endpoint.url == "http://10.0.0.1:1999"
    named = plan_of(
        SPLIT.replace("demo/tiny --port $", "demo/tiny --served-model-name x y --port $")
    )
    assert named.endpoint.model == "x"


def test_the_proxy_gets_every_api_server_and_no_headless_node() -> None:
    proxy = plan_of(TWO_BY_TWO, nodes=FOUR, proxy_script="/w/p.py").proxy
    assert proxy
    assert proxy.argv[:2] == ("python3", "/w/p.py")
    assert values_after(proxy.argv, "--prefiller-hosts") == ["10.0.0.1"]
    assert values_after(proxy.argv, "--prefiller-ports") == ["8080"]
    assert values_after(proxy.argv, "--decoder-hosts") == ["10.0.0.3"]
    assert values_after(proxy.argv, "--decoder-ports") == ["8080"]
    assert option(proxy.argv, "--host") == "10.0.0.1"
    assert option(proxy.argv, "--port") == "6000"
    assert proxy.probe
    assert proxy.probe.url == "http://10.0.0.1:6000/healthcheck"


def test_the_proxy_of_a_routing_case_gets_all_ranks() -> None:
    proxy = plan_of(ROUTING, nodes=HOSTS, proxy_script="/w/p.py").proxy
    assert proxy
    assert option(proxy.argv, "--port") == "1999"
    assert values_after(proxy.argv, "--prefiller-hosts") == ["10.0.0.1"] * 2
    assert values_after(proxy.argv, "--prefiller-ports") == ["7100", "7101"]
    assert values_after(proxy.argv, "--decoder-ports") == ["7200", "7201"]


def test_upstreams_script_is_the_default() -> None:
    proxy = plan_of(SPLIT, nodes=HOSTS).proxy
    assert proxy
    assert proxy.argv[1] == (
        "examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py"
    )


def test_the_proxys_port_is_the_first_free_one() -> None:
    plan = plan_of(SPLIT.replace("8080", "6000"), nodes=HOSTS, proxy_script="/w/p.py")
    assert plan.endpoint.url == "http://10.0.0.1:6001"


def test_ranks_ports_and_devices() -> None:
    plan = plan_of(ROUTING, nodes=HOSTS)
    for node, base in ((0, 7100), (1, 7200)):
        for rank in (0, 1):
            server = process(plan, node, f"server-{rank}")
            assert server.argv[:3] == ("vllm", "serve", "demo/tiny")
            assert option(server.argv, "--port") == str(base + rank)
            assert option(server.argv, "--data-parallel-rank") == str(rank)
            assert server.rank == rank
            width = 4  # tp 2 x pp 2 on node 0, tp 4 on node 1
            devices = ",".join(str(rank * width + n) for n in range(width))
            assert server.env["ASCEND_RT_VISIBLE_DEVICES"] == devices
            assert option(server.argv, "--seed") == "7"  # unbraced: a value of the environment
    assert option(process(plan, 0, "server-0").argv, "--data-parallel-address") == "10.0.0.1"


def test_an_unknown_directory_of_a_list_is_left_out() -> None:
    text = SPLIT.replace("SHARED: own", "LD_LIBRARY_PATH: /a:$SITE_LIBS:$LD_LIBRARY_PATH")
    plan, found = examine(case_of(text), cluster_of(2))
    assert [(p.rule, p.severity) for p in found] == [("MN020", Severity.WARNING)]
    assert process(plan, 0, "server").paths["LD_LIBRARY_PATH"] == ("/a",)
    assert process(plan_of(text), 0, "server").env == process(plan, 0, "server").env
    alone = text.replace(":$LD_LIBRARY_PATH", "")
    plan, found = examine(case_of(alone), cluster_of(2))
    assert [p.severity for p in found] == [Severity.WARNING]
    assert process(plan, 0, "server").env["LD_LIBRARY_PATH"] == "/a"
    near = text.replace("$SITE_LIBS", "$SERVER_PRT")
    assert [p.severity for p in examine(case_of(near), cluster_of(2))[1]] == [Severity.ERROR]


def test_an_unknown_variable_is_an_error_in_both_dialects() -> None:
    for text in (
        SPLIT.replace("--port $SERVER_PORT", "--port $SERVER_PROT"),
        ROUTING.replace("${DP_RANK}", "${DP_RANKS}"),
        ROUTING.replace("- $SHARED", "- ${SHARED}"),  # braces are the harness's names only
    ):
        with pytest.raises(CaseError) as caught:
            plan_of(text)
        assert {p.rule for p in caught.value.problems} == {"MN020"}
        lines = text.splitlines()
        for found in caught.value.problems:
            name = found.message.split("'")[1]
            assert name in lines[found.place.line - 1], found
            assert "Did you mean" in found.hint


def test_the_mooncake_pool() -> None:
    plan = plan_of(ROUTING + MOONCAKE, nodes=HOSTS)
    pool = plan.nodes[0].processes[0]
    assert (pool.name, pool.kind) == ("pool", "pool")
    assert " ".join(pool.argv) == (
        "mooncake_master --port 50088 --metrics_port 9009 --eviction_high_watermark_ratio 0.9 "
        "--eviction_ratio 0.1 --default_kv_lease_ttl 11000"
    )
    assert not [p for p in plan.nodes[1].processes if p.kind == "pool"]
    for node in plan.nodes:
        config = json.loads(node.files["mooncake.json"])
        assert config["master_server_address"] == "10.0.0.1:50088"
        assert config["global_segment_size"] == "1GB"
        server = node.processes[-1] if node.index else node.processes[1]
        assert server.env["MOONCAKE_MASTER"] == "10.0.0.1:50088"
        assert server.files == {"MOONCAKE_CONFIG_PATH": "mooncake.json"}


def test_the_memcache_pool() -> None:
    plan = plan_of(ROUTING + MEMCACHE, nodes=HOSTS)
    pool = plan.nodes[0].processes[0]
    assert "MetaService" in pool.argv[-1]
    for node in plan.nodes:
        assert "ock.mmc.meta_service_url = tcp://10.0.0.1:5005\n" in node.files["mmc-local.conf"]
        assert "tcp://10.0.0.1:6006" in node.files["mmc-local.conf"]
        server = next(p for p in node.processes if p.kind == "server")
        assert server.files == {"MMC_LOCAL_CONFIG_PATH": "mmc-local.conf"}


def test_baselines_are_judged_on_real_runs_only() -> None:
    (real,) = plan_of(SPLIT, nodes=HOSTS).benchmarks
    assert (real.driver, real.skip_gates, real.scaled) == ("aisbench", "", "")
    assert [str(gate) for gate in real.gates] == ["output_throughput >= 0.97 * baseline"]
    (rehearsed,) = plan_of(SPLIT, rehearsed=True).benchmarks
    assert (rehearsed.driver, rehearsed.skip_gates) == ("smoke", "rehearsed")
    assert rehearsed.scaled == "num_prompts 32 for 64"
    (none,) = plan_of(SPLIT, nodes=HOSTS, driver="none").benchmarks
    assert "switched off" in none.skip_gates


def test_a_fleet_without_an_api_server_where_one_is_needed() -> None:
    with pytest.raises(CaseError, match="no decoder has an API server"):
        plan_of(SPLIT.replace("port ${SERVER_PORT}", "port 80 --headless"))
    with pytest.raises(CaseError, match="node 0 is headless"):
        plan_of(DATA_PARALLEL.replace("--host 0.0.0.0", "--headless"))


def test_more_nodes_than_the_cluster_has() -> None:
    with pytest.raises(CaseError, match="wants 2 nodes") as caught:
        plan_of(SPLIT, nodes=HOSTS[:1])
    assert caught.value.problems[0].place.line == 3


def test_old_forms() -> None:
    text = SPLIT.replace(
        "  - name: decoder\n", "  - name: decoder\n    master_index: 0\n    local_index: 1\n"
    )
    plan = plan_of(text, nodes=HOSTS)
    assert process(plan, 1, "server").env["MASTER_IP"] == "10.0.0.1"


def test_ipv6_addresses_stand_in_brackets() -> None:
    plan = plan_of(DATA_PARALLEL, nodes=hosts_of("fd00::1", "fd00::2"))
    assert plan.endpoint.url == "http://[fd00::1]:8123"
    assert process(plan, 0, "server").env["LOCAL_IP"] == "fd00::1"


def test_path_lists_are_put_in_front() -> None:
    extra = (
        "env_common:\n  LD_LIBRARY_PATH: $EXTRA/lib:$LD_LIBRARY_PATH\n"
        "  PATH: /a:${PATH}:$PATH_EXTRA\n  EXTRA: /opt\n  PATH_EXTRA: /b\n"
    )
    server = process(plan_of(SPLIT.replace("env_common:\n", extra)), 0, "server")
    assert server.paths["LD_LIBRARY_PATH"] == ("/opt/lib",)
    assert server.paths["PATH"] == ("/a", "/b")
    assert "LD_LIBRARY_PATH" not in server.env


def regenerate() -> None:
    """Write the golden plans anew."""
    GOLDEN.mkdir(exist_ok=True)
    for name, make in PLANS.items():
        (GOLDEN / f"{name}.json").write_text(condensed(make()), encoding="utf-8")


if __name__ == "__main__":
    regenerate()
