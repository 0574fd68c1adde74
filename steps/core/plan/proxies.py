"""What stands in front of a split fleet: which proxy, and its command.

Enters: the case's proxy, where it listens, the API servers of both sides.
Leaves: words of a command. Touches nothing.

How upstream's script is started follows the upstream harness (vllm-ascend,
multi_node); the router is vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from steps.core.case.shellwords import split
from steps.core.plan.cluster import Cluster
from steps.core.plan.plan import Process

DEFAULT_SCRIPT = "examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py"
ROUTING_PORT = 1999
DEPLOYMENT_PORT = 6000
#: Where the router's metrics are looked for a free port.
METRICS_PORT = 29000


def choose(kind: str, wanted: str, cluster: Cluster) -> tuple[str, str]:
    """What runs as the proxy (``script``, ``vllm-router`` or ``command``), and what to note.

    Args:
        kind: the case's, perhaps ``auto``.
        wanted: the script that the case means; a rehearsal may do without it.
    """
    absent = cluster.rehearsal is not None and not cluster.proxy_script
    if kind not in ("auto", "script"):
        return kind, ""
    if absent:
        return (
            "vllm-router",
            f"proxy: vllm-router stands in for {wanted}, which is not on this machine",
        )
    return "script", ""


@dataclass(frozen=True)
class Front:
    """A proxy's place.

    Attributes:
        backends: ``prefiller`` and ``decoder`` -> the API servers of that side.
    """

    host: str
    port: int
    backends: Mapping[str, Sequence[Process]]

    def script(self, python: str, path: str) -> tuple[str, ...]:
        """The command of upstream's proxy script."""
        argv = [python, path, "--host", self.host, "--port", str(self.port)]
        for side, processes in self.backends.items():
            hosts, ports = zip(*(_host_port(process.api) for process in processes), strict=True)
            argv += [f"--{side}-hosts", *hosts, f"--{side}-ports", *ports]
        return tuple(argv)

    def router(self, program: str, metrics: int, startup: int) -> tuple[str, ...]:
        """The command of vllm-router.

        Args:
            metrics: the port of its metrics.
            startup: seconds the servers may take to load.
        """
        argv = [program, "--vllm-pd-disaggregation"]
        for flag, side in (("--prefill", "prefiller"), ("--decode", "decoder")):
            for process in self.backends[side]:
                argv += [flag, process.api]
        argv += ["--policy", "round_robin", "--host", self.host, "--port", str(self.port)]
        argv += ["--prometheus-host", self.host, "--prometheus-port", str(metrics)]
        argv += ["--worker-startup-check-interval", "1"]
        argv += ["--worker-startup-timeout-secs", str(startup)]
        argv += ["--kv-connector", "nixl"]
        return tuple(argv)

    def command(
        self, text: str, known: Mapping[str, str], value: Callable[[str, Mapping[str, str]], str]
    ) -> tuple[str, ...]:
        """The case's own command, with variables for the servers' hosts, ports and URLs.

        Args:
            known: further variables.
            value: fills the variables of a word. One that is a list alone becomes many words.
        """
        lists: dict[str, list[str]] = {}
        for side, processes in self.backends.items():
            pairs = [_host_port(process.api) for process in processes]
            lists[f"{side.upper()}_HOSTS"] = [pair[0] for pair in pairs]
            lists[f"{side.upper()}_PORTS"] = [pair[1] for pair in pairs]
            lists[f"{side.upper()}_URLS"] = [process.api for process in processes]
        table = {
            **known,
            "HOST": self.host,
            "PORT": str(self.port),
            **{name: ",".join(items) for name, items in lists.items()},
        }
        argv: list[str] = []
        for word, _, _ in split(text):
            name = word.strip("${}")
            if word in (f"${name}", f"${{{name}}}") and name in lists:
                argv += lists[name]
            else:
                argv.append(value(word, table))
        return tuple(argv)


def _host_port(url: str) -> tuple[str, str]:
    host, _, port = url.split("://", 1)[1].rpartition(":")
    return host.strip("[]"), port
