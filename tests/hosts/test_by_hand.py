"""Nodes started by hand, each as a person would start it on its own machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core import fleet
from steps.core.cluster import Cluster, ClusterNode, Rehearsal
from tests.hosts import lan as lans
from tests.hosts.cases import spread

HERE = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}


@pytest.fixture(scope="module")
def lan() -> Iterator[lans.Lan]:
    """Three machines on a network of their own."""
    reason = lans.why_not()
    if reason:
        pytest.skip(reason)
    found = lans.Lan(3)
    yield found
    found.close()


def cluster(path: Path, addresses: list[str]) -> Path:
    """A file with a cluster of stand-ins on these addresses."""
    stand_ins = fleet.STAND_INS
    value = Cluster(
        "by-hand",
        "hosts",
        tuple(ClusterNode(i, address) for i, address in enumerate(addresses)),
        paths={"PATH": (f"{stand_ins}/bin",), "PYTHONPATH": (f"{stand_ins}/lib",)},
        rehearsal=Rehearsal(),
    )
    path.write_text(json.dumps(value.to_dict()))
    return path


class Node:
    """A node program that somebody started."""

    def __init__(self, tmp: Path, name: str, wrap: list[str], *words: str, **env: str) -> None:
        self.dir = tmp / f"run-{name}"
        self._log = tmp / f"{name}.log"
        with self._log.open("wb") as out:
            self.popen = subprocess.Popen(
                [*wrap, sys.executable, "-m", "steps.node", "--run-dir", str(self.dir), *words],
                cwd=fleet.ROOT,
                env={**HERE, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What it printed."""
        return self._log.read_text()

    def end(self) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(60)
        finally:
            self.popen.kill()


def test_each_machine_finds_its_index_in_any_order(lan: lans.Lan, tmp_path: Path) -> None:
    addresses = [machine.address for machine in lan.machines[:2]]
    lan.machines[1].ip("addr", "add", f"{lan.net}.77/24", "dev", "eth0")
    case = spread(tmp_path / "case.yaml", 2, addresses)
    words = ["--cluster", str(cluster(tmp_path / "cluster.json", addresses))]
    env = {"CONFIG_YAML_PATH": "case.yaml", "CONFIG_BASE_PATH": str(tmp_path)}
    worker = Node(tmp_path, "worker", lan.machines[1].wrap, *words, **env)
    leader = Node(tmp_path, "leader", lan.machines[0].wrap, "--case", str(case), *words)
    assert (leader.end(), worker.end()) == (0, 0), leader.text + worker.text
    plan = json.loads((worker.dir / "plan.json").read_text())
    assert [node["address"] for node in plan["nodes"]] == addresses
    assert [node["interface"] for node in plan["nodes"]] == ["eth0", "eth0"]


def test_names_of_which_each_machine_knows_its_own_as_loopback(
    lan: lans.Lan, tmp_path: Path
) -> None:
    names = ["alpha.test", "beta.test"]
    case = spread(tmp_path / "case.yaml", 2, names)
    words = ["--case", str(case), "--cluster", str(cluster(tmp_path / "cluster.json", names))]
    nodes = []
    for i, machine in enumerate(lan.machines[:2]):
        other = lan.machines[1 - i].address
        hosts = tmp_path / f"hosts-{i}"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {names[i]}\n{other} {names[1 - i]}\n")
        mount = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        wrap = [*machine.wrap, "unshare", "--mount", "sh", "-c", mount, "sh"]
        nodes.append(Node(tmp_path, names[i], wrap, *words))
    assert [node.end() for node in nodes] == [0, 0], nodes[0].text + nodes[1].text
    plan = json.loads((nodes[1].dir / "plan.json").read_text())
    assert [n["address"] for n in plan["nodes"]] == [m.address for m in lan.machines[:2]]


def test_ipv6(lan: lans.Lan, tmp_path: Path) -> None:
    addresses = [machine.address6 for machine in lan.machines[:2]]
    long = [addresses[0], addresses[1].replace("::", ":0:0::")]
    case = spread(tmp_path / "case.yaml", 2, long)
    words = ["--case", str(case), "--cluster", str(cluster(tmp_path / "cluster.json", long))]
    nodes = [
        Node(tmp_path, str(i), machine.wrap, *words) for i, machine in enumerate(lan.machines[:2])
    ]
    assert [node.end() for node in nodes] == [0, 0], nodes[0].text + nodes[1].text
    plan = json.loads((nodes[0].dir / "plan.json").read_text())
    assert [node["address"] for node in plan["nodes"]] == addresses


def test_an_address_of_a_container_bridge_is_refused(lan: lans.Lan, tmp_path: Path) -> None:
    machine = lan.machines[2]
    machine.ip("link", "add", "docker0", "type", "bridge")
    machine.ip("addr", "add", "172.17.0.1/16", "dev", "docker0")
    hosts = ["172.17.0.1", lan.machines[0].address]
    case = spread(tmp_path / "case.yaml", 2, hosts)
    words = ["--case", str(case), "--cluster", str(cluster(tmp_path / "cluster.json", hosts))]
    node = Node(tmp_path, "bridge", machine.wrap, *words)
    assert node.end() == 3
    assert "172.17.0.1 belongs to the container bridge docker0" in node.text
    assert "cluster_hosts" in node.text


def test_hosts_that_never_come_are_named_on_all_that_did(lan: lans.Lan, tmp_path: Path) -> None:
    addresses = [machine.address for machine in lan.machines] + [f"{lan.net}.99"]
    case = spread(tmp_path / "case.yaml", 4, addresses)
    words = ["--case", str(case), "--cluster", str(cluster(tmp_path / "cluster.json", addresses))]
    words += ["--timeout", "join=3"]
    nodes = [
        Node(tmp_path, str(i), machine.wrap, *words) for i, machine in enumerate(lan.machines[:2])
    ]
    assert [node.end() for node in nodes] == [4, 4]
    for node in nodes:
        assert f"node 2 ({addresses[2]}), 3 ({addresses[3]})" in node.text, node.text


def test_another_case_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    network = fleet.free_network(28999)
    addresses = [f"127.{network}.{i}" for i in (1, 2)]
    file = str(cluster(tmp_path / "cluster.json", addresses))
    ours = spread(tmp_path / "ours.yaml", 2, addresses)
    theirs = spread(tmp_path / "theirs.yaml", 2, addresses, engine="other")
    common = ["--cluster", file, "--timeout", "join=8"]
    leader = Node(tmp_path, "0", [], "--case", str(ours), "--node-index", "0", *common)
    worker = Node(tmp_path, "1", [], "--case", str(theirs), "--node-index", "1", *common)
    assert worker.end() == 2, worker.text
    prints = [__import__("hashlib").sha256(f.read_bytes()).hexdigest() for f in (ours, theirs)]
    for text in (worker.text, (leader.end(), leader.text)[1]):
        assert prints[0][:24] in text, text
        assert prints[1][:24] in text, text


def test_a_node_without_the_token_stays_outside(tmp_path: Path) -> None:
    network = fleet.free_network(28999)
    addresses = [f"127.{network}.{i}" for i in (1, 2)]
    file = str(cluster(tmp_path / "cluster.json", addresses))
    case = str(spread(tmp_path / "case.yaml", 2, addresses))
    words = ["--case", case, "--cluster", file, "--timeout", "join=8"]
    token = "the-token-of-the-run-1"
    leader = Node(tmp_path, "0", [], *words, "--node-index", "0", MULTINODE_TOKEN=token)
    stranger = Node(tmp_path, "x", [], *words, "--node-index", "1")
    assert stranger.end() == 2
    assert "token" in stranger.text
    friend = Node(tmp_path, "1", [], *words, "--node-index", "1", MULTINODE_TOKEN=token)
    assert (leader.end(), friend.end()) == (0, 0), leader.text + friend.text
    assert "was refused: it has another run token" in leader.text
    assert token not in leader.text + friend.text
