"""The guard: a tiny process that outlives a killed node program and cleans up.

Enters: process groups, told over a pipe, and the node program's children, which
it looks at now and then. Leaves: nothing of them, when the pipe closes without a
farewell. Touches: kills them, what descends from them, and whatever else carries
the run's marker in its environment; removes the run's directory for temporary files.

A parent-death signal reaches only direct children and only on Linux, and
engines have children of their own; a process that waits on a pipe notices
every kind of death of its parent. The node program reaps no leader of a group
before it has taken the group's number back, so the number is nobody else's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from steps.core.system import ancestry, scratch
from steps.core.system.ancestry import Kin

MARKER = "MULTINODE_RUN"
#: How often the guard looks which orphans the node program was given.
LOOK_SECONDS = 0.5


class Guard:
    """Starts the guard and tells it which groups are ours.

    Must be made before any thread is started, since it forks. From now on
    orphans below this program are its children.
    """

    def __init__(self, marker: str) -> None:
        ancestry.adopt()
        self.scratch = scratch.make()
        #: Whether something of ours may live on; then the guard is not dismissed.
        self.unsure = False
        self._groups: set[int] = set()
        read, self._write = os.pipe()
        owner = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._write)
            _watch(read, marker, owner, self.scratch)
        os.close(read)
        os.set_inheritable(self._write, False)

    def add(self, pgid: int) -> None:
        """This group must not outlive the node program."""
        self._groups.add(pgid)
        self._tell(f"+{pgid}\n")

    def remove(self, pgid: int) -> None:
        """This group has ended."""
        self._groups.discard(pgid)
        self._tell(f"-{pgid}\n")

    def close(self) -> None:
        """The node program ends; the guard is dismissed if nothing can be left."""
        sure = not self._groups and not self.unsure
        if sure:
            self.scratch.remove()
            self._tell("bye\n")
        else:
            for kin in filter(None, map(ancestry.kin_of, ancestry.children(os.getpid()))):
                self._tell(f"={kin.pid} {kin.start}\n")
        with contextlib.suppress(OSError):
            os.close(self._write)
        if sure:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, line.encode())


def _watch(read: int, marker: str, owner: int, place: scratch.Scratch) -> None:
    """The guard's whole life; never returns."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for descriptor in range(3, 256):
            if descriptor not in (read, place.lock):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        groups: set[int] = set()
        orphans: set[Kin] = set()
        sessions: set[int] = set()
        rest = b""
        while True:
            if not select.select([read], [], [], LOOK_SECONDS)[0]:
                orphans, sessions = _look(owner) or (orphans, sessions)
                continue
            chunk = os.read(read, 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line == b"bye":
                    os._exit(0)
                sign, words = line[:1], line[1:].decode().split()
                if sign == b"=":
                    orphans |= {Kin(int(words[0]), words[1])} - {ancestry.kin_of(os.getpid())}
                else:
                    (groups.add if sign == b"+" else groups.discard)(int(words[0]))
        _end(groups, orphans, sessions, marker)
        place.remove()
    finally:
        os._exit(0)


def _look(owner: int) -> tuple[set[Kin], set[int]] | None:
    """The children of the node program, and the sessions that are not its own.

    Who forks and ends all the time has another number at the next look, but the same session.
    """
    orphans, sessions = set(), set()
    for pid in set(ancestry.children(owner)) - {os.getpid()}:
        with contextlib.suppress(OSError):
            if kin := ancestry.kin_of(pid):
                orphans.add(kin)
            sessions.add(os.getsid(pid))
    with contextlib.suppress(OSError):
        return orphans, sessions - {os.getsid(owner), os.getsid(0)}
    return None  # it ends now


def _end(groups: set[int], known: set[Kin], sessions: set[int], marker: str) -> None:
    """Stop all that is found, so that nobody forks on, until nobody is new; then KILL them."""
    over = time.monotonic() + ancestry.GONE_SECONDS
    while time.monotonic() < over:
        frozen: set[Kin] = set()
        while (found := _freeze(groups | sessions, known | frozen, marker)) - frozen:
            frozen |= found
        for pgid in groups:
            with contextlib.suppress(OSError):
                os.killpg(pgid, signal.SIGKILL)
        for kin in frozen:
            ancestry.send(kin)
        known |= frozen
        if not found | frozen:
            return
        select.select([], [], [], 0.05)


def _freeze(houses: set[int], known: set[Kin], marker: str) -> set[Kin]:
    """STOP what is of these groups and sessions, of the known and their descendants, or marked.

    At sight, since one that forks and ends all the time is gone when a look is over.
    """
    found = {kin for kin in known if ancestry.kin_of(kin.pid) == kin}
    seen = {}
    for pid, stat in ancestry.every():
        seen[pid] = stat
        if {stat.group, stat.session} & houses and stat.lives:
            found.add(Kin(pid, stat.start))
            ancestry.send(Kin(pid, stat.start), signal.SIGSTOP)
    roots = {kin.pid for kin in found}
    for pid in {*ancestry.below(roots, seen), *marked(marker)} - {os.getpid()}:
        if kin := ancestry.kin_of(pid):
            found.add(kin)
            ancestry.send(kin, signal.SIGSTOP)
    return found


def marked(*markers: str, name: str = MARKER) -> Iterator[int]:
    """Processes of ours whose environment carries one of these (Linux; elsewhere none)."""
    needles = {f"{name}={marker}".encode() for marker in markers}
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if not needles.isdisjoint(environment.split(b"\0")):
                yield int(entry.name)
