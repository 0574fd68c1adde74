"""Where a case runs: the ordered nodes and what is the same on all of them.

Enters: addresses, a profile. Leaves: a :class:`Cluster`. Touches nothing,
but for :func:`own_interface` and :func:`own_addresses`, which look at this
machine's network interfaces.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steps.core.plan.products import Product
from steps.core.settings import CONTROL_PORT


@dataclass(frozen=True)
class ClusterNode:
    """One node: the address others reach it under, and the interface that has it."""

    index: int
    address: str
    interface: str = ""


@dataclass(frozen=True)
class Rehearsal:
    """How stand-ins behave: seconds to load, and all injected faults, also the runner's."""

    load_seconds: float = 1.0
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """A fleet's machines.

    Attributes:
        backend: ``local``, ``hosts`` or ``k8s``.
        env: what the profile sets in every process; a case's commands may refer to it.
        known: further variables of the image that a case's commands may refer to.
        paths: directories put in front of path variables, such as PATH.
        scripts: environment scripts each node sources before it starts anything.
        workdir: working directory of the servers; empty: the node's own.
        proxy_script: where upstream's proxy script really is on the leader.
        router: the vllm-router program, if there is one.
        ais_bench: the ais_bench program; empty: the one on PATH.
        python: the interpreter that runs scripts and pip on the nodes.
        inherit: secrets of this machine's environment that local engines get.
        image: what the nodes' containers are made of, where somebody told.
        products: what is under test, in the order of installation.
    """

    name: str
    backend: str
    nodes: tuple[ClusterNode, ...]
    control_port: int = CONTROL_PORT
    env: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    workdir: str = ""
    proxy_script: str = ""
    router: str = ""
    ais_bench: str = ""
    python: str = "python3"
    rehearsal: Rehearsal | None = None
    timeouts: Mapping[str, float] = field(default_factory=dict)
    inherit: tuple[str, ...] = ()
    image: str = ""
    products: tuple[Product, ...] = ()

    @property
    def installs(self) -> bool:
        """Whether nodes install a product; a rehearsal installs none."""
        return self.rehearsal is None and any(product.moves for product in self.products)

    @property
    def skipped(self) -> list[str]:
        """What a rehearsal does not install of the products, in a sentence."""
        moved = [str(product) for product in self.products if product.moves]
        if self.rehearsal is None or not moved:
            return []
        return [f"stand-ins play, so not installed in a rehearsal: {', '.join(moved)}: skipped"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tool:
    """A program that runs on the leader, and that a runner builds where it is absent.

    Attributes:
        environment: the name of its recipe in ``ci.tools.environments``.
        field: the cluster's field that says where it is.
    """

    program: str
    environment: str
    field: str

    def of(self, cluster: Cluster) -> str:
        """The program to start; a bare name is looked for on PATH."""
        return str(getattr(cluster, self.field) or self.program)


AIS_BENCH = Tool("ais_bench", "aisbench", "ais_bench")
ROUTER = Tool("vllm-router", "vllm-router", "router")
#: What plays it in a rehearsal where it is not; on PATH there, as the other stand-ins are.
STAND_IN_ROUTER = "rehearsal-router"


def loopback_nodes(count: int, network: str) -> tuple[ClusterNode, ...]:
    """``count`` nodes on loopback addresses of their own.

    Args:
        network: two numbers, such as ``71.9``, for 127.71.9.1, 127.71.9.2 and so on.
    """
    first, second = (int(part) for part in network.split("."))
    base = int(ipaddress.IPv4Address(f"127.{first}.{second}.0"))
    return tuple(
        ClusterNode(i, str(ipaddress.IPv4Address(base + i + 1)), "lo") for i in range(count)
    )


def own_addresses() -> dict[str, list[str]]:
    """Interface -> its IP addresses, without scope suffixes."""
    try:
        import psutil
    except ImportError:  # an image that lacks it: Linux tells us itself
        return _kernel_addresses()
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.split("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }


def _kernel_addresses() -> dict[str, list[str]]:
    """The same without psutil, from SIOCGIFCONF and /proc/net/if_inet6 (Linux)."""
    import array
    import fcntl

    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    row = 40  # struct ifreq on 64-bit Linux: 16 bytes of name, then a sockaddr
    buffer = array.array("B", bytes(row * 256))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
        size = struct.unpack("iL", fcntl.ioctl(any_socket, 0x8912, request))[0]
    rows = buffer.tobytes()[:size]
    for i in range(0, size, row):
        name = rows[i : i + 16].split(b"\0")[0].decode().split(":")[0]
        found.setdefault(name, []).append(socket.inet_ntoa(rows[i + 20 : i + 24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            address = str(ipaddress.IPv6Address(bytes.fromhex(digits)))
            found.setdefault(name, []).append(address)
    return found


def own_interface(address: str, interfaces: Mapping[str, Iterable[str]] | None = None) -> str:
    """The interface of this machine that has ``address``; empty when none has it."""
    wanted = ipaddress.ip_address(address)
    table = own_addresses() if interfaces is None else interfaces
    for name, addresses in table.items():
        if any(ipaddress.ip_address(entry) == wanted for entry in addresses):
            return name
    if wanted.is_loopback and wanted.version == 4:
        return "lo"
    return ""


def url_host(address: str) -> str:
    """An address as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
