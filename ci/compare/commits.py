"""The commits between two ends of a product's history, and a clone that moves over them.

Enters: a repository, two references. Leaves: commits with what is known of them beforehand.
Touches: reads the repository; makes and changes a clone of it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.core.errors import UsageError
from steps.core.node.products import pin
from steps.core.plan import products
from steps.core.system.git import git

MOST = 5000
#: A commit that touches nothing else is hardly ever the culprit.
_HARMLESS = re.compile(r"(^|/)(docs?|tests?|\.github|examples)/|\.(md|rst|txt|png|svg)$", re.I)
UNLIKELY = 0.05


@dataclass(frozen=True)
class Commit:
    """One commit, or an image; ``weight`` is how likely it is beforehand, 1 is usual."""

    sha: str
    subject: str
    weight: float = 1.0
    product: str = ""

    @property
    def short(self) -> str:
        """As people write it, and as a name of a directory."""
        hexadecimal = re.fullmatch("[0-9a-f]{40}", self.sha)
        return self.sha[:10] if hexadecimal else re.sub(r"[^\w.-]+", "-", self.sha)[-40:]


def between(repository: Path, good: str, bad: str, product: str = "") -> list[Commit]:
    """Good, then the candidates along the first parents, bad last; good alone if they are one.

    Raises:
        UsageError: a reference is unknown, good is no ancestor of bad, there is too much between
            them, or the history is cut off.
    """
    if not repository.is_dir():
        raise UsageError(f"--repository: {repository} is no directory", "Name a git checkout.")
    first = pin.commit_in(repository, good, "--good")
    last = pin.commit_in(repository, bad, "--bad")
    if git(repository, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise UsageError(
            f"{repository} is a shallow clone: its history is cut off",
            "Run: git fetch --unshallow.",
        )
    base = git(repository, "merge-base", "--all", first, last, hint="The ends share no history.",
               refused=UsageError).split()  # fmt: skip
    if first not in base:
        raise UsageError(
            f"good ({first[:10]}) is no ancestor of bad ({last[:10]})",
            f"Their merge base is {base[0][:10]}; use it as --good.",
        )
    many = int(git(repository, "rev-list", "--count", "--first-parent", f"{first}..{last}"))
    if many > MOST:
        raise UsageError(
            f"{many} commits are between the ends, at most {MOST} are searched",
            "Name a --good nearer to bad; the history of nights or a release tag tells one.",
        )
    old = git(repository, "log", "-1", "--format=%s", first).strip()
    return [Commit(first, old, 1.0, product), *_log(repository, first, last, product)]


def _log(repository: Path, first: str, last: str, product: str) -> list[Commit]:
    text = git(
        repository, "log", "--first-parent", "--reverse", "-m", "--name-only",
        "--format=%x00%H%x01%s%x01", f"{first}..{last}",
    )  # fmt: skip
    found = []
    for part in text.split("\0")[1:]:
        sha, subject, names = part.split("\x01", 2)
        files = names.split("\n")
        touched = [name for name in files if name]
        harmless = bool(touched) and all(_HARMLESS.search(name) for name in touched)
        found.append(Commit(sha, subject, UNLIKELY if harmless else 1.0, product))
    return found


def words(command: str) -> list[str]:
    """The words of a command that installs.

    Raises:
        UsageError: a quote is open, or there is no word.
    """
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--install: {command!r}: {error}", "Close the quote.") from None
    if not found:
        raise UsageError("--install: found no command", "Such as 'pip install -e .'.")
    return found


class Clone:
    """A clone of its own, so that nobody's checkout is touched and none can vanish."""

    def __init__(self, path: Path, repository: Path) -> None:
        self.path = path.resolve()
        if not (self.path / ".git").is_dir():
            source = str(repository.resolve())
            git(repository, "clone", "--quiet", "--no-checkout", "--", source, str(self.path))

    def checkout(self, sha: str) -> None:
        """Be at this commit, whatever was there."""
        git(self.path, "checkout", "--quiet", "--force", "--detach", sha)
        if (self.path / ".gitmodules").is_file():
            git(self.path, "submodule", "--quiet", "update", "--init", "--recursive", "--force")

    def clean(self) -> None:
        """Remove what builds left."""
        git(self.path, "clean", "-ffdxq")

    def native(self, sha: str) -> str:
        """What a build of this commit is made of."""
        return products.native_key(git(self.path, "ls-tree", "-r", sha), products.Product(""), "")

    def install(self, words: Sequence[str], log: Path, seconds: float) -> bool:
        """Run the command in the checkout; whether it ended well in time."""
        with log.open("wb") as out:
            try:
                child = subprocess.Popen(
                    words, cwd=self.path, stdin=subprocess.DEVNULL, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise UsageError(f"--install: {words[0]}: {error.strerror}") from None
            try:
                return child.wait(seconds) == 0
            except subprocess.TimeoutExpired:
                out.write(f"\nnot done after {seconds:g} s\n".encode())
                return False
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
