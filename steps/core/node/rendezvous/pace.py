"""The rendezvous' pace: how often nodes speak, and after how long a silent one is lost.

Enters: nothing. Leaves: seconds, and a clock that notices when this program itself stood still.
Touches nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BEAT = 1.0
LOST_AFTER = 4.0
GONE_AFTER = 2.0
#: Seconds of silence that waiting for a core can excuse.
STARVED_MOST = 26.0
TICK = 0.5
#: Before somebody who did not answer is asked again.
AGAIN = 0.2
ROLL_WAIT = LOST_AFTER + 0.6


class Clock:
    """How long this program did not run when it should have: stopped, or on a busy machine."""

    def __init__(
        self, stop: threading.Event, on_tick: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._stop = stop
        self._on_tick = on_tick
        self._late = 0.0
        self._due = time.monotonic() + TICK

    def run(self) -> None:
        """Tick until told to stop."""
        while not self._stop.wait(TICK):
            # First the sum: a reader in between counts a tick twice rather than not at all.
            self._late = self.late()
            self._due = time.monotonic() + TICK
            self._on_tick(TICK)

    def late(self) -> float:
        """Seconds it was late since it was made, the present tick too."""
        overdue = time.monotonic() - self._due
        return self._late + (overdue if overdue > TICK else 0.0)
