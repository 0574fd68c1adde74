"""`nox -s lock`: the version and hashes of everything that is installed, one file an environment.

Enters: the requirements of each side in setup.cfg, and those of the recipes in
`ci.tools.environments`. Leaves: `ci/tools/locks/<name>.txt`, all of them or none. Touches: the
package index that uv is configured for (`UV_DEFAULT_INDEX`, `UV_FIND_LINKS`, ...); a lock names
none, so that it installs from any mirror.

What still fits is kept; `--upgrade` takes the newest of everything. The CPU build of
torch is on no PyPI: uv finds it with UV_TORCH_BACKEND=cpu, or in a directory UV_FIND_LINKS=DIR.
"""

from __future__ import annotations

import argparse
import configparser
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.tools.environments import LOCKS, RECIPES, TORCH, blocks, lock_file
from steps.core import door
from steps.core.errors import InfraError, UsageError

SETUP = Path(__file__).parents[2] / "setup.cfg"
#: What the CPU build of torch does without, and torch itself, which has a lock of its own.
CUDA = r"torch|triton|(nvidia|cuda)-.*"


@dataclass(frozen=True)
class Lock:
    """One lock: what was asked for, and how it is resolved.

    Attributes:
        python: the oldest Python it is for.
        options: of uv, besides those that every lock has.
        left_out: names that are resolved and not installed, as a regular expression.
    """

    name: str
    requirements: tuple[str, ...]
    python: str
    options: tuple[str, ...] = ("--universal", "--only-binary", ":all:")
    left_out: str = r"(?!)"

    @property
    def head(self) -> str:
        """The first lines of its file, by which one sees that it is of today's requirements."""
        asked = "".join(f"#   {requirement}\n" for requirement in self.requirements)
        return f"# Made by `nox -s lock`, to be edited by nobody, of\n{asked}"

    def text(self, resolved: str) -> str:
        """Its file: what uv resolved, less what is left out."""
        kept = (lines for name, lines in blocks(resolved) if not re.fullmatch(self.left_out, name))
        return self.head + "".join(kept)


def sides(setup: Path = SETUP) -> tuple[Lock, ...]:
    """The locks of the nox sessions: one for each side that setup.cfg names."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    python = config["options"]["python_requires"].removeprefix(">=")
    lists = {"node": config["options"]["install_requires"], **config["options.extras_require"]}
    return tuple(
        Lock(name, tuple(line for line in text.splitlines() if line[:1].strip("#")), python)
        for name, text in lists.items()
    )


def tools() -> tuple[Lock, ...]:
    """The locks of the tool environments, and of the one wheel that is on no PyPI."""
    made = [Lock("torch-cpu", (TORCH,), "3.11", (), left_out=r"(?!torch$).*")]
    for name, recipe in RECIPES.items():
        # The same on every machine: the CPU build's version is the other one's with a suffix.
        asked = (word.removesuffix("+cpu") for step in recipe.steps for word in step.requirements)
        unwanted = (re.escape(word) for step in recipe.steps for word in step.unwanted)
        options = ["--universal", "--only-binary", ":all:"]
        options += [word for built in recipe.built_here for word in ("--no-binary", built)]
        left_out = "|".join((CUDA, *unwanted))
        made.append(Lock(name, tuple(asked), f"3.{recipe.pythons[0]}", tuple(options), left_out))
    return tuple(made)


def resolve(lock: Lock, kept: str, fixed: str = "") -> str:
    """Ask uv for every package that a lock's requirements bring, with version and hashes.

    Args:
        kept: locks whose versions are taken where they fit.
        fixed: a lock of others, with which it has to agree.

    Raises:
        InfraError: uv is not there, or found no answer.
    """
    with tempfile.TemporaryDirectory(prefix="multinode-lock-") as place:
        files = {"asked.txt": "\n".join(lock.requirements), "lock.txt": kept, "fixed.txt": fixed}
        for name, text in files.items():
            (Path(place) / name).write_text(text, encoding="utf-8")
        options = ["--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
        options += ["--python-version", lock.python, *lock.options, "-c", "fixed.txt"]
        argv = [sys.executable, "-m", "uv", "pip", "compile", *options, "-o", "lock.txt"]
        done = subprocess.run(
            [*argv, "asked.txt"], cwd=place, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise InfraError(
                f"no lock for {lock.name}: {done.stderr.strip() or 'uv ended without a word'}",
                "An index must be reachable for uv, which does not read pip's configuration. The "
                "CPU build of torch needs UV_TORCH_BACKEND=cpu, or UV_FIND_LINKS=DIRECTORY.",
            )
        return (Path(place) / "lock.txt").read_text(encoding="utf-8")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; none: all")
    parser.add_argument("--upgrade", action="store_true", help="take the newest of everything")


def run(names: Sequence[str], upgrade: bool) -> int:
    """Make the locks, then write them; returns the exit code."""
    known = {lock.name: lock for lock in (*sides(), *tools())}
    if strange := set(names) - set(known):
        raise UsageError(
            f"no lock {', '.join(sorted(strange))}: expected one of {', '.join(known)}",
            "Correct the name, or name none: all are made then.",
        )
    before = {name: "" if upgrade else _read(name) for name in known}
    ours = sides()
    asked = tuple(word for lock in ours for word in lock.requirements)
    everything = Lock("all sides", asked, ours[0].python)
    kept = "".join(dict.fromkeys(text for lock in ours for _, text in blocks(before[lock.name])))
    wanted = [lock for lock in known.values() if lock.name in names]
    if not names:  # sides have to agree; a tool is resolved anew only if it must be
        wanted = [*ours, *(lock for lock in tools() if not before[lock.name].startswith(lock.head))]
    together = resolve(everything, kept) if set(wanted) & set(ours) else ""
    made = {}
    for lock in wanted:
        print(f"lock {lock.name}", flush=True)
        fixed = together if lock in ours else ""
        made[lock.name] = lock.text(resolve(lock, before[lock.name], fixed))
    LOCKS.mkdir(exist_ok=True)
    for name, text in made.items():
        lock_file(name).write_text(text, encoding="utf-8")
    return 0


def _read(name: str) -> str:
    return lock_file(name).read_text(encoding="utf-8") if lock_file(name).exists() else ""


main = door.Verb("lock", __doc__, _options, lambda given: run(given.names, given.upgrade))

if __name__ == "__main__":
    raise SystemExit(main())
