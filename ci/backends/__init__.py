"""Backends: each starts the node programs in its own kind of place.

Enters: a :class:`Request`. Leaves: a run directory with every node's files,
and what only the backend saw. A new backend is one module with
``run(request) -> tuple[Cause, ...]`` and one line in ``BACKENDS``.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from steps.core import foreign
from steps.core.case.case import Case
from steps.core.node.wishes import Wishes
from steps.core.record.events import EventLog
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir

BACKENDS = {
    "local": "ci.backends.local",
    "hosts": "ci.backends.hosts",
    "k8s": "k8s.backend",
}


@dataclass
class Request:
    """One run to carry out.

    Attributes:
        wishes: what the command line of ``ci.run`` asked for.
        interrupted: set by the first Ctrl-C, SIGTERM or SIGHUP, at ``interrupted_at``;
            ``interrupts`` counts them, ``number`` is the latest signal.
        on_interrupt: what the backend wants to be told at each of them.
        ends: what the backend still does while the report is made; each returns when it is done.
    """

    case: Case
    run: str
    run_dir: RunDir
    events: EventLog
    wishes: Wishes
    interrupted: threading.Event = field(default_factory=threading.Event)
    interrupted_at: float = 0.0
    interrupts: int = 0
    number: int = signal.SIGTERM
    on_interrupt: list[Callable[[int], None]] = field(default_factory=list)
    ends: list[Callable[[], None]] = field(default_factory=list)

    def show(self, name: str, line: str) -> None:
        """A line of a process's output, with the process in front."""
        print(foreign.line(f"[{name}] {self.events.redactor.text(line)}"), flush=True)

    def say(self, text: str) -> None:
        """A line of progress."""
        self.events.emit("note", text=text)


def backend(name: str) -> Callable[[Request], tuple[Cause, ...]]:
    """The ``run`` function of a backend; imported when it is asked for."""
    run: Callable[[Request], tuple[Cause, ...]] = importlib.import_module(BACKENDS[name]).run
    return run
