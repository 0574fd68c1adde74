"""Whose processes are whose, by descent: what a process does to itself cannot hide it.

Enters: process ids. Leaves: their descendants, each with the time it started,
so that a number that was given away is never taken for it. Touches: reads
/proc; makes this program the parent of orphans below it; sends SIGKILL.

A process can leave its group, its session, its parent and its environment
(setproctitle writes over the latter), but the kernel gives the orphans of a
*child subreaper* (Linux 3.4) to that subreaper and to nobody else. Elsewhere
nothing is found here, and marks in the environment are all there is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from steps.core.system.proc import PROC, Stat, stat_of

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Seconds that killed processes may take to be gone; those of an engine free a lot.
GONE_SECONDS = 20.0


@dataclass(frozen=True)
class Kin:
    """A process, which no later process of the same number equals."""

    pid: int
    start: str
    name: str = field(default="?", compare=False)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def adopt() -> bool:
    """From now on orphans below this program become its children; False where that cannot be."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> bool:
    """From now on this process is killed when its parent ends; False where that cannot be."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError, TypeError):
        return False


def kin_of(pid: int) -> Kin | None:
    """The process of this number, if one lives."""
    try:
        stat = stat_of(PROC / str(pid))
        name = (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except (OSError, ValueError, IndexError):
        return None
    return Kin(pid, stat.start, name) if stat.lives else None


def every() -> Iterator[tuple[int, Stat]]:
    """Every process of this machine that may be seen, each as it is when its turn comes."""
    with contextlib.suppress(OSError):
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    yield int(entry.name), stat_of(entry)


def children(pid: int) -> list[int]:
    """Children of a process, dead ones that nobody reaped included."""
    found: list[int] = []
    try:
        for thread in (PROC / str(pid) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except (OSError, ValueError):  # it ends now, or a kernel without CONFIG_PROC_CHILDREN
        return [each for each, stat in every() if stat.parent == pid]
    return found


def below(roots: Iterable[int], seen: Mapping[int, Stat]) -> Iterator[int]:
    """``roots`` and everything that descends from them."""
    families: dict[int, list[int]] = {}
    for pid, stat in seen.items():
        families.setdefault(stat.parent, []).append(pid)
    waiting, done = list(roots), set()
    while waiting:
        pid = waiting.pop()
        if pid not in done:
            done.add(pid)
            waiting += families.get(pid, ())
            yield pid


def send(kin: Kin, number: int = signal.SIGKILL) -> None:
    """Signal this process, and nobody who has its number after it."""
    with contextlib.suppress(OSError):
        if not hasattr(os, "pidfd_open"):
            if kin_of(kin.pid) == kin:
                os.kill(kin.pid, number)
            return
        handle = os.pidfd_open(kin.pid)
        try:
            if kin_of(kin.pid) == kin:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


class Orphans:
    """Children that this program did not start: those it was given, see :func:`adopt`.

    What this program starts for itself shares its session; what descends from a
    process of the plan cannot, since that leads a session of its own.
    """

    def __init__(self) -> None:
        #: Somebody else's, such as those of a test, or the guard.
        self._before = frozenset(_born(pid) for pid in children(os.getpid()))
        self._ended: frozenset[int] = frozenset()

    def roots(self, started: Iterable[int]) -> list[int]:
        """The adopted children; not those that were ``started`` here."""
        own = os.getpid()
        known, session = set(started), os.getsid(0)
        found = []
        for pid in children(own):
            with contextlib.suppress(OSError, ValueError, IndexError):
                stranger = stat_of(PROC / str(pid)).session != session
                if stranger and pid not in known and _born(pid) not in self._before:
                    found.append(pid)
        return found

    def reap(self, started: Iterable[int]) -> None:
        """Let those go that had ended at the last look already.

        A child that a thread of ours starts and waits for ends between two looks.
        """
        ended = frozenset(pid for pid in self.roots(started) if kin_of(pid) is None)
        for pid in self._ended & ended:
            _reap(pid)
        self._ended = ended

    def end(
        self,
        started: Iterable[int],
        marks: Callable[[], Iterable[int]],
        patience: float,
        limit: float = GONE_SECONDS,
    ) -> tuple[list[Kin], list[Kin]]:
        """KILL the adopted until there are none: the children of one that ends are adopted next.

        Args:
            started: what this program started and still holds.
            marks: further processes, known by another sign.
            patience: seconds in which they may end by themselves.
            limit: seconds after which those that do not end are given up.

        Returns:
            what had to be killed, and what of it lives on.
        """
        began, pause = time.monotonic(), threading.Event()
        killed: dict[Kin, None] = {}
        clear = 0
        while True:
            roots = self.roots(started)
            others = () if roots else set(marks()) - {os.getpid(), *started}
            left = [kin for pid in (*roots, *others) if (kin := kin_of(pid))]
            passed = time.monotonic() - began
            if passed > patience:
                for kin in left:
                    send(kin)
                killed.update(dict.fromkeys(left))
            for pid in roots:
                if kin_of(pid) is None:
                    _reap(pid)
            # Who forks and ends all the time leaves a dead child here, so it is not overlooked.
            clear = 0 if roots or left else clear + 1
            if clear == 2 or passed > patience + limit:
                return list(killed), left
            # Quick at first, since it may fork; what then still lives is being torn down.
            pause.wait(0.001 if clear or patience < passed < patience + 2 else 0.02)


def _born(pid: int) -> tuple[int, str]:
    try:
        return pid, stat_of(PROC / str(pid)).start
    except (OSError, ValueError, IndexError):
        return pid, ""


def _reap(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)
