"""Events: one JSON line each, the one account of what happened.

Enters: what somebody did. Leaves: lines in ``events.jsonl`` and calls of
listeners. Touches: that file.

The console, the summary, the timeline and JUnit's durations are views of these.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.core import foreign
from steps.core.case.numbers import dumps, is_time, loads
from steps.core.record.rundir import READ_LIMIT, appending, read_bounded
from steps.core.redaction import Redactor, here

RUNNER = -1
#: Bytes of events that are kept while they cannot be written.
_UNWRITTEN = 4 << 20


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        time: seconds since the epoch.
        node: index, or RUNNER.
        what: a word such as ``phase``, ``started``, ``exited``, ``waiting``, ``cause``.
    """

    time: float
    run: str
    node: int
    phase: str
    what: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return dumps(
            {
                "time": round(self.time, 4),
                "run": self.run,
                "node": self.node,
                "phase": self.phase,
                "what": self.what,
                **self.fields,
            },
            ensure_ascii=False,
        )

    @staticmethod
    def from_json(line: str) -> Event | None:
        """The event of a line; None when it is no event (a torn or foreign line)."""
        try:
            data = loads(line)
            own = {key: data.pop(key) for key in ("time", "run", "node", "phase", "what")}
        except (ValueError, KeyError, AttributeError, TypeError):
            return None
        if not (is_time(own["time"]) and isinstance(own["node"], int)):
            return None
        if not is_time(data.get("seconds") or 0):
            return None
        if not all(isinstance(own[key], str) for key in ("run", "phase", "what")):
            return None
        return Event(**own, fields=data)


class EventLog:
    """Appends events to a file and tells listeners; safe to use from any thread."""

    def __init__(
        self,
        path: Path | None,
        run: str,
        node: int,
        redactor: Redactor | None = None,
        listeners: Iterable[Callable[[Event], None]] = (),
    ) -> None:
        self.run = run
        self.node = node
        self.phase = "start"
        self.redactor = redactor or here()
        self.listeners = list(listeners)
        #: Why events cannot be written at present; they are kept and tried again.
        self.trouble: OSError | None = None
        self._lock = threading.Lock()
        self._unwritten = bytearray()
        self._path = path
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            appending(path).close()

    def emit(self, what: str, **fields: Any) -> Event:
        """Write one event of the present phase."""
        clean = self.redactor.value(fields)
        event = Event(time.time(), self.run, self.node, self.phase, what, clean)
        self.pass_on(event)
        return event

    def pass_on(self, event: Event) -> None:
        """Write an event that happened elsewhere."""
        with self._lock:
            if self._path is not None and len(self._unwritten) < _UNWRITTEN:
                line = event.to_json() + "\n"
                self._unwritten += line.encode("utf-8", "backslashreplace")
                self._write(self._path)
        for listener in self.listeners:
            listener(event)

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            if self._path is not None:
                self._write(self._path)
                self._path = None

    def _write(self, path: Path) -> None:
        """Write what is not written; opened anew each time, for the report replaces the file."""
        try:
            with appending(path) as out:
                while self._unwritten:
                    del self._unwritten[: out.write(self._unwritten)]
            self.trouble = None
        except OSError as error:
            self.trouble = error


def read_events(path: Path) -> list[Event]:
    """Every event of a file; what is no event is passed over."""
    try:
        text = read_bounded(path, 4 * READ_LIMIT).decode("utf-8", "replace")
    except OSError:
        return []
    # Not splitlines: a JSON string may hold other line breaks than \n.
    return [event for line in text.split("\n") if (event := Event.from_json(line))]


def sentence(event: Event) -> str:
    """An event as a person reads it, without time and node; empty when it is not worth a line."""
    f = event.fields
    text = str(f.get("text", ""))
    seconds = float(f.get("seconds") or 0)
    if event.what == "phase":
        return f"{event.phase} ..." if f.get("state") == "begin" else ""
    if event.what == "phase-end":
        return f"{event.phase} {f.get('outcome', 'done')} in {seconds:.1f} s"
    if event.what == "check":
        return f"check {f.get('name')}: {f.get('status')} {f.get('detail', '')}".rstrip()
    words = {
        "started": f"started {f.get('process')} (pid {f.get('pid')})",
        "exited": f"{f.get('process')} {f.get('how')}",
        "ready": f"{f.get('who')} ready after {seconds:.1f} s",
        "note": text,
        "waiting": f"waiting for {f.get('missing')}",
        "progress": text,
        "load": load_line(f.get("rows")) if f.get("say") is True else "",
        "answer": f"first answer from {f.get('url')}: {text!r}",
        "benchmark": text,
        "cause": f"CAUSE {text}",
        "stopping": f"stopping: {text}",
        "stopped": f"stopped {f.get('process')} in {seconds:.1f} s",
        "verdict": f"verdict: {text}",
        "warning": f"warning: {text}",
        "joined": f"node {f.get('member')} joined from {f.get('address')}",
    }
    return words.get(event.what, "")


def load_line(rows: Any) -> str:
    """How a load goes on, in one line; ``rows`` are the load generator's and those of each side."""
    return "; ".join(map(str, rows)) if isinstance(rows, list) else ""


def console_line(event: Event, started: float) -> str:
    """An event as a plain line with time and phase; empty when it is not worth one."""
    text = sentence(event)
    if not text:
        return ""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    who = "runner" if event.node == RUNNER else f"node {event.node}"
    return foreign.block(f"{clock} {event.time - started:+7.1f}s  {who:<7} {event.phase:<9} {text}")
