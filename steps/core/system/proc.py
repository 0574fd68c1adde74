"""How long a silent program of this machine waited for a core.

Enters: where a program is, as it told. Leaves: seconds in which the kernel had
a thread of it on a run queue and let it not run. Touches: reads /proc; on
systems without one nothing is known.

Two NIXL progress threads on two cores (Linux 6.18) were seen to keep other
programs from running for 5 s, once for 19. A rehearsal has all its nodes on
one machine, and there the process table is stronger evidence than a heartbeat:
who waits for a core is neither dead, nor stopped, nor hanging.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
#: Runnable, and waiting for the disk: proc_pid_stat(5).
_BUSY = ("R", "D")


def here() -> str:
    """Where this program is: the machine's boot, the process namespace, number and start."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = (PROC / "self/ns/pid").readlink()
        return f"{boot} {space} {os.getpid()} {stat_of(PROC / str(os.getpid())).start}"
    except (OSError, IndexError):
        return ""


class Watch:
    """Looks at one program now and then.

    Args:
        where: the program, as :func:`here` told it there.
        own: :func:`here` of this program.
    """

    def __init__(self, where: str, own: str) -> None:
        theirs, ours = where.split(), own.split()
        near = len(theirs) == 4 and theirs[:2] == ours[:2] and theirs[2].isdigit()
        self._process = PROC / theirs[2] if near else None
        self._start = theirs[3] if near else ""
        self._before: frozenset[tuple[str, str]] = frozenset()
        self._looked = 0.0

    def waited(self, now: float) -> float:
        """Seconds since the last look, if a thread waited for a core all that time; else 0."""
        waiting = self._waiting()
        seconds = now - self._looked if waiting & self._before else 0.0
        self._before, self._looked = waiting, now
        return seconds

    def _waiting(self) -> frozenset[tuple[str, str]]:
        """Threads that want to run, with what they ran so far: proc_pid_schedstat, first field."""
        if self._process is None:
            return frozenset()
        try:
            if stat_of(self._process).start != self._start:
                return frozenset()
            return frozenset(
                (thread.name, (thread / "schedstat").read_text().split()[0])
                for thread in (self._process / "task").iterdir()
                if stat_of(thread).state in _BUSY
            )
        except (OSError, IndexError):
            return frozenset()


@dataclass(frozen=True)
class Stat:
    """What the kernel says of a process or thread; ``start`` in clock ticks since boot."""

    state: str
    parent: int
    group: int
    session: int
    start: str

    @property
    def lives(self) -> bool:
        """It is no zombie."""
        return self.state not in "ZX"


def stat_of(place: Path) -> Stat:
    """``stat`` of a process or thread in /proc; the name in it may hold anything.

    Raises:
        OSError: it is gone.
    """
    fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return Stat(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19])
