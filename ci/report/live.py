"""What one sees of a run while it goes on.

Enters: events. Leaves: lines; on a terminal also a status that lives: where every node is and,
while a benchmark loads the fleet, a row of the load generator and one of each side. In CI a line
each half minute says the same.
Touches: standard output.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from steps.core import door, foreign, settings
from steps.core.record.events import RUNNER, Event, console_line

_VERBOSE_ONLY = ("started", "stopped", "phase-end")


class Live:
    """A listener of events for the terminal, or for a CI log."""

    def __init__(self, verbose: bool = False) -> None:
        self._started = time.time()
        self._verbose = verbose
        self._phases: dict[int, str] = {}
        self._note = ""
        self._load: list[str] = []
        self._status: Any = None
        self._print: Any = None
        if sys.stdout.isatty() and not settings.read().ci:
            from rich.console import Console

            console = Console(file=door.own(sys.stdout), highlight=False)
            self._status = console.status(self)
            self._status.start()
            self._print = console.print

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.node != RUNNER:
            self._phases[event.node] = foreign.line(event.phase)
        if event.what in ("waiting", "progress"):
            self._note = foreign.line(event.fields.get("missing") or event.fields.get("text") or "")
        if event.what == "load":
            rows = event.fields.get("rows")
            self._load = [foreign.line(row) for row in rows[:9]] if isinstance(rows, list) else []
            self._note = ""
        elif event.what in ("benchmark", "cause", "phase-end"):
            self._load = []
        line = console_line(event, self._started)
        hidden = event.what in _VERBOSE_ONLY and not self._verbose
        hidden = hidden or (event.what == "phase" and event.node > 0 and not self._verbose)
        hidden = hidden or (event.fields.get("expected") is True and not self._verbose)
        hidden = hidden or (event.what == "load" and self._status is not None)
        if line and not hidden:
            self._show(line, event)

    def close(self) -> None:
        """Take the status line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __rich__(self) -> Any:
        """The status as it is now: asked for at every refresh, so that the clock goes on."""
        from rich.text import Text

        return Text(self._text(), no_wrap=True, overflow="ellipsis")

    def _text(self) -> str:
        nodes = "  ".join(f"node {i}: {phase}" for i, phase in sorted(self._phases.items()))
        clock = f"{time.time() - self._started:.0f} s"
        return "\n".join([f"{clock}  {nodes or 'starting'}  {self._note}", *self._load])

    def _show(self, line: str, event: Event) -> None:
        if self._print is None:
            print(line, flush=True)
            return
        styles = {"cause": "bold red", "warning": "yellow", "ready": "green"}
        self._print(line, style=styles.get(event.what), markup=False)
