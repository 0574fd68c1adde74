"""Nodes started by hand, each as a person would start it on its own machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core.plan import clusters
from steps.core.plan.cluster import Cluster, ClusterNode, Rehearsal
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
    stand_ins = clusters.STAND_INS
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
                cwd=clusters.ROOT,
                env={**HERE, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What it printed."""
        return self._log.read_text()

    def until(self, text: str) -> None:
        """Wait until it has printed ``text``."""
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

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
    network = clusters.free_network(28999)
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
    network = clusters.free_network(28999)
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


def two_here(tmp: Path, *more: str) -> list[str]:
    """The words that start a node of two on this machine."""
    addresses = [f"127.{clusters.free_network(28999)}.{i}" for i in (1, 2)]
    case = spread(tmp / "case.yaml", 2, addresses)
    file = cluster(tmp / "cluster.json", addresses)
    return ["--case", str(case), "--cluster", str(file), *more]


def test_the_same_index_twice(tmp_path: Path) -> None:
    words = two_here(tmp_path, "--timeout", "join=20")
    workers = [Node(tmp_path, f"worker-{i}", [], *words, "--node-index", "1") for i in (0, 1)]
    leader = Node(tmp_path, "leader", [], *words, "--node-index", "0")
    assert leader.end() == 0, leader.text
    assert sorted(node.end() for node in workers) == [0, 2]
    text = workers[0].text + workers[1].text
    assert "node 1 is already here" in text
    assert "Was it started twice?" in text
    assert "run token" not in leader.text


def test_the_leader_twice(tmp_path: Path) -> None:
    words = two_here(tmp_path, "--timeout", "join=20")
    leader = Node(tmp_path, "leader", [], *words, "--node-index", "0")
    leader.until("waiting for")
    second = Node(tmp_path, "second", [], *words, "--node-index", "0")
    assert second.end() == 3
    assert "cannot be opened: Address already in use" in second.text
    assert "was node 0 started twice?" in second.text
    leader.popen.send_signal(signal.SIGINT)
    assert leader.end() == 130
    assert "interrupted before all nodes had met; nothing was started" in leader.text


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_leader_that_goes_before_all_have_met(tmp_path: Path, how: signal.Signals) -> None:
    addresses = [f"127.{clusters.free_network(28999)}.{i}" for i in (1, 2, 3)]
    words = ["--case", str(spread(tmp_path / "case.yaml", 3, addresses))]
    words += ["--cluster", str(cluster(tmp_path / "cluster.json", addresses))]
    leader = Node(tmp_path, "leader", [], *words, "--node-index", "0")
    worker = Node(tmp_path, "worker", [], *words, "--node-index", "1")
    leader.until("joined")
    leader.popen.send_signal(how)
    leader.end()
    if how is signal.SIGINT:
        assert worker.end() == 130
        assert "the leader ended the run: node 0 was interrupted" in worker.text
    else:
        assert worker.end() == 3
        assert f"the leader at {addresses[0]} is gone" in worker.text
    assert "same case" not in worker.text


def test_a_token_that_others_can_work_out_is_warned_of(tmp_path: Path) -> None:
    words = two_here(tmp_path, "--timeout", "join=0.5", "--node-index", "0")
    guessable = Node(tmp_path, "guessable", [], *words)
    assert guessable.end() == 4
    assert "no MULTINODE_TOKEN: whoever has the same case" in guessable.text
    file = tmp_path / "token"
    for text, mode, code, said in [
        ("a-long-secret", 0o600, 4, ""),
        ("a-long-secret", 0o640, 2, "found mode 0640, expected 0600"),
        ("\n", 0o600, 2, "it is empty"),
    ]:
        file.write_text(text)
        file.chmod(mode)
        node = Node(tmp_path, f"with-{mode}-{code}", [], *words, "--token-file", str(file))
        assert node.end() == code, node.text
        assert said in node.text
        assert "no MULTINODE_TOKEN" not in node.text
        assert "a-long-secret" not in node.text


def test_a_node_killed_and_started_anew_is_no_pass(tmp_path: Path) -> None:
    words = two_here(tmp_path, "--timeout", "join=20")
    leader = Node(tmp_path, "leader", [], *words, "--node-index", "0")
    worker = Node(tmp_path, "worker", [], *words, "--node-index", "1")
    worker.until("hold ...")
    worker.popen.kill()
    worker.popen.wait()
    again = Node(tmp_path, "again", [], *words, "--node-index", "1")
    assert again.end() == 2, again.text
    assert "the run has begun" in again.text
    assert leader.end() == 3, leader.text
    assert "node 1 is lost" in leader.text


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("", ["are all this machine", "--node-index I"]),
        ("7", ["LWS_WORKER_INDEX: found 7, expected 0 to 1"]),
        ("one", ["LWS_WORKER_INDEX: found 'one', expected 0 to 1"]),
    ],
)
def test_an_index_that_says_nothing(tmp_path: Path, index: str, words: list[str]) -> None:
    node = Node(tmp_path, "node", [], *two_here(tmp_path), LWS_WORKER_INDEX=index)
    assert node.end() == 2
    assert all(word in node.text for word in words), node.text


def test_hosts_of_which_none_is_this_machine(tmp_path: Path) -> None:
    case = spread(tmp_path / "case.yaml", 2, ["192.0.2.101", "192.0.2.102"])
    node = Node(tmp_path, "node", [], "--case", str(case))
    assert node.end() == 2
    assert "none of cluster_hosts 192.0.2.101, 192.0.2.102 is this machine" in node.text
