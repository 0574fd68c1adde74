"""Whether a program of this machine that says nothing is waiting for a core.

Enters: where a program is, as it told. Leaves: whether the kernel has it on a
run queue. Touches: reads /proc; on systems without one nothing is known.

Two NIXL progress threads on two cores (Linux 6.18) were seen to keep every
other program from running for up to five seconds. A rehearsal has all its
nodes on one machine, and there the process table is stronger evidence than a
heartbeat: who waits for a core is neither dead, nor stopped, nor hanging.
"""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
#: Running or runnable, and waiting for the disk: proc_pid_stat(5).
_BUSY = ("R", "D")


def here() -> str:
    """Where this program is: the machine's boot, the process namespace, number and start."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = (PROC / "self/ns/pid").readlink()
        return f"{boot} {space} {os.getpid()} {_stat(PROC / str(os.getpid()))[1]}"
    except (OSError, IndexError):
        return ""


def waits_for_a_core(where: str, own: str) -> bool:
    """Whether a thread of the program at ``where`` wants to run; false when it is not of here."""
    theirs, ours = where.split(), own.split()
    if len(theirs) != 4 or theirs[:2] != ours[:2] or not theirs[2].isdigit():
        return False
    process = PROC / theirs[2]
    try:
        if _stat(process)[1] != theirs[3]:
            return False
        return any(_stat(thread)[0] in _BUSY for thread in (process / "task").iterdir())
    except (OSError, IndexError):
        return False


def _stat(process: Path) -> tuple[str, str]:
    """State and start, in clock ticks since boot; the name before them may hold anything."""
    fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]
