"""What moves between good and bad: the commits of a product, or those of several and the image.

Enters: repositories, and both ends of each. Leaves: an :class:`Axis`: good, then every commit of
the first product while the others stay at good, then those of the second with the first at bad,
and so on until bad. Touches: reads the repositories.

So one search finds which of them it was, and then the commit: where one product ends and the
next begins all products are swapped one at a time, and those places are started first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.compare import commits
from ci.compare.commits import Commit
from steps.core.errors import UsageError

#: The name of what has no commits between its ends.
IMAGE = "image"
#: The name of a product of which there is one, and nobody named it.
UNNAMED = "product"
_NAMED = re.compile(r"([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
_PLACE = re.compile(r"\{([A-Za-z][\w.-]*?)(\.dir)?\}")


@dataclass(frozen=True)
class Moved:
    """One thing that moved.

    Attributes:
        repository: None: it is the image.
        commits: good first, bad last; good alone if it stayed.
    """

    name: str
    repository: Path | None
    commits: tuple[Commit, ...]


@dataclass(frozen=True)
class Axis:
    """Everything that moved, one after another."""

    moved: tuple[Moved, ...]

    @property
    def commits(self) -> list[Commit]:
        """Good, the candidates, bad."""
        later = [one.commits[1:] for one in self.moved]
        first = next(one for one in self.moved if len(one.commits) > 1)
        return [first.commits[0], *itertools.chain(*later)]

    @property
    def edges(self) -> tuple[int, ...]:
        """The places at which one product has come to bad and the next is still at good."""
        sizes = [len(one.commits) - 1 for one in self.moved if len(one.commits) > 1]
        return tuple(itertools.accumulate(sizes))[:-1]

    def state(self, index: int) -> dict[str, Commit]:
        """Where each product is at a place of the axis."""
        found = {}
        for one in self.moved:
            found[one.name] = one.commits[min(index, len(one.commits) - 1)]
            index = max(0, index - len(one.commits) + 1)
        return found


def named(option: str, words: Sequence[str], only: str = "") -> dict[str, str]:
    """``[NAME=]VALUE`` by name.

    Args:
        only: whose a value without a name is.

    Raises:
        UsageError: a name is missing or comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        form = _NAMED.fullmatch(word)
        name, value = (form[1], form[2]) if form else (only, word)
        if not name:
            raise UsageError(f"{option}: {word!r} does not say whose it is", "Write NAME=VALUE.")
        if name in found:
            raise UsageError(f"{option}: {name} is given twice", "Keep one of them.")
        found[name] = value
    return found


def called(name: str, repository: Path) -> str:
    """What versions call a product; one without a name is called as its directory."""
    return repository.resolve().name if name == UNNAMED else name


def between(
    repositories: Mapping[str, Path], good: Mapping[str, str], bad: Mapping[str, str]
) -> Axis:
    """Everything that moved from good to bad.

    Raises:
        UsageError: an end is missing, wrong, or nothing moved.
    """
    for option, ends in (("--good", good), ("--bad", bad)):
        if strange := {*ends} - {*repositories, IMAGE}:
            raise UsageError(
                f"{option}: nothing says where {min(strange)} comes from",
                f"Add --repository {min(strange)}=DIRECTORY.",
            )
    found = []
    if {*good, *bad} & {IMAGE}:
        if IMAGE not in good or IMAGE not in bad:
            raise UsageError("image: one end is missing", "Give --good image=X and --bad image=Y.")
        images = dict.fromkeys((good[IMAGE], bad[IMAGE]))
        found.append(Moved(IMAGE, None, tuple(Commit(x, f"image {x}", 1.0, IMAGE) for x in images)))
    for name, repository in repositories.items():
        if name not in good:
            raise UsageError(f"--good: {name} has none", f"Add --good {name}=REF.")
        newest = bad.get(name, "HEAD")
        every = commits.between(repository, good[name], newest, called(name, repository))
        found.append(Moved(name, repository, tuple(every)))
    if all(len(one.commits) == 1 for one in found):
        raise UsageError("good and bad are the same commit", "Name an older --good.")
    return Axis(tuple(found))


def filled(text: str, state: Mapping[str, Commit], directories: Mapping[str, Path]) -> str:
    """A word in which ``{NAME}`` is a commit, or an image, and ``{NAME.dir}`` a checkout."""

    def value(found: re.Match[str]) -> str:
        name, directory = found[1], found[2]
        if name not in state or (directory and name not in directories):
            return found[0]  # some other brace
        return str(directories[name]) if directory else state[name].sha

    return _PLACE.sub(value, text)


def mentioned(words: Iterable[str]) -> set[str]:
    """The names that words have a place for."""
    return {found[1] for word in words for found in _PLACE.finditer(word)}
