"""Whether the kernel killed a process for want of memory.

Enters: a process id. Leaves: a sentence of evidence, or nothing. Touches:
reads cgroup counters and the kernel's log where that is allowed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def kills() -> int | None:
    """How often the kernel killed for memory in our cgroup; None where it does not say."""
    for path in _event_files():
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return None


def evidence(pid: int, before: int | None) -> str:
    """What shows that ``pid`` was killed for memory; empty when nothing does."""
    if _in_kernel_log(pid):
        return "out of memory: the kernel's log names it"
    now = kills()
    if before is not None and now is not None and now > before:
        return "out of memory: the cgroup's oom_kill counter rose"
    return ""


def _event_files() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    found = [root / "memory.events", root / "memory" / "memory.oom_control"]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                found.insert(0, root / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                found.insert(0, root / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _in_kernel_log(pid: int) -> bool:
    needle = f"Killed process {pid} ".encode()
    with contextlib.suppress(OSError):
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                if needle in os.read(descriptor, 8192):
                    return True
        finally:
            os.close(descriptor)
    return False
