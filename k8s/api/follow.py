"""Following logs: every line of every container, once, from the first.

Enters: pods that run. Leaves: ``node-I/pod.log`` and calls with each line.
Touches the API; those files. A stream that breaks is resumed: the API takes a
time in whole seconds, so some lines come again and are recognised by their own
time and text. After a restart the former life's log is kept as ``pod-previous.log``.
"""

from __future__ import annotations

import calendar
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from k8s.api.client import Api, ApiError, path
from steps.core.record.rundir import no_link

#: Seconds of silence after which a stream is opened anew; a dead connection looks the same.
SILENCE = 300.0
#: How far back lines are remembered and asked for again; several clocks of one node's streams.
OVERLAP_NS = 2_000_000_000
#: ``pod.py`` says this when the node program has ended.
LAST_WORDS = "multinode: MULTINODE-DONE"


class Follower:
    """The log of one container, on a thread of its own."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        pod: str,
        container: str,
        out: Path,
        line: Callable[[str], None],
    ) -> None:
        self.api = api
        self.target = path(namespace, "pods", pod, "log")
        self.container = container
        self.out = out
        self.line = line
        self.broken = 0
        self._recent: deque[tuple[int, bytes]] = deque()
        self._latest = 0
        self._over = threading.Event()
        self._once = threading.Event()
        self._last = threading.Event()
        self._lock = threading.Lock()
        self._out: BinaryIO | None = None
        self._thread = threading.Thread(target=self._main, name=f"log {pod}", daemon=True)

    def start(self) -> Follower:
        """Begin with the first line."""
        self._thread.start()
        return self

    def no_more_lives(self) -> None:
        """What comes after this stream's end under the same name is another pod's."""
        self._once.set()

    def close(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the pod's last words, then stop."""
        self._last.wait(seconds)
        self._over.set()
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._out is not None:
                self._out.flush()

    def _main(self) -> None:
        delay = 0.2
        try:
            with open(self.out, "ab", buffering=1 << 14, opener=no_link) as out:
                self._out = out
                while not self._over.is_set():
                    try:
                        self._stream(out)
                        delay = 0.2
                    except ApiError as error:
                        if error.code in (403, 404):
                            return
                        self.broken += 1
                        delay = min(delay * 2, 5.0)
                    with self._lock:
                        out.flush()
                    if self._once.is_set():
                        return
                    self._over.wait(delay)
        except OSError:
            return
        finally:
            self._last.set()

    def _stream(self, out: BinaryIO) -> None:
        query = {"container": self.container, "follow": "true", "timestamps": "true"}
        again: Counter[tuple[int, bytes]] = Counter()
        if self._latest:
            since = time.gmtime((self._latest - OVERLAP_NS // 2) // 1_000_000_000)
            query["sinceTime"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", since)
            again.update(self._recent)
        flushed = time.monotonic()
        for raw in self.api.lines(self.target, query, SILENCE, self._over.is_set):
            stamp, _, text = raw.partition(b" ")
            at = _nanoseconds(stamp)
            if not at:  # no time: torn, or a message of the kubelet
                continue
            if again:
                key = (at, text)
                if again[key] > 0:
                    again[key] -= 1
                    continue
                again.clear()  # what we have seen is all in front of what we have not
            self._remember(at, text)
            now = time.monotonic()
            with self._lock:
                out.write(text + b"\n")
                if now - flushed > 0.5:
                    out.flush()
                    flushed = now
            words = text.decode("utf-8", "replace")
            self.line(words)
            if words.startswith(LAST_WORDS):
                self._last.set()

    def _remember(self, at: int, text: bytes) -> None:
        recent = self._recent
        recent.append((at, text))
        self._latest = max(self._latest, at)
        while recent and recent[0][0] < self._latest - OVERLAP_NS:
            recent.popleft()


def _nanoseconds(stamp: bytes) -> int:
    """A log line's time, such as ``2026-08-01T10:00:00.123456789Z``; 0 when it is none."""
    whole, dot, rest = stamp.rstrip(b"Z").partition(b".")
    seconds = _seconds(whole)
    if not seconds:
        return 0
    return seconds * 1_000_000_000 + (int(rest.ljust(9, b"0")[:9]) if dot and rest.isdigit() else 0)


_cache: dict[bytes, int] = {}


def _seconds(whole: bytes) -> int:
    """Seconds since the epoch; converted once for the lines of one second."""
    found = _cache.get(whole)
    if found is None:
        try:
            text = whole.decode()
            found = calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
        except ValueError:
            return 0
        if len(_cache) > 64:
            _cache.clear()
        _cache[whole] = found
    return found


def previous(api: Api, namespace: str, pod: str, container: str, out: Path) -> bool:
    """Keep the log of a container's former life; false when there is none."""
    query = {"container": container, "previous": "true"}
    try:
        with open(out, "wb", opener=no_link) as file:
            for line in api.lines(path(namespace, "pods", pod, "log"), query, 20.0, lambda: False):
                file.write(line + b"\n")
    except (ApiError, OSError):
        with contextlib.suppress(OSError):
            if not out.stat().st_size:
                out.unlink()
        return False
    return True
