"""git: the one place that runs it.

Enters: a directory and git's arguments. Leaves: what git printed. Touches: what git touches;
asks nobody for a password.

The machine's configuration counts for how one reaches a server and who one is there. It does
not count for what a commit goes through or what a command prints.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from steps.core import settings
from steps.core.errors import InfraError, MultinodeError
from steps.core.redaction import here

SECONDS = 300
_OURS = (
    "user.name=multinode",
    "user.email=multinode@localhost",
    "commit.gpgSign=false",
    "push.gpgSign=false",
    "core.hooksPath=/dev/null",
    "core.excludesFile=/dev/null",
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "diff.relative=false",
    "init.templateDir=",
    "init.defaultObjectFormat=sha1",
    "maintenance.auto=false",
    "protocol.ext.allow=never",
    "gc.auto=0",
)
#: What a hook's or a bisection's environment says of another repository.
_FOREIGN = re.compile(
    r"GIT_(DIR|WORK_TREE|COMMON_DIR|INDEX_FILE|PREFIX|NAMESPACE|DEFAULT_HASH|TEMPLATE_DIR"
    r"|.*OBJECT_DIRECTOR(Y|IES)|(AUTHOR|COMMITTER)_\w+)"
)
_DUBIOUS = re.compile(r"dubious ownership in repository at '(?P<where>.+?)'")


def words(root: Path, *arguments: str) -> list[str]:
    """The command line of git in ``root``."""
    return ["git", "-C", str(root), *(word for c in _OURS for word in ("-c", c)), *arguments]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment git gets: it asks nobody, in English, and of no other repository."""
    kept = {k: v for k, v in inherited.items() if not _FOREIGN.fullmatch(k)}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "LANGUAGE": "C"}


def git(
    root: Path,
    *arguments: str,
    hint: str = "",
    refused: type[MultinodeError] = InfraError,
    more: Mapping[str, str] | None = None,
) -> str:
    """Run git in ``root``.

    Args:
        more: further environment, such as the place of an index.

    Raises:
        InfraError: git cannot be run, takes too long, or distrusts the owner of a repository.
        MultinodeError: git refused; of the class that is given.
    """
    command = f"git {' '.join(arguments)}"
    try:
        done = subprocess.run(
            words(root, *arguments),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env={**environment(settings.inherited()), **(more or {})},
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise InfraError("git is not installed", "Install it; nothing replaces it here.") from None
    except subprocess.TimeoutExpired:
        raise InfraError(here().text(f"{command}: not done after {SECONDS} s"), hint) from None
    except OSError as error:
        raise InfraError(here().text(f"{command}: {error}")) from None
    if dubious := _DUBIOUS.search(done.stderr):
        raise InfraError(
            f"{command}: {dubious['where']} belongs to another user, and git reads no repository "
            'of others ("dubious ownership")',
            "If you trust it: git config --global --add safe.directory " + dubious["where"],
        )
    if done.returncode:
        told = done.stderr.strip()[-300:] or f"exit code {done.returncode}"
        raise refused(here().text(f"{command}: {told}"), hint)
    return done.stdout
