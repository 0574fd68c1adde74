"""hosts_check: what this machine has for a run, and what is wrong with it.

Enters: a directory, ports, a model. Leaves: facts, as text or JSON. Touches:
what ``steps.core.system.machine`` looks at; starts nothing. All hosts of a case at
once are looked at by ``invoke hosts-check --hosts ...`` (``ci.backends.hosts.check``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from steps.core import door, settings
from steps.core.case.numbers import dumps
from steps.core.errors import Exit, UsageError
from steps.core.system import machine
from steps.core.system.machine import Facts
from steps.core.vllm import installed

_SHOWN = ("host", "interpreter", *installed.ALIKE, "engine", "memory", "free", "addresses", "taken")


def text(found: Mapping[str, Facts]) -> Iterator[str]:
    """Every fact once where machines agree, else each value with those that have it."""
    everybody = f"all {len(found)}" if len(found) > 1 else ""
    for name in dict.fromkeys(_SHOWN):
        values: dict[str, list[str]] = {}
        for who, told in found.items():
            values.setdefault(_shown(name, told.get(name)), []).append(who)
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
    add_arguments(parser)


def work(arguments: argparse.Namespace) -> int:
    """Look at this machine, and print what was found."""
    told = machine.facts(
        arguments.directory,
        ports_of(arguments),
        arguments.model,
        "",
        installed.PROGRAM,
        installed.PACKAGES,
    )
    found = list(machine.problems(told))
    if arguments.format == "json":
        print(dumps({"facts": told, "problems": found}, indent=2))
    else:
        print("\n".join([*text({told["host"]: told}), *(f"error: {p}" for p in found)]))
    return int(Exit.INFRA) if found else int(Exit.PASS)


main = door.Verb("hosts-check", __doc__, _options, work)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at; the same for one machine and for many."""
    parser.add_argument("--directory", default="/tmp", help="where runs will be; default /tmp")
    parser.add_argument("--ports", default="", help="ports that must be free, comma separated")
    parser.add_argument("--model", default="", help="a model's directory that must be there")
    parser.add_argument("--format", choices=("text", "json"), default="text")


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


if __name__ == "__main__":
    raise SystemExit(main())
