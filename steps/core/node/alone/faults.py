"""Faults of processes that are no stand-ins: the runner sends them signals, or the leader's steps.

Enters: the faults, the run's events, the nodes' process tables. Leaves: signals sent, each once;
steps that run alone remember it in ``steps/``. Touches: only processes of this run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence

from steps.core.plan.faults import Signal
from steps.core.record.events import Event, EventLog
from steps.core.record.rundir import RunDir, read_json

PATIENCE = 10.0


class Aim:
    """A listener of events that delivers signals at their moments.

    Args:
        program: node index -> pid of its node program, or of what takes its place; 0: none.
        first: whether nobody has sent this one yet.
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        run_dir: RunDir,
        events: EventLog,
        program: Callable[[int], int],
        first: Callable[[Signal], bool] = lambda _: True,
    ) -> None:
        self._waiting = list(signals)
        self._run_dir = run_dir
        self._events = events
        self._program, self._first = program, first
        self._over = threading.Event()
        for entry in [s for s in self._waiting if not s.phase]:
            self._fire(entry)

    def __call__(self, event: Event) -> None:
        """Look whether a phase of the leader is somebody's moment."""
        if event.node == 0 and event.what == "phase":
            for entry in [s for s in self._waiting if s.phase == event.phase]:
                self._fire(entry)

    def close(self) -> None:
        """Send nothing more."""
        self._over.set()

    def _fire(self, entry: Signal) -> None:
        self._waiting.remove(entry)
        threading.Thread(target=self._send, args=(entry,), daemon=True).start()

    def _send(self, entry: Signal) -> None:
        if self._over.wait(entry.seconds):
            return
        deadline = time.monotonic() + PATIENCE
        while not self._over.is_set() and time.monotonic() < deadline:
            pid = self._pid(entry)
            if pid and not self._first(entry):
                return
            if pid:
                self._events.emit("note", text=f"fault {entry.text}: signal to pid {pid}")
                with contextlib.suppress(OSError):
                    os.kill(pid, entry.number)
                return
            self._over.wait(0.02)
        if not self._over.is_set():
            self._events.emit("warning", text=f"fault {entry.text}: there is no such process")

    def _pid(self, entry: Signal) -> int:
        if entry.process == "node":
            return self._program(entry.node)
        for table in self._run_dir.node(entry.node).path.glob("processes*.json"):
            rows = read_json(table)
            for row in rows if isinstance(rows, list) else ():
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    if row["name"] == entry.process and row["exit"] is None:
                        return int(row["pid"])
        return 0
