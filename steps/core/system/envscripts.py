"""Environment scripts, such as CANN's ``set_env.sh``, without running servers in a shell.

Enters: paths of scripts and an environment. Leaves: the environment after
sourcing them. Touches: runs bash once, only when there are scripts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from steps.core.errors import InfraError

_SECONDS = 60


def sourced(scripts: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """``env`` as it is after sourcing ``scripts`` in order.

    Raises:
        InfraError: a script is absent or fails.
    """
    if not scripts:
        return dict(env)
    missing = [path for path in scripts if not Path(path).is_file()]
    if missing:
        raise InfraError(
            f"environment script {', '.join(missing)} is not on this node",
            "Correct 'scripts' in the cluster profile, or use an image that has it.",
        )
    lines = 'for script in "$@"; do . "$script" >/dev/null || exit 9; done; env -0'
    try:
        done = subprocess.run(
            ["bash", "-c", lines, "bash", *scripts],
            env=dict(env),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfraError(f"environment scripts could not be sourced: {error}") from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise InfraError(f"environment scripts {', '.join(scripts)} failed: {words}")
    found = {}
    for entry in done.stdout.split(b"\0"):
        name, equals, value = entry.decode("utf-8", "surrogateescape").partition("=")
        if equals and name not in ("_", "SHLVL", "PWD", "OLDPWD"):
            found[name] = value
    return found
