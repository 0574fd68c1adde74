"""Clusters that need nothing but this machine or a list of addresses.

Enters: a case, a few options. Leaves: a :class:`Cluster`. Touches: binds a
socket for a moment to find a free loopback network; looks for the proxy.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from steps.core import settings
from steps.core.case.case import Case
from steps.core.errors import InfraError, UsageError
from steps.core.plan.cluster import (
    ROUTER,
    STAND_IN_ROUTER,
    Cluster,
    ClusterNode,
    Rehearsal,
    loopback_nodes,
)
from steps.core.plan.proxies import DEFAULT_SCRIPT

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = ROOT / "rehearsal"


def local(
    case: Case,
    *,
    rehearsal: Rehearsal | None = None,
    network: str = "",
    router: str = "",
    ais_bench: str = "",
    env: Mapping[str, str] | None = None,
    paths: Mapping[str, tuple[str, ...]] | None = None,
    name: str = "",
) -> Cluster:
    """Every node of the case on this machine, each on a loopback address of its own.

    Args:
        network: such as ``71.9`` for 127.71.9.x; empty: a free one.
        paths: what to put in front of path variables; the stand-ins come before it.
    """
    found = settings.read()
    port = found.control_port
    merged = {key: tuple(value) for key, value in (paths or {}).items()}
    if rehearsal is not None:
        merged["PATH"] = (str(STAND_INS / "bin"), *merged.get("PATH", ()))
        merged["PYTHONPATH"] = (str(STAND_INS / "lib"), *merged.get("PYTHONPATH", ()))
    return Cluster(
        name=name or ("rehearsal" if rehearsal else "local"),
        backend="local",
        nodes=loopback_nodes(case.num_nodes, network or free_network(port)),
        control_port=port,
        env={**(env or {})},
        known={
            "WORKSPACE": str(Path.cwd()),
            "BENCHMARK_HOME": "",
            **{name: str(found.cache / store) for name, store in settings.STORES.items()},
            **settings.passed_through(),
        },
        paths=merged,
        proxy_script=find_proxy_script(case),
        router=router or (rehearsed_router(merged) if rehearsal else found.router),
        ais_bench=ais_bench or found.ais_bench,
        python=sys.executable,
        rehearsal=rehearsal,
        inherit=case.inherit,
    )


def rehearsed_router(paths: Mapping[str, Sequence[str]], wanted: str = "") -> str:
    """The router of a rehearsal on this machine: the one that is there, else its stand-in.

    Args:
        paths: directories put in front of PATH, among others.
        wanted: the profile's.
    """
    wanted = wanted or settings.read().router
    path = os.pathsep.join([*paths.get("PATH", ()), settings.read().path])
    return wanted if shutil.which(wanted or ROUTER.program, path=path) else STAND_IN_ROUTER


def plain(case: Case, nodes: Sequence[ClusterNode], *, name: str = "hosts") -> Cluster:
    """The machines of a by-hand run: nothing but their addresses is known."""
    found = settings.read()
    return Cluster(
        name=name,
        backend="hosts",
        nodes=tuple(nodes),
        control_port=found.control_port,
        known=settings.passed_through(),
        scripts=ascend_scripts(),
        proxy_script=find_proxy_script(case),
        router=found.router,
        ais_bench=found.ais_bench,
        workdir=found.workspace if found.workspace and Path(found.workspace).is_dir() else "",
        python="python3",
    )


def ascend_scripts() -> tuple[str, ...]:
    """CANN's and ATB's environment scripts, where they are on this machine."""
    known = (
        "/usr/local/Ascend/ascend-toolkit/set_env.sh",
        "/usr/local/Ascend/nnal/atb/set_env.sh",
    )
    return tuple(path for path in known if Path(path).is_file())


def find_proxy_script(case: Case) -> str:
    """Where the case's proxy script is on this machine; empty when it is not."""
    wanted = case.proxy.script
    for node in case.nodes[:1]:
        wanted = wanted or node.envs.get("DISAGGREGATED_PREFILL_PROXY_SCRIPT", "")
    found = settings.read()
    wanted = wanted or found.proxy_script or DEFAULT_SCRIPT
    roots = [Path.cwd(), Path(case.file).parent]
    for base in (found.workspace, "/vllm-workspace"):
        if base:
            roots += [Path(base), Path(base) / "vllm-ascend"]
    for root in roots:
        if os.path.isfile(root / wanted):  # noqa: PTH113 (it takes any text)
            return str((root / wanted).resolve())
    return ""


def _reach(address: str) -> None:
    """Raises InfraError when the loopback device is down; one can bind to it all the same."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError as error:
            raise InfraError(
                f"the loopback network is down: {address}: {error.strerror}",
                "In a network namespace of its own: ip link set lo up.",
            ) from None


def free_network(port: int) -> str:
    """Two numbers of a loopback network where nobody listens on ``port``.

    Raises:
        InfraError: this machine has one loopback address only (macOS).
    """
    generator = random.Random(os.urandom(8))
    for _ in range(64):
        network = f"{generator.randint(64, 250)}.{generator.randint(1, 250)}"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((f"127.{network}.1", port))
                _reach(f"127.{network}.1")
                return network
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise InfraError(
                        f"the loopback address 127.{network}.1 cannot be used on this machine",
                        "A rehearsal gives each node a loopback address of its own; Linux has "
                        "them all, macOS needs `sudo ifconfig lo0 alias 127.71.9.1` and so on.",
                    ) from None
    raise InfraError(
        f"port {port} is taken on 64 loopback networks",
        "Something listens on every address; choose another with MULTINODE_CONTROL_PORT.",
    )


def node_index(case: Case, given: int | None, own: Mapping[str, Sequence[str]]) -> int:
    """Which node this machine is.

    The option, else ``LWS_WORKER_INDEX``, else the position of an own address
    in ``cluster_hosts``.

    Raises:
        UsageError: nothing says it, or it is out of range.
    """
    found = settings.read()
    name = "--node-index"
    if given is None and found.lws_worker_index:
        name, text = "LWS_WORKER_INDEX", found.lws_worker_index
        if not (text.isascii() and text.isdigit()):
            raise UsageError(
                f"{name}: found {text!r}, expected 0 to {case.num_nodes - 1}",
                "Correct or unset it, or give --node-index I.",
            )
        given = int(text)
    if given is None and case.cluster_hosts:
        mine = {address for addresses in own.values() for address in addresses}
        here = [i for i, host in enumerate(case.cluster_hosts) if _is_here(host, mine)]
        if len(here) == 1:
            given = here[0]
        elif here:
            raise UsageError(
                f"cluster_hosts {', '.join(case.cluster_hosts[i] for i in here)} are all this "
                "machine",
                "Say which node this is: --node-index I.",
            )
        else:
            raise UsageError(
                f"none of cluster_hosts {', '.join(case.cluster_hosts)} is this machine, which "
                f"has {', '.join(sorted(mine - _EVERYWHERE)) or 'no address'}",
                "Correct cluster_hosts in the case, or give --node-index I.",
            )
    if given is None:
        raise UsageError(
            "nothing says which node this machine is",
            "Give --node-index I, set LWS_WORKER_INDEX, or list the nodes' addresses in the "
            "case's cluster_hosts.",
        )
    if not 0 <= given < case.num_nodes:
        raise UsageError(
            f"{name}: found {given}, expected 0 to {case.num_nodes - 1}",
            "Nodes count from 0; node 0 is the leader.",
        )
    return given


#: Loopback addresses that every machine has; what Debian calls a machine by on itself.
_EVERYWHERE = {"127.0.0.1", "127.0.1.1", "::1"}


def _is_here(host: str, mine: set[str]) -> bool:
    """Whether a host is this machine: one of its addresses is own, or a loopback address."""
    found = _addresses_of(host)
    return bool(mine & found) or any(ipaddress.ip_address(text).is_loopback for text in found)


def _addresses_of(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), None)
        return {str(entry[4][0]).split("%")[0] for entry in found}
    except OSError:
        return set()
