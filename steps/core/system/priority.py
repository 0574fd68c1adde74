"""Who runs first when a node has more to do than cores.

Enters: nothing. Leaves: this program somewhat before its servers. Touches:
the scheduling priority of this process and of groups it started.

A node program that gets no time answers no beat, and is taken for lost. Where
the kernel groups tasks by session (sched(7), autogroup), only the group's own
nice value counts between sessions; elsewhere the process's does.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RAISE = 5
_AUTOGROUP = Path("/proc/self/autogroup")


def normal() -> int:
    """The nice value of this thread."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def raise_own() -> None:
    """Run before others, where that is allowed (root). Call it before a thread is started."""
    nice = max(normal() - RAISE, -20)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):
        _AUTOGROUP.write_text(str(nice))


def give(pgid: int, nice: int) -> None:
    """Give a group that was just started, and all it may have started, its nice value."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, pgid, nice)
