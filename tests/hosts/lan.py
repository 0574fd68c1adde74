"""A local network of its own: machines in network namespaces on one bridge.

Enters: how many machines. Leaves: namespaces that a command can be run in, each
with an IPv4 and an IPv6 address. Touches: namespaces and a bridge that carry
this process's id, removed again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass

_COUNT = itertools.count()


def why_not() -> str:
    """Why this machine cannot have network namespaces; empty when it can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"mn{os.getpid()}t"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if done.returncode:
        return f"network namespaces are not allowed here: {done.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


@dataclass(frozen=True)
class Machine:
    """One namespace."""

    name: str
    link: str
    address: str
    address6: str

    @property
    def wrap(self) -> list[str]:
        """What runs a command on it."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Pull its cable."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self.link, "up")

    def ip(self, *words: str) -> None:
        """Configure its network."""
        _ip("-n", self.name, *words)


class Lan:
    """Machines on one bridge; this machine is the last address of the network."""

    def __init__(self, count: int) -> None:
        number = (os.getpid() * 8 + next(_COUNT)) % 60000
        self.net = f"10.{64 + number // 250 % 180}.{number % 250}"
        self.net6 = f"fd64:{number:x}:"
        self.bridge = f"mnb{number}"
        self.machines: list[Machine] = []
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.net}.254/24", "dev", self.bridge)
        _ip("addr", "add", f"{self.net6}:fe/64", "dev", self.bridge, "nodad")
        _ip("link", "set", self.bridge, "up")
        for i in range(1, count + 1):
            machine = Machine(
                f"mn{number}-{i}", f"mnv{number}-{i}", f"{self.net}.{i}", f"{self.net6}:{i}"
            )
            self.machines.append(machine)
            _ip("netns", "add", machine.name)
            peer = ("peer", "name", "eth0", "netns", machine.name)
            _ip("link", "add", machine.link, "type", "veth", *peer)
            _ip("link", "set", machine.link, "master", self.bridge, "up")
            machine.ip("addr", "add", f"{machine.address}/24", "dev", "eth0")
            machine.ip("addr", "add", f"{machine.address6}/64", "dev", "eth0", "nodad")
            machine.ip("link", "set", "eth0", "up")
            machine.ip("link", "set", "lo", "up")

    def close(self) -> None:
        """Take everything away."""
        for machine in self.machines:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", machine.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.bridge)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
