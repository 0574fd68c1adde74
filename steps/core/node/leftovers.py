"""What a kept node program leaves on a host: removed with the run, or a week later.

Enters: the place of a node program. Leaves: nothing, or results that nobody has fetched yet.
Touches: processes that carry the place in their environment; the place and the bundle beside it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from steps.core.case.numbers import dumps
from steps.core.record.rundir import write_text
from steps.core.system import ancestry

SOCKET = "keeper.sock"
#: Names what the keeper had to kill at its end.
LEFT = "left"
#: In the environment of the keeper and so of everything that comes of it: the place.
PLACE = "MULTINODE_PLACE"
TICK = 0.1
#: How long results lie on a host that nobody has fetched.
KEPT_SECONDS = 7 * 86400
#: How long what has been told to end may take before it counts as left.
LEAVE_TICKS = 8


def clean(place: Path, results: bool = False) -> int:
    """End the keeper and whatever carries the run's mark, remove the directory.

    Args:
        results: they stay, marked as over, until somebody fetches them or they are a week old.
    """
    import shutil

    _end_keeper(place)
    left: list[str] = []
    with contextlib.suppress(OSError):
        left = (place / LEFT).read_text(encoding="utf-8").splitlines()
    for attempt in range(20):
        found = list(marked(place))
        if not found:
            break
        if attempt < LEAVE_TICKS:
            time.sleep(TICK)
            continue
        left = left or [f"{_name_of(pid)} (pid {pid})" for pid in found]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(TICK)
    if results:
        leave_results(place)
    else:
        shutil.rmtree(place, ignore_errors=True)
        drop_bundle(place)
    gone = not place.exists()
    print(dumps({"left": left, "removed": gone}), flush=True)
    return 0


def retire(place: Path) -> int:
    """What :func:`clean` does, but the results stay."""
    return clean(place, results=True)


def leave_results(place: Path) -> None:
    """Nobody has fetched; what is there stays for who comes later, marked as over."""
    with contextlib.suppress(OSError):
        write_text(place / "ended", f"{time.time():.0f}\n")


def _end_keeper(place: Path) -> None:
    """Ask the keeper to leave, and wait until it has."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        os.chdir(place)
        sock.settimeout(5 + ancestry.GONE_SECONDS)
        sock.connect(SOCKET)
        sock.sendall(b'{"bye": true}\n')
        while sock.recv(1 << 16):
            pass
    os.chdir("/")


def marked(place: Path) -> Iterator[int]:
    """Processes of ours that were started from ``place``, whatever became of their parents."""
    needle = f"{PLACE}={place}".encode()
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def drop_bundle(place: Path) -> None:
    """Remove the harness, and the run's directory, unless another node here still needs it."""
    import shutil

    base = place.parent
    with contextlib.suppress(OSError):
        if any(other != place for other in base.glob("host-*")):
            return
        shutil.rmtree(base / "bundle", ignore_errors=True)
        base.rmdir()


def prune(directory: Path) -> None:
    """Remove results of our own runs whose runner went away and that nobody has fetched since."""
    import shutil

    with contextlib.suppress(OSError):
        for ended in directory.glob("multinode-*/host-*/ended"):
            stat = ended.stat()
            if stat.st_uid == os.getuid() and time.time() - stat.st_mtime > KEPT_SECONDS:
                shutil.rmtree(ended.parent, ignore_errors=True)
                drop_bundle(ended.parent)


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "?"
