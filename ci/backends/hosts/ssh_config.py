"""ssh's configuration as ssh reads it: with the files that ``Include`` names.

Enters: ``~/.ssh/config`` and ``/etc/ssh/ssh_config``. Leaves: one configuration.
Touches: reads those files and what they include. Paramiko knows no ``Include``
(it passes over it in silence), though many people keep their hosts in included files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from paramiko import SSHConfig

#: As ssh_config(5) has it.
_DEPTH = 16
_LINE = re.compile(r"^\s*(?P<word>[A-Za-z]+)(?:\s*=\s*|\s+)(?P<rest>.*?)\s*$")
_SYSTEM = Path("/etc/ssh/ssh_config")


def read(user: Path | None = None, system: Path = _SYSTEM) -> SSHConfig:
    """The user's configuration, then the system's; of two values the first counts.

    Args:
        user: ``None``: ``~/.ssh/config``.
    """
    config = SSHConfig()
    for path in (Path("~/.ssh/config").expanduser() if user is None else user, system):
        text = "\n".join(_lines(path, path.parent, "Host *", 0))
        config.parse(io.StringIO(f"{text}\n"))
    return config


def _lines(path: Path, base: Path, block: str, depth: int) -> Iterator[str]:
    """A file's lines, included ones in their place; ``block`` is what they stand in."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        match = _LINE.match(line)
        word = match["word"].lower() if match else ""
        if match is None or word != "include":
            block = line if word in ("host", "match") else block
            yield line
        elif depth < _DEPTH:
            for pattern in re.findall(r'"([^"]+)"|(\S+)', match["rest"]):
                name = Path("".join(pattern)).expanduser()
                for found in sorted(Path("/").glob(str(base / name).lstrip("/"))):
                    yield from _lines(found, base, block, depth + 1)
                    # ssh goes on in the block in which the Include stands.
                    yield block
