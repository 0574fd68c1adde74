"""The hosts of a run: where each is, how one gets in, what is there.

Enters: a hosts file, ``--hosts A,B``, or a case's ``cluster_hosts``. Leaves: an
:class:`Inventory`, or every problem the file has. Touches: reads that file.

    defaults:                     # for every host that does not say otherwise
      user: root
      environment: [/usr/local/Ascend/ascend-toolkit/set_env.sh]
      container: vllm             # docker exec -i vllm ...
    hosts:
      - 10.0.0.1                  # node 0, the leader
      - address: 10.0.0.2         # what other nodes reach it under
        ssh: rack7-b              # what ssh calls it: a name in ~/.ssh/config
        port: 2222
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from steps.core import settings
from steps.core.case.case import Case
from steps.core.case.source import Source, load_yaml
from steps.core.errors import CaseError, Problem, UsageError

RULE = "hosts-file"
_NAME = re.compile(r"^(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$")
_SHORTHAND = re.compile(
    r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:]+|[\da-fA-F]*:[\da-fA-F:.]*:[\da-fA-F:.]*)"
    r"(?::(?P<port>\d+))?"
)
_HINT = "docs/hosts.md has every field of a hosts file."


@dataclass(frozen=True)
class Host:
    """One machine, as the runner reaches it.

    Attributes:
        address: what the other nodes reach it under; an address or a name.
        ssh: what ssh calls it; empty: the address.
        user: empty: what ~/.ssh/config says, else the present user.
        port: 0: what ~/.ssh/config says, else 22.
        python: the interpreter of the node program, on PATH or a path.
        environment: scripts sourced (by bash) before it.
        container: name of a container on the host in which the run lives; empty: the host.
        enter: the command that enters a container.
        interface: of ``address``; empty: the host finds it.
        directory: where the run's directory is made; must be the same kind of place on all.
        lease: seconds a node program goes on without hearing from the runner.
    """

    address: str
    ssh: str = ""
    user: str = ""
    port: int = 0
    python: str = "python3"
    environment: tuple[str, ...] = ()
    container: str = ""
    enter: tuple[str, ...] = ("docker", "exec", "-i")
    interface: str = ""
    directory: str = "/tmp"
    lease: float = 30.0

    @property
    def target(self) -> str:
        """What ssh calls it."""
        return self.ssh or self.address

    def __str__(self) -> str:
        name = self.address if self.target == self.address else f"{self.address} ({self.target})"
        return f"{name}, container {self.container}" if self.container else name


@dataclass(frozen=True)
class Inventory:
    """The hosts of a run in the order of the nodes."""

    hosts: tuple[Host, ...]

    @property
    def directory(self) -> str:
        """Where run directories are made; one for all, since the plan names it."""
        return self.hosts[0].directory


_KINDS: dict[str, tuple[type, str]] = {
    "address": (str, "an address or a host name"),
    "ssh": (str, "a name for ssh"),
    "user": (str, "a user name"),
    "port": (int, "a number from 1 to 65535"),
    "python": (str, "a program, such as python3.11"),
    "environment": (list, "a list of script paths"),
    "container": (str, "the name of a container"),
    "enter": (list, "a list of words, such as [sudo, -n, docker, exec, -i]"),
    "interface": (str, "the name of an interface"),
    "directory": (str, "an absolute path"),
    "lease": (float, "seconds, at least 2"),
}


def of_run(case: Case, given: str) -> Inventory:
    """The hosts of a run: ``--hosts`` first, else ``cluster_hosts`` of the case.

    Raises:
        UsageError: neither says it, or not as many hosts as nodes.
        CaseError: the hosts file is wrong.
    """
    if given:
        inventory = of_argument(given)
    elif case.cluster_hosts:
        inventory = Inventory(tuple(Host(address) for address in case.cluster_hosts))
    else:
        raise UsageError(
            "nothing says which hosts to use",
            "Give --hosts A,B or --hosts FILE, or list them under cluster_hosts in the case.",
        )
    if len(inventory.hosts) != case.num_nodes:
        raise UsageError(
            f"found {len(inventory.hosts)} hosts, expected {case.num_nodes}, as num_nodes of "
            f"{case.file} says",
            "One host a node, in the order of the nodes.",
        )
    return inventory


def of_argument(given: str) -> Inventory:
    """A hosts file, or ``[USER@]HOST[:PORT]`` separated by commas.

    Raises:
        UsageError: it is neither.
        CaseError: the hosts file is wrong.
    """
    if given.endswith((".yaml", ".yml")) or "/" in given or Path(given).is_file():
        return of_file(Path(given))
    hosts = tuple(_shorthand(word.strip()) for word in given.split(",") if word.strip())
    if not hosts:
        raise UsageError(
            f"--hosts: found {given!r}, no host in it", "Expected HOST,HOST, or a hosts file."
        )
    twice = sorted({str(host) for host in hosts if hosts.count(host) > 1})
    if twice:
        raise UsageError(
            f"--hosts: {', '.join(twice)} is named more than once", "Each node has its own host."
        )
    return Inventory(hosts)


def _shorthand(word: str) -> Host:
    match = _SHORTHAND.fullmatch(word)
    address = match["host"].strip("[]") if match else ""
    if match is None or not _is_host(address) or settings.port(match["port"] or "22") is None:
        raise UsageError(
            f"--hosts: {word!r} is no host",
            "Expected [USER@]HOST[:PORT], an IPv6 address in brackets, or a hosts file.",
        )
    return Host(address, user=match["user"] or "", port=int(match["port"] or 0))


def of_file(path: Path) -> Inventory:
    """The hosts of a file.

    Raises:
        CaseError: with every problem of the file.
    """
    return _Reader(load_yaml(path)).read()


class _Reader:
    """Reads one hosts file and gathers its problems."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._problems: list[Problem] = []

    def read(self) -> Inventory:
        data = self._source.data
        if isinstance(data, list):
            data = {"hosts": data}
        if not isinstance(data, dict):
            self._add("expected a mapping with 'hosts', or a list of hosts")
            raise CaseError(self._problems)
        self._unknown(data, ("defaults", "hosts"), ())
        defaults = self._mapping(data.get("defaults") or {}, ("defaults",), required=False)
        entries = data.get("hosts")
        hosts: list[Host] = []
        if not isinstance(entries, list) or not entries:
            self._add("expected a list of hosts", "hosts")
            entries = []
        for i, entry in enumerate(entries):
            path = ("hosts", i)
            given = {"address": entry} if isinstance(entry, str) else entry
            values = {**defaults, **self._mapping(given, path, required=True)}
            if "address" in values:
                hosts.append(Host(**values))
        self._agree(hosts)
        if self._problems:
            raise CaseError(self._problems)
        return Inventory(tuple(hosts))

    def _mapping(self, data: Any, path: tuple[Any, ...], *, required: bool) -> dict[str, Any]:
        if not isinstance(data, dict):
            self._add(f"found {data!r}, expected a host name or a mapping", *path)
            return {}
        known = tuple(entry.name for entry in fields(Host))
        self._unknown(data, known, path)
        if required and "address" not in data:
            self._add("a host has no 'address'", *path)
        found = {}
        for name, value in data.items():
            if name in known:
                clean = self._value(name, value)
                if clean is None:
                    self._add(f"{name}: found {value!r}, expected {_KINDS[name][1]}", *path, name)
                else:
                    found[name] = clean
        return found

    def _value(self, name: str, value: Any) -> Any:
        """The value as a Host wants it; None when it is wrong."""
        kind, _ = _KINDS[name]
        if kind is list:
            words = [value] if isinstance(value, str) else value
            good = isinstance(words, list) and all(isinstance(w, str) and w for w in words)
            return tuple(words) if good else None
        value = float(value) if kind is float and isinstance(value, int) else value
        if not isinstance(value, kind) or isinstance(value, bool) or not value:
            return None
        good = {
            "address": lambda: _is_host(str(value)),
            "port": lambda: settings.port(str(value)) is not None,
            "directory": lambda: str(value).startswith("/"),
            "lease": lambda: isinstance(value, float) and value >= 2,
            "container": lambda: not str(value).startswith("-"),
            "ssh": lambda: not str(value).startswith("-"),
        }.get(name, lambda: True)()
        return value if good else None

    def _agree(self, hosts: Sequence[Host]) -> None:
        """What all hosts must have in common, and what none may share."""
        for i, host in enumerate(hosts):
            if host.directory != hosts[0].directory:
                self._add(
                    f"directory {host.directory} differs from {hosts[0].directory} of the first "
                    "host; the plan has one for all",
                    "hosts",
                    i,
                )
            if any(other.address == host.address for other in hosts[:i]):
                self._add(f"address {host.address} is listed twice", "hosts", i)

    def _unknown(self, data: dict[Any, Any], known: Iterable[str], path: tuple[Any, ...]) -> None:
        for name in data:
            if name not in known:
                close = difflib.get_close_matches(str(name), list(known), 1)
                hint = f"Did you mean {close[0]!r}?" if close else _HINT
                self._add(f"unknown field {name!r}", *path, name, hint=hint)

    def _add(self, message: str, *path: Any, hint: str = _HINT) -> None:
        field = ".".join(map(str, path))
        self._problems.append(Problem(RULE, message, self._source.place(*path), hint, field=field))


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
        return True
    except ValueError:
        return bool(_NAME.match(text)) and not re.fullmatch(r"[\d.]+", text)
