"""git: the one place that runs it.

Enters: a directory and git's arguments. Leaves: what git printed. Touches: what git touches;
asks nobody for a password.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from steps.core import settings
from steps.core.errors import InfraError, MultinodeError
from steps.core.redaction import here

SECONDS = 300


def git(
    root: Path, *arguments: str, hint: str = "", refused: type[MultinodeError] = InfraError
) -> str:
    """Run git in ``root``.

    Raises:
        InfraError: git cannot be run, or takes too long.
        MultinodeError: git refused; of the class that is given.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env={**settings.inherited(), "GIT_TERMINAL_PROMPT": "0"},
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise InfraError("git is not installed", "Install it; nothing replaces it here.") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfraError(f"git {arguments[0]}: {error}") from None
    if done.returncode:
        told = f"git {' '.join(arguments)}: {done.stderr.strip()[-300:]}"
        raise refused(here().text(told), hint)
    return done.stdout
