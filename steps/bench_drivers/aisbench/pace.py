"""How AISBench goes on, from the counts it prints every other second.

Enters: its log. Leaves: events of its progress, or the cause that its last requests hang.
Touches: reads the end of the log.

    POST=16 (1.2/s)  RECV=12 (0.9/s)  FAIL=0 (0.0/s)  FIN=12 (0.9/s)

It counts ends of requests, no tokens, and no request of its own is known: its requests hang when
neither its counts nor any engine's figures have moved for the limit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from steps.bench_drivers import stuck
from steps.bench_drivers.progress import Counts, Watch
from steps.core.case.case import Benchmark
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.record.evidence import tail

_COUNTS = re.compile(r"POST=(\d{1,9})\b.*?FAIL=(\d{1,9})\b.*?FIN(?:ISH)?=(\d{1,9})\b")


class Pace:
    """Follows one AISBench, or another client whose log ``counts`` reads.

    ``asked`` is 0 where the size of its data set is not known.
    """

    def __init__(
        self,
        run: NodeRun,
        benchmark: Benchmark,
        asked: int,
        log: Path,
        client: str = "AISBench",
        counts: Callable[[str], tuple[int, int, int]] | None = None,
    ) -> None:
        self._client, self._read = client, counts or read
        self._run, self._benchmark, self._asked, self._log = run, benchmark, asked, log
        self._watch = Watch(run, benchmark.name)
        self._seen: tuple[int, ...] = ()
        self._moved = time.monotonic()

    def tell(self) -> None:
        """Say how it goes on, when it is time.

        Raises:
            StepFailed: its last requests hang.
        """
        if not self._watch.due():
            return
        found = self._read(tail(self._log))
        now = time.monotonic()
        if found != self._seen:
            self._seen, self._moved = found, now
        sent, failed, done = found or (0, 0, 0)
        asked = self._asked
        settled = done >= min(filter(None, (self._benchmark.batch_size, asked)), default=1)
        self._watch.tell(
            Counts(asked, done, sent - done, failed, work=done, whole=asked, settled=settled)
        )
        limit, still = stuck.limit(self._run.plan), self._watch.still or 0.0
        quiet = min(now - self._moved, still)
        if sent > done and quiet > limit:
            reason = (
                f"{self._benchmark.name}: {sent - done:,} of {asked or sent:,} requests are stuck: "
                f"neither {self._client}'s counts nor any engine's figures have moved for "
                f"{quiet:.0f} s, while {done:,} have been answered"
            )
            raise StepFailed(stuck.cause(self._run, reason, first=True))


def read(text: str) -> tuple[int, int, int]:
    """Requests that were sent, that failed, that ended, by the last counts; zeros before them."""
    found = _COUNTS.findall(text)
    sent, failed, done = map(int, found[-1]) if found else (0, 0, 0)
    return max(sent, done), failed, done
