"""Before there is a plan: who am I, who leads, are we running the same thing.

Enters: a case, a cluster whose addresses may be names and whose interfaces are
unknown. Leaves: what a node says when it joins, and the real cluster made of
what all nodes said. Touches: name look-ups, this machine's interfaces.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.core import VERSION, fleet, settings
from steps.core.case import Case
from steps.core.cluster import Cluster, ClusterNode, own_addresses, own_interface
from steps.core.errors import InfraError, UsageError
from steps.core.resolver import Options

#: What must be the same on every node; the rest of a hello is told, not compared.
COMPARED = ("case", "cluster", "harness", "options", "plan")
_BRIDGES = ("docker", "br-", "virbr", "cni", "flannel", "podman", "lxcbr")


@dataclass(frozen=True)
class Identity:
    """This node: its index, its address and the interface that has it."""

    index: int
    address: str
    interface: str


def hello(identity: Identity, case: Case, cluster: Cluster, options: Options) -> dict[str, Any]:
    """What a node says when it joins."""
    return {
        "case": case.sha256,
        "cluster": _digest(_comparable(cluster)),
        "options": _digest({"driver": options.driver, "timeouts": dict(options.timeouts)}),
        "harness": harness(),
        "address": identity.address,
        "interface": identity.interface,
    }


def harness() -> str:
    """Version and a digest of the harness's own code."""
    digest = hashlib.sha256()
    root = fleet.ROOT / "steps"
    for path in sorted([*root.rglob("*.py"), *root.rglob("data/*.yaml")]):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


def differs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Why a node may not join: both fingerprints of the first thing that differs."""
    for key in COMPARED:
        if ours.get(key) != theirs.get(key):
            return (
                f"its {key} is {str(theirs.get(key))[:24]}, the leader's is "
                f"{str(ours.get(key))[:24]}"
            )
    return ""


def assemble(cluster: Cluster, hellos: Mapping[int, Mapping[str, Any]]) -> Cluster:
    """The cluster with the addresses and interfaces its nodes told."""
    nodes = tuple(
        ClusterNode(
            node.index,
            str(hellos[node.index]["address"]),
            str(hellos[node.index].get("interface", "")),
        )
        for node in cluster.nodes
    )
    return replace(cluster, nodes=nodes)


def by_hand(case: Case) -> Cluster:
    """The cluster of a run that is started on each node by hand.

    ``cluster_hosts`` of the case, else the names a LeaderWorkerSet gives its pods.

    Raises:
        UsageError: neither says where the nodes are.
    """
    found = settings.read()
    if case.cluster_hosts:
        hosts = case.cluster_hosts
    elif found.lws_leader_address:
        hosts = lws_names(found.lws_leader_address, case.num_nodes)
    elif case.num_nodes == 1:
        hosts = (_outward_address(),)
    else:
        raise UsageError(
            "nothing says where the nodes are",
            "List their addresses under cluster_hosts in the case, or add --rehearse to try it "
            "on this machine.",
        )
    return fleet.plain(case, [ClusterNode(i, host) for i, host in enumerate(hosts)])


def at_home(cluster: Cluster, case: Case) -> Cluster:
    """A cluster that somebody else described, with what only this machine knows of itself."""
    if cluster.rehearsal is not None:
        return replace(cluster, proxy_script=fleet.find_proxy_script(case))
    here = fleet.plain(case, cluster.nodes)
    return replace(
        cluster,
        known={**here.known, **cluster.known},
        scripts=cluster.scripts or here.scripts,
        proxy_script=cluster.proxy_script or here.proxy_script,
        router=cluster.router or here.router,
        ais_bench=cluster.ais_bench or here.ais_bench,
        workdir=cluster.workdir or here.workdir,
    )


def lws_names(leader: str, size: int) -> tuple[str, ...]:
    """Names of a group's pods: ``X-0.X.ns``, then ``X-0-1.X.ns`` and so on."""
    pod, _, rest = leader.partition(".")
    return (leader, *(f"{pod}-{i}.{rest}" for i in range(1, size)))


def identify(cluster: Cluster, index: int, address: str) -> Identity:
    """Who this node is, given the address its name resolved to.

    Raises:
        InfraError: the address is none of this machine's, or only a container bridge's.
    """
    table = own_addresses()
    own = ipaddress.ip_address(address)
    interface = own_interface(address, table)
    if not interface:
        found = ", ".join(
            entry for entries in table.values() for entry in entries if entry != "127.0.0.1"
        )
        raise InfraError(
            f"node {index} should have the address {address}, but this machine has {found}",
            "Is --node-index right, and is the order of cluster_hosts?",
        )
    if interface.startswith(_BRIDGES) and not own.is_loopback:
        raise InfraError(
            f"{address} belongs to the container bridge {interface}, which other hosts cannot "
            "reach",
            "Put the host's own address into cluster_hosts.",
        )
    return Identity(index, address, cluster.nodes[index].interface or interface)


def look_up(name: str, again: Callable[[str], None]) -> str:
    """The IP address of a node's name; ``again`` is called before each new try and may raise."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    while True:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            return str(found[0][4][0])
        except OSError as error:
            again(f"{name}: {error.strerror or error}")


def default_token(case: Case, cluster: Cluster) -> str:
    """A token that nodes started by hand agree on without being told one."""
    return _digest({"case": case.sha256, "cluster": _comparable(cluster), "harness": harness()})


def _comparable(cluster: Cluster) -> dict[str, Any]:
    """What must be equal on all hosts; what each host's own disk and shell say is left out."""
    data = cluster.to_dict()
    for key in ("known", "proxy_script", "router", "ais_bench", "scripts", "workdir", "python"):
        data.pop(key)
    data["paths"] = {}
    return data


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _outward_address() -> str:
    """The address this machine would use to reach others; loopback when there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def read_cluster(path: Path) -> Cluster:
    """A cluster from the JSON that ``Cluster.to_dict`` wrote.

    Raises:
        UsageError: the file is not there or holds no cluster.
    """
    try:
        return Cluster.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"--cluster {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--cluster {path}: no cluster: {type(error).__name__}: {error}") from None
