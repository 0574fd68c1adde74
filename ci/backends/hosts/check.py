"""hosts-check: what every host of a fleet has, and where they differ, over SSH.

Enters: hosts, as for a run. Leaves: facts, differences, problems, as text or
JSON; exit code 3 when a host has a problem. Touches: one SSH connection a
host; leaves nothing there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ci.backends.hosts import inventory as hosts_file
from ci.backends.hosts.client import Client
from ci.backends.hosts.inventory import Host, Inventory
from ci.backends.hosts.ssh import Remote
from steps import hosts_check
from steps.core import door
from steps.core.case.build import load_case
from steps.core.case.numbers import dumps, loads
from steps.core.errors import Exit, MultinodeError, UsageError
from steps.core.node import wishes
from steps.core.system import machine
from steps.core.vllm import installed

_RUN = (
    "import sys;v=sys.version_info;"
    "v<(3,10) and sys.exit('Python %d.%d is too old, expected 3.10 or newer'%v[:2]);"
    "exec(compile(sys.stdin.read(),'machine','exec'))"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hosts", default="", help="addresses, or a hosts file")
    parser.add_argument("--case", default="", help="a case with cluster_hosts")
    hosts_check.add_arguments(parser)
    parser.set_defaults(directory="")


def run(arguments: argparse.Namespace) -> int:
    """Look at all hosts at once, and print what was found."""
    ports = hosts_check.ports_of(arguments)
    inventory = _inventory(arguments)
    with Client() as client, ThreadPoolExecutor(len(inventory.hosts)) as pool:
        looks = list(pool.map(lambda host: look(host, client, arguments, ports), inventory.hosts))
    found = {
        str(host): told for host, (told, _) in zip(inventory.hosts, looks, strict=True) if told
    }
    problems = [
        f"{host}: {problem}"
        for host, (_, wrong) in zip(inventory.hosts, looks, strict=True)
        for problem in wrong
    ]
    if arguments.format == "json":
        unlike = installed.differences(found)
        print(dumps({"hosts": found, "differences": unlike, "problems": problems}, indent=2))
    else:
        lines = list(hosts_check.text(found)) if found else []
        lines += [f"warning: {text}" for text in installed.sentences(found)]
        lines += [f"error: {problem}" for problem in problems]
        lines.append(
            f"{len(inventory.hosts)} hosts, {len(problems)} problems, "
            f"{len(installed.differences(found))} differences"
        )
        print("\n".join(lines))
    return int(Exit.INFRA) if problems else int(Exit.PASS)


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
    """The hosts to look at.

    Raises:
        UsageError: nothing names them.
    """
    if arguments.hosts:
        return hosts_file.of_argument(arguments.hosts)
    if arguments.case:
        return hosts_file.of_run(load_case(wishes.find_case(arguments.case)), "")
    raise UsageError(
        "nothing says which hosts to look at", "Give --hosts A,B, --hosts FILE, or --case CASE."
    )


main = door.Verb("hosts-check", __doc__, _options, run)

if __name__ == "__main__":
    raise SystemExit(main())
