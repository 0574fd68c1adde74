"""preflight: everything that can be known to be wrong before anything is started.

Enters: a :class:`NodeRun`. Leaves: nothing, or one cause that names all
problems at once. Touches: binds and releases the node's ports, asks npu-smi,
looks at disks and interfaces.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from steps.core.node import alone
from steps.core.node.noderun import NodeRun, StepFailed, free_bytes
from steps.core.node.products import identity
from steps.core.plan.drivers import DRIVERS
from steps.core.plan.plan import Port
from steps.core.record.records import Check
from steps.core.system import certificates, machine
from steps.core.vllm import access, commandline

#: Before a port that is in use is asked once more.
AGAIN_SECONDS = 0.05
_NPU_PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*(\S+)")


def run(run: NodeRun) -> None:
    """Look at everything.

    Raises:
        StepFailed: with every problem found, class infra.
    """
    problems = [
        *addresses(run),
        *ports(run),
        *programs(run),
        *models(run),
        *tls(run),
        *devices(run),
        *disk(run),
        *drivers(run),
    ]
    run.versions.update(identity.versions(run))
    if problems:
        raise StepFailed(
            run.cause_of(
                "preflight",
                "infra",
                "; ".join(problems),
                evidence=tuple(problems),
                hint="Nothing was started. Mend what is named and run again.",
            )
        )
    run.checks.append(Check("preflight", "pass", f"node {run.me.index}"))


def drivers(run: NodeRun) -> Iterator[str]:
    """What keeps the plan's benchmarks from being measured, on the node that does it."""
    if run.is_leader:
        from steps import bench_drivers  # here: workers need none of it

        yield from bench_drivers.problems(run)


def addresses(run: NodeRun) -> Iterator[str]:
    """The node's address must be one of this machine's."""
    try:
        own = ipaddress.ip_address(run.me.address)
    except ValueError:
        return
    if own.is_loopback and own.version == 4:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((run.me.address, 0))
            except OSError:
                yield (
                    f"the loopback address {run.me.address} cannot be used; on macOS add it "
                    f"first: sudo ifconfig lo0 alias {run.me.address}"
                )
        return
    wrong = alone.foreign(run.me.address)
    if wrong:
        yield wrong


def ports(run: NodeRun) -> Iterator[str]:
    """Every port this node will listen on must be free now."""
    for port in run.plan.ports:
        if port.node == run.me.index and port.listens and port.purpose != "control":
            with contextlib.suppress(ValueError):
                yield from _port(run, port)


def _port(run: NodeRun, port: Port) -> Iterator[str]:
    address = _bound(run, port)
    for number in range(port.port, port.port + port.count):
        error = _refused(address, number)
        if _in_use(error):
            run.sleep(AGAIN_SECONDS)  # another node of this machine may be looking just now
            error = _refused(address, number)
        if error is None:
            continue
        name = f"port {number} ({port.purpose} of {port.process})"
        if isinstance(error, OverflowError):
            yield f"{name} is none: 1 to 65535"
        elif _in_use(error):
            yield f"{name} is in use{_holder(number)}"
        elif error.errno == errno.EACCES:
            yield f"{name} needs more rights"


def _bound(run: NodeRun, port: Port) -> str:
    """The address a process will listen on: a server without ``--host`` takes all of them.

    A stand-in takes its node's own, since all nodes of a rehearsal are one machine.
    """
    argv = next((p.argv for p in run.me.processes if p.name == port.process), ())
    if port.purpose != "api" or run.plan.rehearsed:
        return run.me.address
    host = (commandline.read(argv).text("--host") or "0.0.0.0").strip("[]")
    return "127.0.0.1" if host == "localhost" else host


def _in_use(error: OSError | OverflowError | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def _refused(address: str, number: int) -> OSError | OverflowError | None:
    """Why nobody can listen there now; None when one can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, number))
            probe.listen(1)
        except (OSError, OverflowError) as error:
            return error
    return None


def _holder(port: int) -> str:
    """Which program listens on a port, if we may see it."""
    try:
        import psutil
    except ImportError:  # an image may lack it
        return ""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN":
                name = psutil.Process(connection.pid).name() if connection.pid else "?"
                return f" by {name} (pid {connection.pid}) on {connection.laddr.ip}"
    return ""


def programs(run: NodeRun) -> Iterator[str]:
    """Every program the node will start must be on its PATH."""
    for process in run.me.processes:
        path = run.supervisor.environment(process).get("PATH", "")
        if process.kind == "server" and run.plan.cluster.installs:
            continue  # the product under test may bring it; its start tells
        if shutil.which(process.argv[0], path=path) is None:
            yield f"{process.argv[0]!r}, which {process.name} needs, is not on PATH"
        script = process.argv[1] if process.kind == "proxy" and len(process.argv) > 1 else ""
        if script.endswith(".py") and not _found(run, script):
            yield f"the proxy script {script} is not there"


def _found(run: NodeRun, script: str) -> bool:
    base = Path(run.plan.cluster.workdir) if run.plan.cluster.workdir else run.dir.path / "work"
    return (base / script).is_file()


def models(run: NodeRun) -> Iterator[str]:
    """Weights given as a path must be there; hub ids are the engine's business."""
    if run.plan.rehearsed:
        return
    for process in run.me.processes:
        model = commandline.read(process.argv).model if process.kind == "server" else None
        if model and model.startswith(("/", "./", "../", "~")) and not Path(model).exists():
            yield f"the model directory {model} is not there"
            return


def tls(run: NodeRun) -> Iterator[str]:
    """Clients must accept what servers speak TLS with; our own take any certificate."""
    plan = run.plan
    strict = any(DRIVERS[entry.driver].verifies for entry in plan.benchmarks)
    looks = bool(plan.proxy) or (strict and run.is_leader)
    if looks and not run.is_leader and plan.issuers:
        looks = Path(plan.issuers).is_file()  # it need only be where the proxy is
    hint = f"; name a file of its issuers in {access.TRUST_VARIABLE} under envs" if looks else ""
    for process in run.me.processes:
        found = access.certificate(commandline.read(process.argv)) if process.api else None
        if process.kind == "server" and found:
            host = urlsplit(process.api).hostname or ""
            trust = plan.issuers if looks else None
            if wrong := certificates.trouble(found, host, trust):
                yield f"--ssl-certfile {found.file} of {process.name}, for {host}: {wrong}{hint}"


def devices(run: NodeRun) -> Iterator[str]:
    """Devices must be as many as the case says, and idle; asked of npu-smi where it is."""
    if run.me.devices == 0:
        return
    servers = [process for process in run.me.processes if process.kind == "server"]
    if not servers:
        return
    env = {**run.supervisor.environment(servers[0]), "REHEARSAL_PROCESS": "npu-smi"}
    program = shutil.which("npu-smi", path=env.get("PATH"))
    if program is None:
        run.checks.append(Check("devices", "skipped", "npu-smi is not on this node"))
        return
    try:
        done = subprocess.run(
            [program, "info"], env=env, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"npu-smi does not answer: {error}"
        return
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip())[-200:]
        yield f"npu-smi info failed with code {done.returncode}: {said or 'it said nothing'}"
        return
    for line in done.stdout.splitlines():
        match = _NPU_PROCESS.match(line)
        if match:
            npu, chip, pid, name = match.groups()
            yield f"device {npu}/{chip} is busy: process {name} (pid {pid}) holds it"


def disk(run: NodeRun) -> Iterator[str]:
    """The run directory needs room for logs."""
    free = free_bytes(run.dir.path)
    if free < machine.NEEDED_BYTES:
        wanted = machine.NEEDED_BYTES >> 20
        yield f"{run.dir.path} has {free >> 20} MiB free, expected at least {wanted}"


main = alone.step("preflight", __doc__, lambda _: [("preflight", run)], everywhere=True)

if __name__ == "__main__":
    raise SystemExit(main())
