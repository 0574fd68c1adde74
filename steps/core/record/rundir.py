"""The run directory: names of files that others read, and how they are written.

Enters: values. Leaves: files, written atomically, readable by the owner
only. Touches: the run directory.

    runs/<run id>/case.yaml plan.json events.jsonl verdict.json junit.xml
                  summary.md node-<i>/{record.json, processes.json, *.log, bench/}
    runs/latest -> <run id>
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from steps.core.case.numbers import dumps, loads
from steps.core.errors import UsageError

_CHUNK = 1 << 20
#: No file that is read at once is longer.
READ_LIMIT = 64 << 20
#: Room that is held back in the directory of a run and of a node, for what must be written last.
RESERVE, RESERVE_BYTES = ".reserve", 1 << 20
#: With less than this a disk is full.
FULL_BYTES = 64 << 10


def new_run_id(now: float | None = None) -> str:
    """A name that sorts by time and is free, such as ``20261123-181500-3fa2c1``."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{stamp}-{secrets.token_hex(3)}"


_ANOTHER = "Name a new directory with --run-dir."


def _linked(path: Path) -> UsageError:
    return UsageError(f"{path} is a symbolic link, and a run follows none", _ANOTHER)


@dataclass(frozen=True)
class NodeDir:
    """One node's part of a run directory.

    Attributes:
        step: the step that runs alone; each but ``serve`` has a table of processes of its own.
    """

    path: Path
    step: str = ""

    @property
    def record(self) -> Path:
        """Written once, at the node's end."""
        return self.path / "record.json"

    @property
    def processes(self) -> Path:
        """Kept current while the run lives."""
        own = f"-{self.step}" if self.step not in ("", "serve") else ""
        return self.path / f"processes{own}.json"

    @property
    def events(self) -> Path:
        """The node's own events."""
        return self.path / "events.jsonl"

    @property
    def bench(self) -> Path:
        """Results of benchmarks, a directory each."""
        return self.path / "bench"

    def make(self) -> NodeDir:
        """Create it, for the owner only.

        Raises:
            UsageError: there is a link of its name.
        """
        if self.path.is_symlink():
            raise _linked(self.path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def reserve(self) -> None:
        """Hold room back for the record."""
        _reserve(self.path / RESERVE)

    def release(self) -> None:
        """Give that room back; what filled the disk must have been stopped."""
        _release(self.path / RESERVE)


@dataclass(frozen=True)
class RunDir:
    """A run's directory."""

    path: Path

    @property
    def plan(self) -> Path:
        """The plan as it is carried out."""
        return self.path / "plan.json"

    @property
    def case(self) -> Path:
        """The case as it was validated."""
        return self.path / "case.yaml"

    def profile(self, name: str) -> Path:
        """The cluster's profile as it was used; its name is the file's."""
        return self.path / "clusters" / f"{name}.yaml"

    @property
    def events(self) -> Path:
        """Events of all nodes and of the runner, in the order of their times."""
        return self.path / "events.jsonl"

    @property
    def verdict(self) -> Path:
        """The verdict."""
        return self.path / "verdict.json"

    @property
    def observed(self) -> Path:
        """Causes that only the backend saw; absent when it saw none."""
        return self.path / "observed.json"

    @property
    def images(self) -> Path:
        """Digests of the images that the nodes' containers ran, as the backend saw them."""
        return self.path / "images.json"

    @property
    def junit(self) -> Path:
        """The verdict as JUnit XML."""
        return self.path / "junit.xml"

    @property
    def summary(self) -> Path:
        """The verdict for people, as Markdown."""
        return self.path / "summary.md"

    @property
    def token(self) -> Path:
        """The run's token; removed at the end."""
        return self.path / ".token"

    def node(self, index: int, step: str = "") -> NodeDir:
        """The part of one node; ``step`` is the one that runs alone there."""
        return NodeDir(self.path / f"node-{index}", step)

    def make(self) -> RunDir:
        """Create it, for the owner only, as all that this process and its children make then.

        What comes back is the same by a name that stays its own: ``runs/latest`` may mean another
        one soon, and processes start elsewhere.

        Raises:
            UsageError: there can be no directory of this name, or others have a hand in it.
        """
        os.umask(0o077)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own()
        except OSError as error:
            raise UsageError(
                f"the run directory {self.path} cannot be made: {error.strerror or error}",
                "Name another one with --run-dir.",
            ) from None
        return RunDir(self.path.resolve())

    def _own(self) -> None:
        """Let a directory that was there before be for its owner only; an empty one becomes so."""
        found = self.path.stat()
        with tempfile.TemporaryFile(dir=self.path) as mine:  # a file server may have renamed us
            if os.fstat(mine.fileno()).st_uid != found.st_uid:
                raise UsageError(f"{self.path} belongs to another user", _ANOTHER)
        inside = list(self.path.iterdir())
        if stat.S_IMODE(found.st_mode) & 0o077:
            if inside:
                raise UsageError(
                    f"{self.path}: found mode {stat.S_IMODE(found.st_mode):04o}, and files in it; "
                    "others can reach what a run leaves there",
                    f"{_ANOTHER} Or chmod 700 {self.path}",
                )
            self.path.chmod(0o700)
        for path in (*inside, *self.path.glob("node-*/*")):
            if path.is_symlink():
                raise _linked(path)

    def reserve(self) -> None:
        """Hold room back for the verdict and what is made with it."""
        _reserve(self.path / RESERVE)

    def release(self) -> None:
        """Give that room back, and that of node programs that could not."""
        for path in (self.path / RESERVE, *self.path.glob(f"node-*/{RESERVE}")):
            _release(path)

    def check_there(self, hint: str) -> None:
        """Raises UsageError when there is no such directory."""
        if not self.path.is_dir():
            raise UsageError(f"{self.path}: no such run directory", hint)

    def check_unused(self) -> None:
        """Raises UsageError when a run is in it."""
        if self.plan.exists():
            raise UsageError(f"{self.path} holds another run", _ANOTHER)

    def claim(self) -> None:
        """Take it for this process, until it ends.

        Raises:
            UsageError: a run is in it, or is going on in it.
        """
        self.check_unused()
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(f"another run is going on in {self.path}", _ANOTHER) from None
        except OSError:  # a network file system without locks
            os.close(handle)


def _reserve(path: Path) -> None:
    """Zeros, for a file system that cannot allocate without writing; nothing where none fit."""
    try:
        with open(path, "wb", opener=no_link) as out:
            out.write(bytes(RESERVE_BYTES))
    except OSError:
        _release(path)


def _release(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def point_latest(run: Path) -> None:
    """Let ``latest`` beside the run directory point at it, unless it is something of its own."""
    link = run.parent / "latest"
    if link.exists() and not link.is_symlink():
        return
    temporary = run.parent / f".latest.{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        temporary.symlink_to(run.name)
        try:
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)


def no_link(path: str, flags: int) -> int:
    """An opener of files that are the owner's only; a symbolic link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def appending(path: Path) -> BinaryIO:
    """A file of a run to which lines are added, unbuffered."""
    return open(path, "ab", buffering=0, opener=no_link)


def write_text(path: Path, text: str) -> None:
    """Write a file at once or not at all, readable by the owner only."""
    # The name says nothing of the file's: that may have all the length there is.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        os.fchmod(handle, 0o600)
        with os.fdopen(handle, "wb") as out:
            try:
                out.write(text.encode("utf-8", "surrogateescape"))
            except UnicodeEncodeError:
                out.write(text.encode("utf-8", "backslashreplace"))
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where it is
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_text(path, dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_bounded(path: Path, limit: int = READ_LIMIT) -> bytes:
    """The content of a file that others may have written; no pipe or device is waited for.

    Raises:
        OSError: it is absent, no regular file (a link is none), or longer than ``limit``.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise OSError(error.errno, "not a regular file", str(path)) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as source:
            content = source.read(limit + 1)
    finally:
        os.close(handle)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit} bytes", str(path))
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file; None when it is absent, torn or no file to read at once."""
    try:
        return loads(read_bounded(path).decode("utf-8", "replace"))
    except (OSError, ValueError):
        return None


def full(path: Path) -> bool:
    """Whether the file system of ``path`` has no room left."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return False
    return (stat.f_bavail if os.getuid() else stat.f_bfree) * stat.f_frsize < FULL_BYTES


def sha256_of(path: Path) -> str:
    """Digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
