"""Faults of the API, by count or by time window.

Enters: :class:`Fault` rows from a test or from the admin endpoint. Leaves: the row that applies
    to a request.
Touches the clock only.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any

WHATS = ("status", "slow", "hang", "cut", "cut-body")


@dataclass
class Fault:
    """One fault.

    Attributes:
        what: ``status`` (answer ``code``), ``slow`` (wait ``seconds`` first, then answer
            normally), ``hang`` (never answer), ``cut`` (close the connection without an answer),
            ``cut-body`` (close it after ``after`` bytes of the answer's body).
        code: the HTTP code of ``status``: 429 and 503 carry Retry-After when ``retry_after`` is
            set.
        method, path: a regular expression each; ``path`` is searched in path and query.
        times: how many requests it hits; None: all of its window.
        start, lasts: the window in seconds from when the fault was added; None: for ever.
    """

    what: str = "status"
    code: int = 500
    retry_after: int | None = None
    seconds: float = 1.0
    after: int = 0
    method: str = ""
    path: str = ""
    times: int | None = None
    start: float = 0.0
    lasts: float | None = None
    hits: int = 0
    added: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        if self.what not in WHATS:
            raise ValueError(f"fault {self.what!r}: expected one of {', '.join(WHATS)}")

    def applies(self, method: str, target: str) -> bool:
        age = time.monotonic() - self.added - self.start
        if age < 0 or (self.lasts is not None and age > self.lasts):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        return bool(re.search(self.method, method) and re.search(self.path, target))

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "added"}


class Faults:
    """The faults in force, oldest first; the first that applies is used up by one."""

    def __init__(self) -> None:
        self._rows: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            fault.added = time.monotonic()
            self._rows.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()

    def rows(self) -> list[Fault]:
        with self._lock:
            return list(self._rows)

    def take(self, method: str, target: str) -> Fault | None:
        with self._lock:
            for row in self._rows:
                if row.applies(method, target):
                    row.hits += 1
                    return row
        return None
