"""Before there is a plan: who am I, who leads, are we running the same thing.

Enters: a case, a cluster whose addresses may be names and whose interfaces are
unknown. Leaves: what a node says when it joins, and the real cluster made of
what all nodes said. Touches: name look-ups, this machine's interfaces.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.core import VERSION, settings
from steps.core.case.case import Case
from steps.core.case.numbers import dumps, loads
from steps.core.case.values import decode
from steps.core.errors import InfraError, UsageError
from steps.core.node.rendezvous.messages import Hello
from steps.core.plan import clusters
from steps.core.plan.cluster import Cluster, ClusterNode, own_addresses, own_interface
from steps.core.plan.resolver import Options
from steps.core.system import machine
from steps.core.vllm import installed

#: What must be the same on every node; the rest of a hello is told, not compared.
COMPARED = ("case", "cluster", "harness", "options", "plan")
_CONTAINER = Path("/.dockerenv")
_DOCKER_NETWORK = ipaddress.ip_network("172.17.0.0/16")
_BRIDGES = ("docker", "br-", "virbr", "cni", "flannel", "podman", "lxcbr")


@dataclass(frozen=True)
class Identity:
    """This node: its index, its address and the interface that has it."""

    index: int
    address: str
    interface: str


def hello(identity: Identity, case: Case, cluster: Cluster, options: Options) -> Hello:
    """What a node says when it joins."""
    return Hello(
        case=case.sha256,
        cluster=_digest(_comparable(cluster)),
        options=_digest({"driver": options.driver, "timeouts": dict(options.timeouts)}),
        harness=harness(),
        address=identity.address,
        interface=identity.interface,
        facts=machine.brief(installed.PACKAGES),
    )


def harness() -> str:
    """Version and a digest of the harness's own code."""
    digest = hashlib.sha256()
    root = clusters.ROOT / "steps"
    for path in sorted([*root.rglob("*.py"), *root.rglob("data/*.yaml")]):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"


def differs(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Why a node may not join: both fingerprints of the first thing that differs."""
    for key in COMPARED:
        if ours.get(key) != theirs.get(key):
            return (
                f"its {key} is {str(theirs.get(key))[:24]}, the leader's is "
                f"{str(ours.get(key))[:24]}"
            )
    return ""


def comparable(hello: Hello) -> dict[str, str]:
    """The fingerprints of a hello; no secrets, so that a stranger may see where it differs."""
    return {key: getattr(hello, key) for key in COMPARED if getattr(hello, key)}


def assemble(cluster: Cluster, hellos: Mapping[int, Hello]) -> Cluster:
    """The cluster with the addresses and interfaces its nodes told."""
    nodes = tuple(
        ClusterNode(node.index, hellos[node.index].address, hellos[node.index].interface)
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
        hosts = (_source_for("192.0.2.1") or "127.0.0.1",)
    else:
        raise UsageError(
            "nothing says where the nodes are",
            "List their addresses under cluster_hosts in the case, or add --rehearse to try it "
            "on this machine.",
        )
    return clusters.plain(case, [ClusterNode(i, host) for i, host in enumerate(hosts)])


def at_home(cluster: Cluster, case: Case) -> Cluster:
    """A cluster that somebody else described, with what only this machine knows of itself."""
    if cluster.rehearsal is not None:
        router = clusters.rehearsed_router(cluster.paths, cluster.router)
        return replace(cluster, proxy_script=clusters.find_proxy_script(case), router=router)
    here = clusters.plain(case, cluster.nodes)
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
            "Is --node-index right, and is the order of cluster_hosts? A container needs the "
            "host's network (--network host).",
        )
    if isinstance(own, ipaddress.IPv6Address) and own.is_link_local:
        raise InfraError(
            f"{address} is a link-local address, which means nothing without an interface",
            "Put a global or unique local (fd..) address into cluster_hosts.",
        )
    # Between pods, whatever network they have is the one that joins them.
    if cluster.backend != "k8s" and is_bridge(address, interface):
        raise InfraError(
            f"{address} belongs to the container bridge {interface}, which other hosts cannot "
            "reach",
            "Put the host's own address into cluster_hosts.",
        )
    return Identity(index, address, cluster.nodes[index].interface or interface)


def is_bridge(address: str, interface: str) -> bool:
    """Whether an address is one that only containers of one host can reach."""
    own = ipaddress.ip_address(address)
    if own.is_loopback:
        return False
    inside = own in _DOCKER_NETWORK and _CONTAINER.exists()
    return inside or interface.startswith(_BRIDGES)


def look_up(name: str, again: Callable[[str], None]) -> str:
    """The IP address of another node's name.

    IPv4 before IPv6, so that all nodes choose the same one of several.

    Args:
        again: called before each new try; may raise.
    """
    return _look_up_all(name, again)[0]


def _look_up_all(name: str, again: Callable[[str], None]) -> list[str]:
    """Every address of a name, as soon as it has one."""
    while True:
        try:
            return _addresses(name)
        except OSError as error:
            again(f"{name}: {error.strerror or error}")


def look_up_own(name: str, peer: str, again: Callable[[str], None]) -> str:
    """The IP address of this node's own name, as others must use it.

    A name may have several addresses, and on its own machine often the
    loopback address alone (Debian writes ``127.0.1.1 hostname`` into
    ``/etc/hosts``): then it is the address from which ``peer`` is reached.

    Args:
        peer: the name of another node; empty when there is none.
        again: called before each new try of a look-up; may raise.
    """
    found = _look_up_all(name, again)
    if name.strip("[]") in found:
        return found[0]
    table = own_addresses()
    here = [address for address in found if own_interface(address, table)]
    outward = [address for address in here if not ipaddress.ip_address(address).is_loopback]
    for address in outward:
        if not is_bridge(address, own_interface(address, table)):
            return address
    if outward or not here:
        return (outward or found)[0]
    other = look_up(peer, again) if peer else ""
    if not other or ipaddress.ip_address(other).is_loopback:
        return here[0]
    return _source_for(other) or here[0]


def _addresses(name: str) -> list[str]:
    """Every address of a name, IPv4 first; an address is its own.

    Raises:
        OSError: the name is not known.
    """
    bare = name.strip("[]")
    try:
        return [str(ipaddress.ip_address(bare.split("%")[0]))]
    except ValueError:
        entries = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    found = {str(entry[4][0]).split("%")[0] for entry in entries}
    return sorted(found, key=lambda text: (":" in text, text))


def _source_for(address: str) -> str:
    """The address of this machine from which ``address`` is reached; empty when it is not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


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
    return hashlib.sha256(dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def read_cluster(path: Path) -> Cluster:
    """A cluster from the JSON that ``Cluster.to_dict`` wrote.

    Raises:
        UsageError: the file is not there or holds no cluster.
    """
    try:
        return decode(Cluster, loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"--cluster {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--cluster {path}: no cluster: {error}") from None
