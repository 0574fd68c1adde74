"""What is expensive to make is made once and kept: a place in the cache, its lock, its marker.

Enters: where a thing belongs and a function that makes it. Leaves: the finished thing, or a
`BuildError` that says what was found, what was expected and what to do. Touches the cache directory
(`$MULTINODE_CACHE`, by default `~/.cache/multinode`) and the programs that the builder runs.

A place `<kind>/<name>-<key>` has three neighbours: `.log` (what the programs printed), `.lock` (one
builder at a time, over all processes of the machine) and, inside it, `.complete` (written last; a
place without it is half-built, and is made again from nothing).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from steps.core import door, settings
from steps.core.case.numbers import dumps, loads
from steps.core.errors import InfraError

Say = Callable[[str], None]
"""Takes one line of progress. It may be called from another thread."""

PROGRESS_SECONDS = 5.0
LOG_LINES_IN_ERROR = 12


def cache_root() -> Path:
    """The directory that holds everything kept: `$MULTINODE_CACHE` or `~/.cache/multinode`."""
    return settings.read().cache.expanduser().resolve()


class BuildError(InfraError):
    """Something that should be kept cannot be made: the machine's fault, not the case's.

    Args:
        what: what cannot be done; `found`, `expected` and `todo` are one clause each.
        log: where the output of the program that failed is.
    """

    def __init__(
        self, what: str, *, found: str, expected: str, todo: str, log: Path | None = None
    ) -> None:
        self.what, self.found, self.expected, self.log = what, found, expected, log
        lines = [what, f"  found:    {found}", f"  expected: {expected}"]
        if log is not None:
            lines.append(f"  log:      {log}")
        super().__init__("\n".join(lines), hint=todo)


def digest(*parts: object) -> str:
    """Twelve hex digits that change when any part does; parts are compared by their repr."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Slot:
    """Where one kept thing lives; the key says of what it was made."""

    kind: str
    name: str
    key: str

    @property
    def path(self) -> Path:
        return cache_root() / self.kind / f"{self.name}-{self.key}"

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def facts(self) -> dict[str, Any] | None:
        """What the builder noted at its end (`megabytes`, `seconds`, ...); None if not done."""
        try:
            noted = loads((self.path / ".complete").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return noted if isinstance(noted, dict) else None


@dataclass(frozen=True)
class Builder:
    """Runs the programs of one build: output to the log, progress to `say`."""

    name: str
    log: Path
    say: Say

    def run(
        self, argv: Sequence[str | Path], doing: str, *, todo: str, cwd: Path | None = None
    ) -> None:
        """Run one program to its end, in a group of its own that dies with us.

        Args:
            doing: what it does, for the progress lines and the error.
            todo: what a user can do if it fails.

        Raises:
            BuildError: it cannot be started, or ends with another exit code than 0.
        """
        command = [str(arg) for arg in argv]
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise self._failed(doing, f"{command[0]}: {error.strerror}", todo) from error
            with heartbeat(self.say, f"{self.name}: {doing}", last_line_of=self.log):
                try:
                    code = process.wait()
                except BaseException:
                    _kill_group(process)
                    raise
        if code != 0:
            raise self._failed(
                doing, f"exit code {code}\n{_tail(self.log, LOG_LINES_IN_ERROR)}", todo
            )

    def _failed(self, doing: str, found: str, todo: str) -> BuildError:
        return BuildError(
            f"cannot build {self.name}: {doing} failed",
            found=found,
            expected="exit code 0",
            todo=todo,
            log=self.log,
        )


def keep(
    slot: Slot,
    build: Callable[[Path, Builder], Mapping[str, object]],
    *,
    needs_megabytes: int,
    say: Say,
) -> None:
    """Make the thing at `slot` unless it is there; a second process waits for the first one.

    Args:
        build: makes it under the given path (which does not exist yet) and returns facts to note.
        needs_megabytes: free disk space without which it is not begun.

    Raises:
        BuildError: too little disk, no right to write there, or whatever `build` raises.
    """
    if slot.facts() is not None:
        return
    try:
        slot.path.parent.mkdir(parents=True, exist_ok=True)
        lock = slot.lock.open("w")
    except OSError as error:
        raise BuildError(
            f"cannot build {slot.name}: the cache cannot be written",
            found=f"{slot.path.parent}: {error.strerror}",
            expected="a directory that can be written",
            todo="set MULTINODE_CACHE to one",
        ) from error
    with lock, _locked(lock.fileno(), slot, say):
        if slot.facts() is not None:
            return
        if slot.path.exists():
            say(f"{slot.name}: {slot.path} is half-built, beginning again")
            shutil.rmtree(slot.path)
        _check_disk(slot, needs_megabytes)
        slot.log.write_text("", encoding="utf-8")
        started = time.monotonic()
        facts = dict(build(slot.path, Builder(slot.name, slot.log, say)))
        facts |= {
            "seconds": round(time.monotonic() - started, 1),
            "megabytes": megabytes(slot.path),
        }
        draft = slot.path / ".complete.draft"
        draft.write_text(dumps(facts, indent=1), encoding="utf-8")
        draft.rename(slot.path / ".complete")
        say(
            f"{slot.name}: ready after {facts['seconds']:.0f} s, {facts['megabytes']} MB "
            f"in {slot.path}"
        )


class Listed(Protocol):
    """What a listing needs of a recipe."""

    @property
    def summary(self) -> str: ...

    @property
    def needs_megabytes(self) -> int: ...


def command(
    module: str,
    description: str | None,
    rows: Mapping[str, tuple[Slot, Listed]],
    ensure: Callable[[str, Say], object],
    arguments: Sequence[str] | None,
) -> int:
    """The command line of a module that keeps things: builds what is named, or lists all.

    Returns:
        The exit code.
    """

    def options(parser: argparse.ArgumentParser) -> None:
        listed = f"build these: {', '.join(rows)}; none: list all"
        parser.add_argument("names", nargs="*", metavar="NAME", help=listed)

    def work(given: argparse.Namespace) -> int:
        if arguments is None:
            # A shell's background job inherits SIGINT ignored; Python then raises nothing.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
        for name in given.names:
            ensure(name, lambda line: print(line, flush=True))
        if not given.names:
            print("\n".join(_listing(rows)))
        return 0

    return door.Verb(f"python -m {module}", description, options, work)(arguments)


def _listing(rows: Mapping[str, tuple[Slot, Listed]]) -> Iterator[str]:
    """One line a thing; then builds of other pins or Pythons, which nothing else removes."""
    width = max(map(len, rows))
    for name, (slot, recipe) in rows.items():
        facts = slot.facts()
        state = (
            f"{facts['megabytes']} MB  {slot.path}"
            if facts
            else f"not built (needs {recipe.needs_megabytes} MB)"
        )
        yield f"{name:{width}}  {state}  {recipe.summary}"
    current = {slot.path for slot, _ in rows.values()}
    for kind in {slot.kind for slot, _ in rows.values()}:
        for marker in sorted((cache_root() / kind).glob("*/.complete")):
            path = marker.parent
            if path not in current and not path.is_symlink():
                what = "of other pins or another Python: rm -r it"
                yield f"{'':{width}}  {megabytes(path)} MB  {path}  {what}"


@contextmanager
def heartbeat(say: Say, doing: str, last_line_of: Path | None = None) -> Iterator[None]:
    """Say at once what is done, and again every few seconds for how long, until the body ends."""
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not done.wait(PROGRESS_SECONDS):
            line = _tail(last_line_of, 1).strip()[:100] if last_line_of else ""
            say(f"{doing}, {time.monotonic() - started:.0f} s" + (f" | {line}" if line else ""))

    say(doing)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def megabytes(path: Path) -> int:
    """The size of a directory tree in MB (10^6 bytes), links not followed."""
    total = 0
    for directory, _, names in os.walk(path):
        total += sum((Path(directory) / name).lstat().st_size for name in names)
    return round(total / 1e6)


@contextmanager
def _locked(descriptor: int, slot: Slot, say: Say) -> Iterator[None]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with heartbeat(
            say, f"{slot.name}: waiting for another process that builds it", last_line_of=slot.log
        ):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _check_disk(slot: Slot, needs_megabytes: int) -> None:
    free = shutil.disk_usage(slot.path.parent).free / 1e6
    if free < needs_megabytes:
        raise BuildError(
            f"cannot build {slot.name}: not enough disk",
            found=f"{free:.0f} MB free at {slot.path.parent}",
            expected=f"{needs_megabytes} MB",
            todo="free some, or set MULTINODE_CACHE to a directory on a larger disk",
        )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 8192))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "\n").rstrip().splitlines()[-lines:])
