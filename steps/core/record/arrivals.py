"""Files of a node on their way here, out of an archive that somebody else has packed.

Enters: names, sizes and bytes as another machine tells them. Leaves: files in the run directory,
written whole or kept under a name of their own. Touches: the run directory. Reading stops where
it was agreed, and a file that cannot be kept costs only itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from steps.core import foreign
from steps.core.record.rundir import RunDir

CHUNK = 1 << 18
#: What an archive may have beside the content of its files.
SLACK = 64 << 20
DEEPEST = 100
#: What every node has of its own at the top of its run directory; the runner has it too.
_OWN = ("case.yaml", "stage", "events.jsonl", "verdict.json", "summary.md", ".reserve", ".token")


class Overrun(Exception):
    """More came than was agreed, or later."""


class Refused(ValueError):
    """A file cannot be kept here; the text says why."""


def place(run_dir: RunDir, node: int, name: str) -> Path | None:
    """Where a node's file belongs; None for what is here already.

    Its own files, and of the leader what others lack here: the plan, records.

    Raises:
        Refused: nowhere.
    """
    path = PurePosixPath(name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise Refused("no file can have this name here") from None
    if "\0" in name or str(path) != name or path.is_absolute() or {".", ".."} & {*path.parts}:
        raise Refused("no file can have this name here")
    if len(path.parts) > DEEPEST:
        raise Refused("is nested too deeply")
    target = run_dir.path / path
    if path.parts[0] == f"node-{node}" and len(path.parts) > 1:
        return target
    copied = name == "plan.json" or (len(path.parts) == 2 and path.name == "record.json")
    if copied and node == 0 and not target.exists():
        return target
    if copied or name in _OWN or (name.startswith("results-") and len(path.parts) == 1):
        return None
    raise Refused("is outside of the node's own directory")


class Part:
    """One file on its way: what is here of it has a name that nobody chose.

    Attributes:
        lost: why it cannot be kept, once that is known.
    """

    def __init__(self, name: str, size: int, target: Path) -> None:
        self.name = name
        self.size = size
        self.target = target
        self.have = 0
        self.lost = ""
        self.path: Path | None = None

    def take(self, read: Callable[[int], bytes], begin: int = 0) -> int:
        """Write what ``read`` gives from byte ``begin`` on, up to the file's size; how much came.

        What ``read`` raises is raised; what cannot be written makes the file lost.
        """
        taken = 0
        self.have = begin
        try:
            out = self._open(begin)
        except (OSError, ValueError) as error:
            self.lost = _why(error)
            return 0
        with out:
            while (left := self.size - self.have) > 0 and (data := read(min(CHUNK, left))):
                try:
                    rest = memoryview(data)
                    while rest:  # unbuffered, so that no error waits until it is closed
                        rest = rest[out.write(rest) :]
                except OSError as error:
                    self.lost = _why(error)
                    break
                self.have += len(data)
                taken += len(data)
        return taken

    def _open(self, begin: int) -> io.FileIO:
        if self.path is None:
            self.target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, made = tempfile.mkstemp(dir=self.target.parent, prefix=".new-")
            self.path = Path(made)
            return io.FileIO(handle, "w")
        out = io.FileIO(self.path, "r+")
        out.seek(begin)
        out.truncate()
        return out

    def keep(self) -> bool:
        """Give it its name; False when that cannot be."""
        try:
            if self.path is not None:
                self.path.replace(self.target)
                self.path = None
        except OSError as error:
            self.lost = _why(error)
        return not self.lost

    def drop(self) -> None:
        """Keep nothing of it, unless it has its name by now."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def set_aside(self) -> None:
        """Keep what is here of it beside its place; better than nothing."""
        if self.path is None:
            return
        short = os.fsdecode(os.fsencode(self.target.name)[:230])
        aside = self.target.with_name(f"{short}.partial")
        if aside.exists():
            aside = self.target.with_name(f"{short}.{secrets.token_hex(3)}.partial")
        with contextlib.suppress(OSError):
            self.path.replace(aside) if self.path.stat().st_size else self.path.unlink()


def _why(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", "") or error)


def told(name: str, why: str) -> str:
    """How a lost file is named: one line, however long its name is."""
    return f"{foreign.line(name)[:300]}: {why}"


class Inflated:
    """A gzip stream as a file that is read once, to an agreed end.

    Args:
        read: gives the next compressed bytes; none at the end.
        most: bytes that may come out.
        deadline: by the monotonic clock; asked again and again.
    """

    def __init__(self, read: Callable[[], bytes], most: int, deadline: Callable[[], float]) -> None:
        self._read = read
        self._most = most
        self._deadline = deadline
        self._unpacker = zlib.decompressobj(wbits=31)
        self._packed = b""
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        """``size`` bytes; fewer only at the end.

        Raises:
            Overrun: the deadline passed, or there is more than was agreed.
        """
        while len(self._ready) < size and not self._unpacker.eof:
            if time.monotonic() > self._deadline():
                raise Overrun("no time was left")
            self._packed = self._packed or self._read()
            if not self._packed:
                break
            data = self._unpacker.decompress(self._packed, CHUNK)
            self._packed = self._unpacker.unconsumed_tail
            self._most -= len(data)
            if self._most < 0:
                raise Overrun("more came than had been listed")
            self._ready += data
        given = bytes(self._ready[:size])
        del self._ready[:size]
        return given
