"""The guard: a tiny process that outlives a killed node program and cleans up.

Enters: process groups, told over a pipe. Leaves: nothing of them, when the
pipe closes without a farewell. Touches: kills registered groups, and whatever
else carries the run's marker in its environment.

A parent-death signal reaches only direct children and only on Linux, and
engines have children of their own; a process that waits on a pipe notices
every kind of death of its parent. The node program reaps no leader of a group
before it has taken the group's number back, so the number is nobody else's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

MARKER = "MULTINODE_RUN"


class Guard:
    """Starts the guard and tells it which groups are ours.

    Must be made before any thread is started, since it forks.
    """

    def __init__(self, marker: str) -> None:
        self._write = -1
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            _watch(read, marker)
        os.close(read)
        os.set_inheritable(write, False)
        self._write = write
        self.pid = pid

    def add(self, pgid: int) -> None:
        """This group must not outlive the node program."""
        self._tell(f"+{pgid}\n")

    def remove(self, pgid: int) -> None:
        """This group has ended."""
        self._tell(f"-{pgid}\n")

    def close(self) -> None:
        """The node program ends in order; the guard does nothing and ends too."""
        self._tell("bye\n")
        with contextlib.suppress(OSError):
            os.close(self._write)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, line.encode())


def _watch(read: int, marker: str) -> None:
    """The guard's whole life; never returns."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for descriptor in range(3, 256):
            if descriptor != read:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        groups: set[int] = set()
        rest = b""
        while chunk := os.read(read, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line == b"bye":
                    os._exit(0)
                pgid = int(line[1:])
                (groups.add if line[:1] == b"+" else groups.discard)(pgid)
        for pgid in groups:
            with contextlib.suppress(OSError):
                os.killpg(pgid, signal.SIGKILL)
        for pid in marked(marker):
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
    finally:
        os._exit(0)


def marked(marker: str, name: str = MARKER) -> Iterator[int]:
    """Processes of ours whose environment carries the marker (Linux; elsewhere none)."""
    needle = f"{name}={marker}".encode()
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if needle in environment.split(b"\0"):
                yield int(entry.name)
