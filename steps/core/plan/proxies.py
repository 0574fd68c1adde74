"""What stands in front of a split fleet: the kinds of proxy, and the command of each.

Enters: the case's proxy, where it listens, the API servers of both sides.
Leaves: words of a command. Touches nothing.

How upstream's script is started follows the upstream harness (vllm-ascend,
multi_node); the router is vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from steps.core.case.shellwords import split
from steps.core.plan.cluster import ROUTER, STAND_IN_ROUTER, Cluster, Tool
from steps.core.plan.plan import Process

DEFAULT_SCRIPT = "examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py"
ROUTING_PORT = 1999
DEPLOYMENT_PORT = 6000


@dataclass(frozen=True)
class Front:
    """A proxy's place, and what its command may need.

    Attributes:
        backends: ``prefiller`` and ``decoder`` -> the API servers of that side.
        script: the script that the case means, where it is.
        command: the case's own command.
        env: variables that the command may use.
        fill: fills the variables of a word.
        ports: those that its kind asks for, in that order.
        startup: seconds the servers may take to load.
    """

    host: str
    port: int
    backends: Mapping[str, Sequence[Process]]
    cluster: Cluster
    script: str
    command: str
    env: Mapping[str, str]
    fill: Callable[[str, Mapping[str, str]], str]
    ports: Sequence[int]
    startup: int


@dataclass(frozen=True)
class Kind:
    """One kind of proxy.

    Attributes:
        argv: its command.
        health: the path that answers 200 when it is ready.
        ports: purpose and first choice of each port it takes beside its own.
        is_here: whether a rehearsal can start it; if not, vllm-router stands in.
        tool: the program it is, where a runner can build that.
        over_tls: it asks servers over https where their URLs say so.
    """

    name: str
    argv: Callable[[Front], tuple[str, ...]]
    health: str = "health"
    ports: tuple[tuple[str, int], ...] = ()
    is_here: Callable[[Cluster], bool] = lambda cluster: True
    tool: Tool | None = None
    over_tls: bool = True


def _script(front: Front) -> tuple[str, ...]:
    """Upstream's proxy script."""
    argv = [front.cluster.python, front.script, "--host", front.host, "--port", str(front.port)]
    for side, processes in front.backends.items():
        hosts, ports = zip(*(_host_port(process.api) for process in processes), strict=True)
        argv += [f"--{side}-hosts", *hosts, f"--{side}-ports", *ports]
    return tuple(argv)


def _router(front: Front) -> tuple[str, ...]:
    """vllm-router."""
    [metrics] = front.ports
    argv = [ROUTER.of(front.cluster), "--vllm-pd-disaggregation"]
    for flag, side in (("--prefill", "prefiller"), ("--decode", "decoder")):
        for process in front.backends[side]:
            argv += [flag, process.api]
    argv += ["--policy", "round_robin", "--host", front.host, "--port", str(front.port)]
    argv += ["--prometheus-host", front.host, "--prometheus-port", str(metrics)]
    argv += ["--worker-startup-check-interval", "1"]
    argv += ["--worker-startup-timeout-secs", str(front.startup)]
    argv += ["--kv-connector", "nixl"]
    return tuple(argv)


def _command(front: Front) -> tuple[str, ...]:
    """The case's own, with variables for the servers' hosts, ports and URLs.

    A word that is a list's variable alone becomes many words.
    """
    lists: dict[str, list[str]] = {}
    for side, processes in front.backends.items():
        pairs = [_host_port(process.api) for process in processes]
        lists[f"{side.upper()}_HOSTS"] = [pair[0] for pair in pairs]
        lists[f"{side.upper()}_PORTS"] = [pair[1] for pair in pairs]
        lists[f"{side.upper()}_URLS"] = [process.api for process in processes]
    table = {
        **front.env,
        "HOST": front.host,
        "PORT": str(front.port),
        **{name: ",".join(items) for name, items in lists.items()},
    }
    argv: list[str] = []
    for word, _, _ in split(front.command):
        name = word.strip("${}")
        if word in (f"${name}", f"${{{name}}}") and name in lists:
            argv += lists[name]
        else:
            argv.append(front.fill(word, table))
    return tuple(argv)


def _host_port(url: str) -> tuple[str, str]:
    host, _, port = url.split("://", 1)[1].rpartition(":")
    return host.strip("[]"), port


_ALL = (
    Kind(
        "script",
        _script,
        "healthcheck",
        is_here=lambda cluster: bool(cluster.proxy_script),
        over_tls=False,
    ),
    Kind("vllm-router", _router, ports=(("proxy metrics", 29000),), tool=ROUTER),
    Kind("command", _command),
)
KINDS = {kind.name: kind for kind in _ALL}


def meant(name: str) -> Kind:
    """The kind that a case's ``name`` means; ``auto`` is upstream's script."""
    return KINDS.get(name, KINDS["script"])


def choose(name: str, wanted: str, cluster: Cluster) -> tuple[Kind, str]:
    """The kind that runs, and what to note.

    Args:
        name: the case's.
        wanted: the script that the case means; a rehearsal may do without it.
    """
    kind = meant(name)
    if cluster.rehearsal is None:
        return kind, ""
    router = KINDS["vllm-router"]
    actor = "vllm-router"
    if cluster.router == STAND_IN_ROUTER:
        actor = "the rehearsal's own proxy"
    if kind.is_here(cluster) and (kind is not router or actor == router.name):
        return kind, ""
    missing = router.name if kind is router else wanted
    return router, f"proxy: {actor} stands in for {missing}, which is not on this machine"


#: What the kind of a proxy in front of encoders is called, and upstream's script of it.
ENCODERS = "epd"
_ENCODERS_SCRIPT = "examples/disaggregated_encoder/disagg_epd_proxy.py"


def listens(args: Sequence[str]) -> tuple[str, int]:
    """Host and port that a proxy of encoders is told."""
    told = dict(pairwise(args))
    port = told.get("--port", "")
    return told.get("--host", "0.0.0.0"), int(port) if port.isdecimal() else 8000


def encoders(args: Sequence[str], cluster: Cluster) -> tuple[tuple[str, ...], str]:
    """The command of a proxy in front of encoders, and what to note."""
    if cluster.rehearsal is None:
        return (cluster.python, _ENCODERS_SCRIPT, *args), ""
    note = f"proxy: the rehearsal's own proxy stands in for {_ENCODERS_SCRIPT}"
    return ("rehearsal-encoders", *args), note
