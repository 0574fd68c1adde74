"""Following log files as they grow.

Enters: a directory of logs. Leaves: their new lines, one call each. Touches:
reads those files.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

EVERY = 0.2
_CHUNK = 1 << 18
#: Bytes of a line that are shown; a longer one is cut.
_LINE = 1 << 14
_ENDS = re.compile(rb"[\r\n]+")


class Tail:
    """Calls ``show(name, line)`` for each new line of each ``*.log`` below a directory.

    A carriage return ends a line too, so a progress bar is seen while it moves; empty lines and
    the rest of a very long line are left out.

    Args:
        root: the run directory; a log's name is ``node-0/server``.
    """

    def __init__(self, root: Path, show: Callable[[str, str], None], pattern: str) -> None:
        self._root = root
        self._show = show
        self._pattern = pattern
        self._offsets = {path: path.stat().st_size for path in root.glob(pattern)}
        self._rests: dict[Path, bytes] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Show what is left and stop."""
        self._over.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._look()
        self._look()
        for path, rest in self._rests.items():
            if rest:
                self._line(path, rest)

    def _look(self) -> None:
        for path in sorted(self._root.glob(self._pattern)):
            try:
                with path.open("rb") as source:
                    source.seek(self._offsets.get(path, 0))
                    while chunk := source.read(_CHUNK):
                        self._offsets[path] = source.tell()
                        *lines, rest = _ENDS.split(self._rests.get(path, b"") + chunk)
                        self._rests[path] = rest[:_LINE]
                        for line in filter(None, lines):
                            self._line(path, line)
            except OSError:
                continue

    def _line(self, path: Path, raw: bytes) -> None:
        name = path.relative_to(self._root).with_suffix("")
        self._show(str(name), raw[:_LINE].decode("utf-8", "replace"))


class Growth:
    """How far a log has grown by its writer's own work.

    Args:
        noise: lines with it are no work.
    """

    def __init__(self, path: Path, noise: re.Pattern[bytes]) -> None:
        self._path, self._noise = path, noise
        self._seen = self._left_out = 0
        self._lock = threading.Lock()

    def size(self) -> int:
        """Bytes without noise; much at once is work whatever it says.

        Raises:
            OSError: there is no such file.
        """
        with self._lock:
            size = self._path.stat().st_size
            if 0 < size - self._seen <= _LINE:
                with self._path.open("rb") as source:
                    source.seek(self._seen)
                    lines = source.read(size - self._seen).splitlines(keepends=True)
                self._left_out += sum(len(line) for line in lines if self._noise.search(line))
            self._seen = size
            return size - self._left_out
