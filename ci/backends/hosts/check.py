"""hosts-check: what every host of a fleet has, and where they differ.

Enters: hosts, as for a run, or none for this machine; a directory, ports, a model.
Leaves: facts, differences, problems, as text or JSON; exit code 3 when a host has a
problem. Touches: one SSH connection a host; what ``steps.core.system.machine`` looks
at; leaves nothing anywhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ci.backends.hosts import inventory as hosts_file
from ci.backends.hosts.client import Client
from ci.backends.hosts.inventory import Host, Inventory
from ci.backends.hosts.ssh import Remote
from steps.core import door, foreign, settings
from steps.core.case.build import load_case
from steps.core.case.numbers import dumps, loads
from steps.core.errors import Exit, MultinodeError, UsageError
from steps.core.node import wishes
from steps.core.system import machine
from steps.core.system.machine import Facts
from steps.core.vllm import installed

_RUN = (
    "import sys;v=sys.version_info;"
    "v<(3,10) and sys.exit('Python %d.%d is too old, expected 3.10 or newer'%v[:2]);"
    "exec(compile(sys.stdin.read(),'machine','exec'))"
)


_SHOWN = ("host", "interpreter", *installed.ALIKE, "engine", "memory", "free", "addresses", "taken")


def text(found: Mapping[str, Facts]) -> Iterator[str]:
    """Every fact once where machines agree, else each value with those that have it."""
    everybody = f"all {len(found)}" if len(found) > 1 else ""
    for name in dict.fromkeys(_SHOWN):
        values: dict[str, list[str]] = {}
        for host, told in found.items():
            values.setdefault(_shown(name, told.get(name)), []).append(host)
        unlike = name in installed.ALIKE and len(values) > 1
        for value, they in sorted(values.items(), key=lambda item: -len(item[1])):
            if value or len(values) > 1:
                where = everybody if len(values) == 1 else ", ".join(they)
                mark = "!" if unlike else " "
                yield f"{mark} {name:<24} {value or 'none':<36} {where}".rstrip()


def _shown(name: str, value: object) -> str:
    if name in ("memory", "free") and isinstance(value, int):
        return f"{value / (1 << 30):.1f} GiB"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hosts", default="", help="addresses, or a hosts file")
    parser.add_argument("--case", default="", help="a case with cluster_hosts")
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    parser.add_argument(
        "--directory", default="", help="where runs will be; default: the hosts file's, or /tmp"
    )
    parser.add_argument("--ports", default="", help="ports that must be free, comma separated")
    parser.add_argument("--model", default="", help="a model's directory that must be there")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(arguments: argparse.Namespace) -> int:
    """Look at all hosts at once, or at this machine, and print what was found."""
    ports = ports_of(arguments)
    if not arguments.hosts and not arguments.case:
        told = machine.facts(
            arguments.directory or "/tmp",
            ports,
            arguments.model,
            "",
            installed.PROGRAM,
            installed.PACKAGES,
        )
        return _say({told["host"]: told}, list(machine.problems(told)), arguments.format)
    hosts = _inventory(arguments).hosts
    with Client() as client, ThreadPoolExecutor(len(hosts)) as pool:
        looks = list(pool.map(lambda host: look(host, client, arguments, ports), hosts))
    found = {str(host): told for host, (told, _) in zip(hosts, looks, strict=True) if told}
    problems = [
        f"{host}: {problem}"
        for host, (_, wrong) in zip(hosts, looks, strict=True)
        for problem in wrong
    ]
    return _say(found, problems, arguments.format, len(hosts))


def _say(found: Mapping[str, Facts], problems: Sequence[str], style: str, hosts: int = 0) -> int:
    """Print what was found on ``hosts``, or with 0 on this machine alone; the exit code."""
    unlike = installed.differences(found)
    if style == "json" and hosts:
        print(dumps({"hosts": found, "differences": unlike, "problems": problems}, indent=2))
    elif style == "json":
        print(dumps({"facts": next(iter(found.values())), "problems": problems}, indent=2))
    else:
        lines = list(text(found)) if found else []
        lines += [f"warning: {sentence}" for sentence in installed.sentences(found)]
        lines += [f"error: {problem}" for problem in problems]
        if hosts:
            lines.append(f"{hosts} hosts, {len(problems)} problems, {len(unlike)} differences")
        print("\n".join(map(foreign.block, lines)))
    return int(Exit.INFRA) if problems else int(Exit.PASS)


def ports_of(arguments: argparse.Namespace) -> list[int]:
    """The ports to look at; the control port always."""
    words = [word.strip() for word in arguments.ports.split(",") if word.strip()]
    wrong = [word for word in words if settings.port(word) is None]
    if wrong:
        raise UsageError(
            f"--ports: found {', '.join(map(repr, wrong))}, expected numbers from 1 to 65535",
            "Separate them by commas: --ports 8080,13389.",
        )
    return [settings.read().control_port, *map(int, words)]


def look(
    host: Host, client: Client, arguments: argparse.Namespace, ports: Sequence[int]
) -> tuple[dict[str, Any], list[str]]:
    """The facts of one host, and what is wrong with it."""
    remote = Remote(host, client)
    try:
        remote.connect()
        source = Path(str(machine.__file__)).read_text(encoding="utf-8")
        directory = arguments.directory or host.directory
        looked = (directory, ",".join(map(str, ports)), arguments.model, host.address)
        wanted = (*looked, installed.PROGRAM, ",".join(installed.PACKAGES))
        asked = time.time()
        out = remote.call("-c", _RUN, *wanted, given=source)
        answered = time.time()
        told: dict[str, Any] = loads(out)
        skew = told["time"] - min(max(told["time"], asked), answered)
        return told, list(machine.problems(told, skew))
    except MultinodeError as error:
        text = error.message.removeprefix(f"{host}: ")
        return {}, [f"{text}. {error.hint}" if error.hint else text]
    except ValueError:
        return {}, ["its Python answers with something else than facts"]
    finally:
        remote.close()


def _inventory(arguments: argparse.Namespace) -> Inventory:
    """The hosts that the command line names."""
    if arguments.hosts:
        return hosts_file.of_argument(arguments.hosts)
    case = load_case(wishes.find_case(arguments.case), only=arguments.only)
    return hosts_file.of_run(case, "")


main = door.Verb("hosts-check", __doc__, _options, run)

if __name__ == "__main__":
    raise SystemExit(main())
