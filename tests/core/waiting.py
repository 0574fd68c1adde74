"""Waiting for something to come true, for tests of things that take their own time; and what
lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def eventually(done: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until it holds; fail when it does not in time."""
    over = time.monotonic() + seconds
    pause = threading.Event()
    while not done():
        assert time.monotonic() < over, "did not come true"
        pause.wait(0.01)


def alive(pid: int) -> bool:
    """A process runs; a dead one that the machine's first process never reaps does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
