"""A directory for the temporary files of what a node starts, and of nothing else.

Enters: nothing. Leaves: a directory that only its owner can open; later none.
Touches: the system's directory for temporary files; removes there what runs of
this user left that have all died.

Engines make sockets and files there and leave them when they are killed. The
path is short, since the path of a Unix socket is at most 107 bytes and engines
add up to 60 to it. Who holds the directory holds a lock on a file in it, the
guard by inheritance; when nobody does, it is nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PREFIX = "mn-"
LOCK = ".lock"
#: Bytes a path may have beside the socket's name that an engine adds.
LONGEST = 40
SHARED_MEMORY = Path("/dev/shm")
#: Segments and semaphores of Python, torch, the collective libraries, vLLM and Mooncake.
_ENGINES = re.compile(r"psm_|sem\.|torch_|nccl-|hccl|vllm|mooncake", re.IGNORECASE)


@dataclass(frozen=True)
class Scratch:
    """The directory; ``path`` is None where none could be made.

    Attributes:
        lock: descriptor that holds the lock, or -1.
        shared: names in shared memory from before.
    """

    path: Path | None
    lock: int = -1
    shared: frozenset[str] = frozenset()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)

    def left_in_memory(self) -> list[str]:
        """What is new in shared memory, ours, and used by nobody: it can only be named."""
        found = {}
        for name in filter(_ENGINES.match, _names(SHARED_MEMORY) - self.shared):
            with contextlib.suppress(OSError):
                stat = (SHARED_MEMORY / name).stat()
                if stat.st_uid == os.getuid():
                    found[name] = stat.st_size
        return [f"{name} ({found[name]} bytes)" for name in sorted(set(found) - _used(found))]


def make() -> Scratch:
    """Make one, and remove those that nobody holds any more."""
    shared = _names(SHARED_MEMORY)
    for base in _places():
        prune(base)
        with contextlib.suppress(OSError):
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            try:
                return Scratch(path, _lock(path), shared)
            except OSError:
                path.rmdir()
    return Scratch(None, -1, shared)


def _lock(path: Path) -> int:
    """Hold a directory; the lock gets its name when it is held, so nobody finds it free."""
    early = path / f"{LOCK}.{secrets.token_hex(4)}"
    handle = os.open(early, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: nobody prunes it
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        early.rename(path / LOCK)
    return handle


def prune(base: Path) -> None:
    """Remove what nobody holds: the node program died, and its guard too."""
    for lock in base.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            stat = lock.parent.lstat()
            if stat.st_uid != os.getuid() or lock.parent.is_symlink():
                continue
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)


def prune_all() -> None:
    """Remove what nobody holds, wherever one can be."""
    for base in _places():
        prune(base)


def _places() -> list[Path]:
    """Where one can be; first where programs may run, since engines compile there."""
    named = dict.fromkeys(map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp")))
    short = [base for base in named if len(os.fsencode(base)) + 12 <= LONGEST and base.is_dir()]
    return sorted(short, key=lambda base: bool(os.statvfs(base).f_flag & _NOEXEC))


_NOEXEC = getattr(os, "ST_NOEXEC", 0)


def _names(place: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in place.iterdir())
    except OSError:
        return frozenset()


def _used(names: Iterable[str]) -> set[str]:
    """Which of these files in shared memory a living process has mapped."""
    wanted = {f"{SHARED_MEMORY}/{name}": name for name in names}
    used: set[str] = set()
    for entry in Path("/proc").glob("[0-9]*") if wanted else ():
        with contextlib.suppress(OSError):
            mapped = (entry / "maps").read_text(errors="replace").splitlines()
            used.update(wanted[path] for line in mapped if (path := line[73:]) in wanted)
    return used
