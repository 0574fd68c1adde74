"""Ports: one formula for the handoff's, and preflight asks where a server will listen."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steps import preflight
from steps.core.node.noderun import NodeRun
from steps.core.plan.plan import KV_TRANSFER, Plan, Port
from steps.core.plan.resolver import Options, resolve
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir
from steps.core.vllm import kvports
from steps.lint.fleet import build
from tests.core.cases import CONFIGS, SPLIT, case_of, cluster_of, plan_of

V1 = {"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_producer", "kv_port": "30000"}


def found(words: str, rank: int = 0, ranks: int = 1, **config: object) -> list[tuple[int, int]]:
    argv = ["vllm", "serve", "m", "--kv-transfer-config", json.dumps({**V1, **config})]
    ports = kvports.of([*argv, *words.split()], rank, ranks)
    return [(each.first, each.last) for each in ports]


@pytest.mark.parametrize(
    ("words", "rank", "ranks", "wanted"),
    [
        ("", 0, 1, (30000, 30000)),
        ("-tp 4", 0, 2, (30000, 30007)),
        ("-tp 4", 2, 2, (30008, 30015)),
        ("-tp 2 -pp 2 -pcp 2", 1, 1, (30008, 30015)),
        ("-tp 8 --nnodes 2 --node-rank 1", 0, 1, (30004, 30007)),
        ("-tp 4 -dcp 4", 1, 1, (30004, 30007)),
        ("-tp -4", 0, 0, (30000, 30000)),
    ],
)
def test_the_formula(words: str, rank: int, ranks: int, wanted: tuple[int, int]) -> None:
    assert found(words, rank, ranks) == [wanted]


def test_connectors_inside_another_count_and_stores_do_not() -> None:
    extra = {"connectors": [V1, {**V1, "kv_connector": "AscendStoreConnector", "kv_port": 5}]}
    assert found("", kv_connector="MultiConnector", kv_connector_extra_config=extra) == [
        (30000, 30000)
    ]


@pytest.mark.parametrize("port", [None, "x", [], -1, 0, 70000, 10**400])
def test_what_is_no_port_gives_none(port: object) -> None:
    assert found("", kv_port=port) == []


@pytest.mark.parametrize(
    ("connector", "role", "wanted"),
    [
        ("MooncakeConnectorV1", "kv_producer", True),
        ("MooncakeConnectorV1", "kv_both", True),
        ("MooncakeConnectorV1", "kv_consumer", False),
        ("MooncakeLayerwiseConnector", "kv_consumer", True),
        ("MooncakeLayerwiseConnector", "kv_producer", False),
    ],
)
def test_which_side_waits(connector: str, role: str, wanted: bool) -> None:
    config = json.dumps({**V1, "kv_connector": connector, "kv_role": role})
    (ports,) = kvports.of(["vllm", "serve", "m", "--kv-transfer-config", config], 0, 1)
    assert ports.listens is wanted


WITH_KV = [path for path in CONFIGS if '"kv_port"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_KV, ids=lambda path: path.stem)
def test_the_plan_and_the_rules_say_the_same(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    case = case_of(text, str(path))
    plan = resolve(case, cluster_of(case.num_nodes), Options("run-1", ""))
    planned = sorted((p.node, p.port, p.count) for p in plan.ports if p.purpose == KV_TRANSFER)
    servers = build(case, plan).servers
    ruled = [(s.index, each.first, each.count) for s in servers for each in s.kv_ports]
    assert planned
    assert planned == sorted(ruled)


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """A port that somebody holds on another address of this machine."""
    with socket.socket() as other:
        other.bind(("127.0.0.9", 0))
        other.listen(1)
        yield other.getsockname()[1]


def problems(tmp_path: Path, plan: Plan, port: int, *words: str) -> list[str]:
    """What preflight says of a server's API port."""
    server = next(p for p in plan.nodes[0].processes if p.kind == "server")
    server = replace(server, argv=("vllm", "serve", "m", "--port", str(port), *words))
    node = replace(plan.nodes[0], address="127.0.0.8", processes=(server,))
    ports = (Port(0, port, "api", server.name),)
    plan = replace(plan, nodes=(node, *plan.nodes[1:]), ports=ports)
    run = NodeRun(plan, 0, RunDir(tmp_path), EventLog(None, "run-1", 0))
    return list(preflight.ports(run))


def test_a_server_without_a_host_takes_all_addresses(tmp_path: Path, elsewhere: int) -> None:
    (problem,) = problems(tmp_path, plan_of(SPLIT), elsewhere)
    assert f"port {elsewhere} (api of " in problem
    assert "is in use" in problem


@pytest.mark.parametrize("words", [("--host", "0.0.0.0"), ("--host=127.0.0.9",)])
def test_where_the_command_says_it_listens(
    tmp_path: Path, elsewhere: int, words: tuple[str, ...]
) -> None:
    assert problems(tmp_path, plan_of(SPLIT), elsewhere, *words)


def test_a_host_of_its_own_is_free(tmp_path: Path, elsewhere: int) -> None:
    assert problems(tmp_path, plan_of(SPLIT), elsewhere, "--host", "127.0.0.8") == []


def test_a_stand_in_takes_its_nodes_address_only(tmp_path: Path, elsewhere: int) -> None:
    assert problems(tmp_path, plan_of(SPLIT, rehearsed=True), elsewhere) == []
