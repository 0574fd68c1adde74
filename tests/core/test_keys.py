"""Keys of both dialects of several nodes that mean what they mean upstream (vllm-ascend 0.30)."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from steps.core.errors import CaseError
from steps.core.node.http import look
from steps.core.plan.plan import Plan, Probe
from steps.lint.engine import lint
from steps.validate import validate
from tests.core.cases import MEMCACHE, MOONCAKE, ROUTING, SPLIT, case_of, hosts_of, plan_of

HOSTS = hosts_of("10.0.0.1", "10.0.0.2")


def routed(text: str) -> Plan:
    return plan_of(ROUTING + text, nodes=HOSTS, proxy_script="/w/p.py")


@pytest.mark.parametrize("word", ["external", "External"])
def test_the_balancing_is_the_dialect_s(word: str) -> None:
    assert case_of(ROUTING + f"dp_load_balancing: {word}\n").dialect == "routing"
    assert case_of(SPLIT + "dp_load_balancing: internal\n").dialect == "deployment"


def test_the_balancing_chooses_where_both_dialects_show() -> None:
    both = SPLIT + "config: []\n"
    with pytest.raises(CaseError) as caught:
        case_of(both + "dp_load_balancing: internal\n")
    assert "MN005" in {p.rule for p in caught.value.problems}
    assert "routing dialect" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rule", "part"),
    [
        (SPLIT + "dp_load_balancing: external\n", "MN007", "routing"),
        (ROUTING + "dp_load_balancing: internal\n", "MN007", "deployment"),
        (SPLIT + "dp_load_balancing: both\n", "MN007", "internal"),
        (SPLIT + "dp_load_balancing:\n", "MN006", "nothing"),
        (ROUTING + MOONCAKE.replace("9009", "50088"), "MN018", "metrics_port"),
        (ROUTING + MEMCACHE.replace("6006", "5005"), "MN018", "config_store_port"),
        (ROUTING + MEMCACHE.partition("    local")[0], "MN004", "local"),
        (ROUTING + MEMCACHE.replace("{ock.mmc.log_level: info}", "5"), "MN006", "meta"),
    ],
)
def test_what_disagrees_is_an_error(text: str, rule: str, part: str) -> None:
    with pytest.raises(CaseError) as caught:
        case_of(text)
    assert any(p.rule == rule and part in str(p) for p in caught.value.problems), caught.value


def test_memcache_reads_booleans_in_small_letters() -> None:
    text = MEMCACHE.replace("log_level: info", "tls: true, ock.mmc.other: false")
    files = routed(text).nodes[0].files
    assert "ock.mmc.tls = true\n" in files["mmc-meta.conf"]
    assert "ock.mmc.other = false\n" in files["mmc-meta.conf"]


def test_mooncake_is_told_what_the_case_says_and_its_master() -> None:
    told = json.loads(routed(MOONCAKE).nodes[1].files["mooncake.json"])
    assert told == {"global_segment_size": "1GB", "master_server_address": "10.0.0.1:50088"}


def test_mooncake_finds_its_libraries() -> None:
    pool = routed(MOONCAKE).nodes[0].processes[0]
    toolkit = "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages"
    assert pool.paths["LD_LIBRARY_PATH"][:2] == (f"{toolkit}/mooncake", toolkit)


def test_both_ports_of_memcache_are_awaited() -> None:
    probe = routed(MEMCACHE).nodes[0].processes[0].probe
    assert probe == Probe("tcp", "tcp://10.0.0.1:5005", ("tcp://10.0.0.1:6006",))
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        urls = [f"tcp://127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
        both = Probe("tcp", urls[0], (urls[1],))
        assert look(both).ok
        other.close()
        assert not look(both).ok


def test_the_master_in_braces_is_node_0() -> None:
    plan = plan_of(ROUTING.replace("- $SHARED", "- ${MASTER_IP}"), nodes=HOSTS, proxy_script="p.py")
    assert {node.processes[0].argv[-1] for node in plan.nodes} == {"10.0.0.1"}


def test_a_variable_of_a_routing_environment_that_nobody_defines_is_empty(tmp_path: Path) -> None:
    text = ROUTING.replace("SIDE: prefill", "MIX: a$NOTHING_OF_THAT-b")
    plan = plan_of(text, nodes=HOSTS, proxy_script="/w/p.py")
    assert plan.nodes[0].processes[0].env["MIX"] == "a-b"
    path = tmp_path / "case.yaml"
    path.write_text(text, encoding="utf-8")
    found = [p for p in validate([path]) if p.rule == "MN020"]
    assert [p.severity.value for p in found] == ["warning"]


OLD = ("ranktable_path", "ranktable_gen_path", "layerwise")


@pytest.mark.parametrize("key", [*OLD, "runner_configs", "versions", "_DEBUG_MARKER"])
def test_keys_of_old_releases_are_warned_of(key: str) -> None:
    text = f"{SPLIT}{key}: a\n"
    if key in OLD:
        text = SPLIT.replace("  enabled: true\n", f"  enabled: true\n  {key}: a\n")
    case = case_of(text)
    assert any(key in p.message for p in lint(case, plan_of(text)))
