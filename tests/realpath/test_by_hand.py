"""``python -m steps.node`` on every node, not rehearsed: what the nodes tell one another."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest

from tests.realpath.fleet import CHAT, Nodes, case, pool_port, routing, split
from tests.realpath.test_local import INSTALL, notes


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("shape", [case, split], ids=["group", "split"])
def test_a_fleet_passes(shape, nodes, tmp_path):
    fleet = Nodes(tmp_path, shape(nodes))
    assert fleet.codes() == [0] * nodes, fleet.text
    assert [fleet.record(index)["outcome"] for index in range(nodes)] == ["pass"] * nodes
    plan = json.loads((fleet.dirs[1] / "plan.json").read_text())
    assert [node["address"] for node in plan["nodes"]] == fleet.hosts
    [result] = fleet.record(0)["benchmarks"]
    assert (result["driver"], result["gates"][0]["passed"]) == ("aisbench", True)


def test_a_kv_pool_that_every_node_reaches(tmp_path):
    fleet = Nodes(tmp_path, routing(pool_port()))
    assert fleet.codes() == [0, 0], fleet.text
    assert (fleet.dirs[1] / "node-1" / "mooncake.json").is_file()


def test_a_missed_gate_reaches_every_node_s_exit_code(tmp_path):
    fleet = Nodes(tmp_path, case(2, benchmarks={"chat": {**CHAT, "baseline": 10_000_000}}))
    assert fleet.codes()[0] == 1, fleet.text
    assert "performance" in fleet.text


@pytest.mark.parametrize("nodes", [2, 4])
def test_every_node_installs(nodes, tmp_path):
    fleet = Nodes(tmp_path, case(nodes, **INSTALL), "--timeout", "preflight=8")
    assert fleet.codes() == [0] * nodes, fleet.text
    assert len(notes(tmp_path)) == nodes


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_worker_s_death_is_every_node_s_cause(nodes, tmp_path):
    fleet = Nodes(tmp_path, case(nodes, {nodes - 1: "crash=load code=7"}))
    assert fleet.codes() == [1] * nodes, fleet.text
    for index in range(nodes):
        found = fleet.record(index)["cause"]
        assert (found["node"], found["exit_code"]) == (nodes - 1, 7), fleet.text


def test_a_killed_node_program_is_infrastructure(tmp_path):
    fleet = Nodes(tmp_path, case(2, {0: "load=20"}))
    await_started(fleet, 1)
    fleet.running[1].kill()
    assert fleet.codes()[0] == 3, fleet.text
    found = fleet.record(0)["cause"]
    assert (found["node"], found["verdict"]) == (1, "infra")


def test_an_interrupt_of_the_leader_ends_all(tmp_path):
    fleet = Nodes(tmp_path, case(2, {0: "load=20"}))
    await_started(fleet, 1)
    fleet.running[0].send_signal(signal.SIGINT)
    assert fleet.codes() == [130, 130], fleet.text


@pytest.mark.parametrize("attempt", range(3))
def test_a_leader_that_fails_at_once_fails_its_workers(attempt, tmp_path):
    fleet = Nodes(tmp_path, case(2, benchmarks={"chat": {**CHAT, "dataset_path_local": "/none"}}))
    fleet.running[0].wait(60)
    assert fleet.codes(10) == [3, 3], fleet.text
    for index in (0, 1):
        assert "/none" in json.dumps(fleet.record(index)["cause"])


def test_a_port_that_somebody_holds(tmp_path):
    data = case(2)
    with socket.create_server(("0.0.0.0", 0)) as holder:
        port = data["env_common"]["SERVER_PORT"] = holder.getsockname()[1]
        fleet = Nodes(tmp_path, data)
        assert fleet.codes(20) == [3, 3], fleet.text
    assert f"port {port} (api of server) is in use" in fleet.text


def await_started(fleet: Nodes, index: int) -> None:
    """Until a node has started its server."""
    path = fleet.dirs[index] / f"node-{index}" / "server.log"
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, fleet.text
        time.sleep(0.05)
