"""What artifact stores take: plain files with plain names. GitHub's refuses an upload as a whole.

Enters: a directory that nobody writes to any more. Leaves: what was changed, in words.
Touches: renames files and directories, removes FIFOs, sockets, devices and links that lead
to no file within, lets the owner read what is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from itertools import count
from pathlib import Path

#: Refused in a name: these signs, control characters, bytes that are no UTF-8.
_ODD = re.compile('[":<>|*?\\\\\\x00-\\x1f\\x7f\\ud800-\\udfff]')
#: Changes that are named.
SHOWN = 20
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


def make(root: Path) -> str:
    """Make everything under ``root`` fit; in words what did not, empty when all did."""
    told = _mended(root)
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return f"for artifact stores: {'; '.join(told[:SHOWN])}{more}" if told else ""


def _mended(root: Path) -> list[str]:
    told: list[str] = []
    folders = [root]
    for folder in folders:  # it grows
        for entry in _in(folder):
            with contextlib.suppress(OSError):
                mode = entry.lstat().st_mode
                needed = 0o700 if stat.S_ISDIR(mode) else 0o400 if stat.S_ISREG(mode) else 0
                if needed & ~mode:
                    entry.chmod(stat.S_IMODE(mode) | needed)
                if stat.S_ISDIR(mode):
                    folders.append(entry)
                elif kind := _kind(entry, mode, root):
                    entry.unlink()
                    told.append(f"removed {_shown(entry, root)} ({kind})")
    for folder in reversed(folders):
        for entry in _in(folder):
            if plain := _free(entry):
                with contextlib.suppress(OSError):
                    entry.rename(plain)
                    told.append(f"renamed {_shown(entry, root)} to {plain.name}")
    return told


def _in(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _kind(entry: Path, mode: int, root: Path) -> str:
    """What a thing without content of its own is; empty for a file, or a link to one within."""
    if stat.S_ISREG(mode):
        return ""
    if not stat.S_ISLNK(mode):
        return _KINDS.get(stat.S_IFMT(mode), "a device")
    with contextlib.suppress(OSError, RuntimeError):
        target = entry.resolve(strict=True)
        if target.is_file() and target.is_relative_to(root.resolve()):
            return ""
    return f"a link to {_plain(str(entry.readlink()))}"


def _free(entry: Path) -> Path | None:
    """A plain name for it that nothing has; None when its own is plain."""
    plain = _ODD.sub("_", entry.name)
    if plain == entry.name:
        return None
    names = (entry.with_name(f"{plain[:60]}.{n}" if n else plain) for n in count())
    return next(path for path in names if not os.path.lexists(path))


def _shown(entry: Path, root: Path) -> str:
    return _plain(str(entry.relative_to(root)))


def _plain(text: str) -> str:
    return repr(text)[1:-1]
