"""The system's ssh client: whether it will do, and the files it is given.

Enters: nothing. Leaves: a configuration that puts our few conditions before the
user's own, names for sockets. Touches: one private directory, gone at the end; those
of programs that were killed are removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from steps.core.errors import InfraError

_PREFIX = "mn-ssh-"
#: ``RemoteCommand`` and ``Include`` need it.
MINIMUM = (7, 6)
#: Before the user's own configuration, as a file, since ssh hands that on to a jump host's ssh:
#: nobody can be asked, nothing is forwarded, only known host keys count, and none is added.
_CONFIG = """\
BatchMode yes
StrictHostKeyChecking yes
UpdateHostKeys no
LogLevel ERROR
ClearAllForwardings yes
ForwardAgent no
ForwardX11 no
PermitLocalCommand no
RemoteCommand none
RequestTTY no
ServerAliveInterval 5
ServerAliveCountMax 4
Include ~/.ssh/config
Include /etc/ssh/ssh_config
"""


def version() -> tuple[str, bool]:
    """What the system's ssh calls itself, and whether it will do; empty when there is none."""
    try:
        done = subprocess.run(
            ["ssh", "-V"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", False
    said = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
    match = re.match(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)", said)
    name = said.splitlines()[0][:80] if said else "an ssh that says no version"
    return name, match is not None and (int(match[1]), int(match[2])) >= MINIMUM


class Client:
    """The system's ssh as one program of ours uses it; its files are in one private directory.

    Raises:
        InfraError: there is no ssh, it is too old, or the directory cannot be made.
    """

    def __init__(self) -> None:
        name, fit = version()
        if not fit:
            wanted = f"OpenSSH {'.'.join(map(str, MINIMUM))} or newer"
            raise InfraError(
                f"hosts are reached with the system's ssh: found {name or 'none on PATH'}, "
                f"expected {wanted}",
                "Debian and Ubuntu: apt-get install openssh-client; Fedora and its kin: "
                "dnf install openssh-clients.",
            )
        # The names of sockets must be short, so a long TMPDIR is of no use.
        root = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
        _sweep(root)
        made = ""
        try:
            made = tempfile.mkdtemp(prefix=_PREFIX, dir=root)
            self._path = Path(made)
            self._lock = (self._path / "new").open("w", encoding="utf-8")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._lock.write(_CONFIG)
            self._lock.flush()
            self.config = (self._path / "new").rename(self._path / "config")
        except OSError as error:
            if made:
                shutil.rmtree(made, ignore_errors=True)
            raise InfraError(
                f"ssh's sockets need a directory in {root}: {error.strerror or error}",
                f"Make room in {root}, or make it writable.",
            ) from None
        self._count = itertools.count()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock.close()

    def socket(self) -> Path:
        """A new name for a connection's socket."""
        return self._path / str(next(self._count))


def _sweep(root: Path) -> None:
    """Remove what programs that were killed left; the lock of one that lives is taken."""
    for config in root.glob(f"{_PREFIX}*/config"):
        with contextlib.suppress(OSError):
            if config.parent.lstat().st_uid == os.getuid():
                with config.open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(config.parent, ignore_errors=True)
