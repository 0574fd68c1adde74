"""What a machine has: the facts that decide whether a fleet can run on it.

Enters: a directory, ports, a model's path, an engine's program and packages to look
at. Leaves: facts as plain JSON values, and what is wrong with them. Touches: reads this
machine; binds and releases ports; asks npu-smi. Starts nothing else.

Only the standard library, and nothing of ours, is imported here: the same text
is sent to hosts that have nothing but Python, and run there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Facts that should be the same on all machines of a fleet, besides versions of packages.
ALIKE = ("python", "system", "kernel", "devices", "driver", "cann", "model")
NEEDED_BYTES = 1 << 30
_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_CANN = Path("/usr/local/Ascend/ascend-toolkit/latest")
_DEVICE = re.compile(r"^\|\s*\d+\s+(\w+)\s*\|\s*(\w+)\s*\|")
_SECONDS = 30
#: Runs in another interpreter: versions, and the commit of what is installed from a checkout (in
#: place, so that the checkout still runs), by pip from git, or built with it in its version.
_LOOK = """
import importlib.metadata, json, os, re, subprocess, sys, urllib.parse, urllib.request

def dirty(git):
    words = [*git, "diff", "--quiet", "--ignore-submodules", "HEAD"]
    try:
        return "-dirty" if subprocess.run(words, timeout=7).returncode == 1 else ""
    except subprocess.TimeoutExpired:
        return ""

def commit(one):
    told = json.loads(one.read_text("direct_url.json") or "{}")
    place = str(one.locate_file(""))
    if told.get("dir_info", {}).get("editable"):
        place = urllib.request.url2pathname(urllib.parse.urlsplit(told["url"]).path)
    if os.path.exists(os.path.join(place, ".git")):
        git = ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", place]
        words = [*git, "rev-parse", "HEAD"]
        head = subprocess.run(words, capture_output=True, text=True, timeout=5)
        if head.returncode == 0:
            words = [*git, "symbolic-ref", "--quiet", "--short", "HEAD"]
            named = subprocess.run(words, capture_output=True, text=True, timeout=5)
            found[name + "-branch"] = named.stdout.strip()
            return head.stdout.strip() + dirty(git)
    built = re.search(r"[+.]g([0-9a-f]{7,40})(?![0-9a-z])", one.version)
    return told.get("vcs_info", {}).get("commit_id") or (built and built[1])

found = {}
for name in sys.argv[1:]:
    try:
        one = importlib.metadata.distribution(name)
        found[name] = one.version
        found[name + "-commit"] = commit(one)
    except Exception:
        pass
print(json.dumps({name: value for name, value in found.items() if value}))
"""

Facts = Mapping[str, Any]


def brief(names: Sequence[str]) -> dict[str, str]:
    """What is quickly told, for nodes that meet: versions of what must fit together."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "driver": _value_of(_DRIVER, "Version"),
        "cann": cann(),
        **packages(names),
    }


def facts(
    directory: str,
    ports: Iterable[int],
    model: str,
    address: str,
    engine: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """Everything worth knowing before a run.

    Args:
        address: ports are tried on it; empty: on all.
        engine: the engine's program.
        names: packages that matter to it.
    """
    count, health, driver = devices()
    return {
        **brief(names),
        "host": socket.gethostname(),
        "interpreter": sys.executable,
        "kernel": platform.release(),
        "engine": shutil.which(engine) or "",
        **engine_packages(engine, names),
        "devices": count,
        "unhealthy": health,
        **({"driver": driver} if driver else {}),
        "memory": _memory(),
        "free": _free(directory),
        "addresses": list(addresses()),
        "taken": [port for port in ports if not _is_free(address, port)],
        "model": _model(model),
        "time": time.time(),
    }


def packages(names: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that matter, of this interpreter."""
    import importlib.metadata  # here: a rehearsal asks for none

    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def engine_packages(engine: str, names: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that matter, of the interpreter that ``engine`` runs on."""
    program = shutil.which(engine)
    if program is None:
        return {}
    with contextlib.suppress(OSError, ValueError, UnicodeDecodeError, subprocess.SubprocessError):
        first = Path(program).read_text(encoding="utf-8").splitlines()[0]
        python = first.removeprefix("#!").split()
        if first.startswith("#!") and Path(python[0]).name.startswith("python"):
            return versions_of(python, names)
    return {}


def versions_of(
    python: list[str], names: Sequence[str], env: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Versions of the packages that matter, of another interpreter; empty when it has none.

    A package's git commit stands beside it as ``NAME-commit``, its branch as ``NAME-branch``,
    where they are known.
    """
    try:
        done = subprocess.run(
            [*python, "-c", _LOOK, *names],
            env=env,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        return dict(json.loads(done.stdout))
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}


def devices() -> tuple[str, list[str], str]:
    """Devices by kind, those that are not well, and the driver's version, as npu-smi says."""
    program = shutil.which("npu-smi")
    if program is None:
        return "no npu-smi", [], ""
    try:
        done = subprocess.run(
            [program, "info"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "npu-smi does not answer", [str(error)], ""
    kinds: dict[str, int] = {}
    ill = []
    for line in done.stdout.splitlines():
        match = _DEVICE.match(line)
        if match and match[1] != "Name":
            kinds[match[1]] = kinds.get(match[1], 0) + 1
            if match[2] not in ("OK", "Health"):
                ill.append(" ".join(line.replace("|", " ").split()))
    version = re.search(r"Version:\s*(\S+)", done.stdout)
    text = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "none"
    return text, ill, version[1] if version else ""


def cann() -> str:
    """The version of the CANN toolkit; empty when there is none."""
    for name in ("ascend_toolkit_install.info", "*/ascend_toolkit_install.info", "version.cfg"):
        for path in sorted(_CANN.glob(name)):
            found = _value_of(path, "version")
            if found:
                return found
    return ""


def addresses() -> Iterator[str]:
    """``interface address`` of this machine, without loopback."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["ip", "-o", "addr"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        for line in done.stdout.splitlines():
            words = line.split()
            if len(words) > 3 and words[1] != "lo" and words[2] in ("inet", "inet6"):
                yield f"{words[1]} {words[3]}"


def problems(told: Facts, skew: float = 0.0) -> Iterator[str]:
    """What is wrong with one machine by itself."""
    version = tuple(int(part) for part in str(told["python"]).split(".")[:2])
    if version < (3, 10):
        yield f"Python {told['python']}, expected 3.10 or newer"
    for line in told["unhealthy"]:
        yield f"a device is not well: {line}"
    free = told["free"]
    if free is None:
        yield "the directory for runs is not there"
    elif free < NEEDED_BYTES:
        yield f"{free >> 20} MiB free for runs, expected at least {NEEDED_BYTES >> 20}"
    if told["taken"]:
        yield f"ports in use: {', '.join(map(str, told['taken']))}"
    if told["model"] == "missing":
        yield "the model is not there"
    if abs(skew) > 1.0:
        yield f"its clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"


def _value_of(path: Path, name: str) -> str:
    """The value of ``name=value`` in a file; empty when it is not there."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, equals, value = line.partition("=")
            if equals and key.strip() == name:
                return value.strip()
    return ""


def _memory() -> int:
    """Bytes of memory; 0 when the system does not say."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _free(directory: str) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


def _is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address or "0.0.0.0", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _model(path: str) -> str:
    """Files and bytes of a model's directory; ``missing`` when it is not there."""
    if not path:
        return ""
    root = Path(path).expanduser()
    if not root.exists():
        return "missing"
    files = [entry for entry in root.rglob("*") if entry.is_file()]
    return f"{len(files)} files, {sum(entry.stat().st_size for entry in files)} bytes"


def main() -> int:
    """``DIRECTORY PORTS MODEL ADDRESS ENGINE PACKAGES`` to facts, where nothing of ours is."""
    directory, ports, model, address, engine, names = sys.argv[1:7]
    numbers = [int(port) for port in ports.split(",") if port]
    told = facts(directory, numbers, model, address, engine, names.split(","))
    print(json.dumps(told, allow_nan=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
