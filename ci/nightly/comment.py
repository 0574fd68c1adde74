"""A comment ``/nightly`` or ``/weekly`` on a pull request: what it asks for, and of which cases.

Enters: the text of a comment, which is anybody's, and the matrix. Leaves: typed values, words that
a session takes, or what is wrong with it. Touches nothing.

    /nightly NAME...|all [--soc SOC] [--product NAME=REF] [--image REF] [SHA]
    /nightly NAME... --compare BASE [--budget MINUTES] ...

Whatever leaves here has been matched sign by sign: no word begins with a dash that is none of ours,
and none holds a space, a quote or anything else that a shell reads.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

from ci.nightly.matrix import SOC, Entry, Matrix, select
from steps.core.errors import UsageError

#: A command -> the cadence whose entries its ``all`` means.
COMMANDS = {"/nightly": "nightly", "/weekly": "weekly"}
USE = (
    "Write: /nightly NAME...|all [--soc SOC] [--product NAME=REF] [--image REF] [--compare BASE "
    "[--budget MINUTES]] [SHA]"
)
ALL = "all"
#: More jobs than this GitHub makes of no matrix.
MOST_JOBS = 256
_MOST_WORDS, _LONGEST = 300, 300
_SHA = re.compile(r"[0-9a-f]{40}")
_PRODUCT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
#: A git reference, URL@REF, pr/123, pip:VERSION or ``image``.
_REF = re.compile(r"(?!.*@-)[A-Za-z0-9][A-Za-z0-9._/:@+~^-]*")
_CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
#: References that name files of the machines, which no comment may.
_LOCAL = ("wheel:", "dir:", "file:")


@dataclass(frozen=True)
class Asked:
    """What a comment asks for.

    Attributes:
        names: of entries or cases, as they were written; or ``all``.
        products: (name, reference), besides the product of the pull request.
        compare: the reference that the pull request is compared with; empty: it is only run.
        budget: of the comparison, in device minutes; empty: as ``compare`` says.
        sha: the commit that the author of the comment has read.
    """

    cadence: str
    names: tuple[str, ...]
    socs: tuple[str, ...] = ()
    products: tuple[tuple[str, str], ...] = ()
    image: str = ""
    compare: str = ""
    budget: str = ""
    sha: str = ""


@dataclass(frozen=True)
class Pinned:
    """The product that a pull request changes, pinned.

    Attributes:
        repository: the one that the request is for: the commit stays there if a fork goes.
    """

    product: str
    repository: str
    sha: str

    @property
    def word(self) -> str:
        """As ``--product`` takes it."""
        return f"{self.product}={self.repository}@{self.sha}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, USE)


def is_command(body: str) -> bool:
    """Whether the first line of a comment is for us."""
    return body.partition("\n")[0].split()[:1] in [[name] for name in COMMANDS]


def read(body: str) -> Asked:
    """What the first line of a comment, which is a command, asks for.

    Raises:
        UsageError: it is wrong.
    """
    words = body.partition("\n")[0].split()
    if len(words) > _MOST_WORDS or any(len(word) > _LONGEST for word in words):
        raise UsageError("the command is too long", USE)
    parser = _Parser(prog=words[0], add_help=False, allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    for option in ("--soc", "--product"):
        parser.add_argument(option, action="append", default=[])
    for option in ("--image", "--compare", "--budget"):
        parser.add_argument(option, default="")
    found = parser.parse_intermixed_args(words[1:])
    shas = [name for name in found.names if _SHA.fullmatch(name)]
    asked = Asked(
        COMMANDS[words[0]],
        tuple(dict.fromkeys(name for name in found.names if name not in shas)),
        tuple(found.soc),
        tuple(_product(text) for text in found.product),
        found.image,
        found.compare,
        found.budget,
        "".join(shas),
    )
    for problem in _problems(asked):
        raise UsageError(problem, USE)
    return asked


def _product(text: str) -> tuple[str, str]:
    name, _, reference = text.partition("=")
    return name, reference


def _problems(asked: Asked) -> Iterator[str]:
    if not asked.names:
        yield "no case is named"
    if len(asked.sha) > len("a" * 40):
        yield "two commits are named"
    for name in asked.names:
        if not _CASE.fullmatch(name):
            yield f"found {name!r}, expected names of ci/nightly.yaml or of cases"
    for soc in asked.socs:
        if not re.fullmatch(SOC, soc):
            yield f"--soc: found {soc!r}, expected one such as a3"
    names = [name for name, _ in asked.products]
    for name, reference in asked.products:
        if not _PRODUCT.fullmatch(name) or not _REF.fullmatch(reference):
            yield f"--product: found '{name}={reference}', expected NAME=REF"
        elif names.count(name) > 1:
            yield f"--product: {name} is named twice"
    for option, reference in (*asked.products, ("--compare", asked.compare)):
        if reference.startswith(_LOCAL) or ("://" in reference and "https://" not in reference):
            yield f"{option}: {reference} names no repository that everybody can read"
    if asked.compare and not _REF.fullmatch(asked.compare):
        yield f"--compare: found {asked.compare!r}, expected a git reference"
    if asked.budget and not (asked.compare and re.fullmatch("[1-9][0-9]{0,6}", asked.budget)):
        yield f"--budget: found {asked.budget!r}, expected device minutes of a --compare"
    if asked.image and not _IMAGE.fullmatch(asked.image):
        yield f"--image: found {asked.image!r}, expected an image"


def choose(matrix: Matrix, asked: Asked) -> tuple[Entry, ...]:
    """The entries that are asked for, big fleets first.

    Raises:
        UsageError: a name or a SoC is not in the matrix, with what is nearest; nothing is left.
    """
    only: list[str] = []
    for name in asked.names:
        mine = [entry.name for entry in matrix.entries if name in _called(entry)]
        if name != ALL and not mine:
            raise UsageError(f"'{name}' is no case of ci/nightly.yaml", _nearest(matrix, name))
        only += mine
    if ALL in asked.names:
        only += [entry.name for entry in matrix.entries if entry.cadence == asked.cadence]
    found = select(matrix, socs=asked.socs, only=only) if only else ()
    if not found:
        where = f" on {', '.join(asked.socs)}" if asked.socs else ""
        socs = ", ".join(matrix.socs)
        raise UsageError(f"{' '.join(asked.names)}: no {asked.cadence} entry{where}", f"On {socs}.")
    if len(found) > MOST_JOBS:
        raise UsageError(f"{len(found)} entries, at most {MOST_JOBS} run at once", "Say --soc.")
    return found


def _called(entry: Entry) -> set[str]:
    """Every name of an entry: its own, and those of its case."""
    case = PurePosixPath(entry.case)
    return {entry.name, entry.case, case.name, case.stem}


def _nearest(matrix: Matrix, name: str) -> str:
    """The entries whose name, or case, is most like it."""
    called = {
        word.lower(): entry.name
        for entry in reversed(matrix.entries)
        for word in (PurePosixPath(entry.case).stem, entry.name)
    }
    wanted = PurePosixPath(name).stem if name.endswith((".yaml", ".yml")) else name
    close = difflib.get_close_matches(wanted.lower(), called, 5, 0.4)
    names = list(dict.fromkeys(called[word] for word in close))[:3]
    return f"Did you mean {' or '.join(names)}?" if names else f"Names: {', '.join(_all(matrix))}."


def _all(matrix: Matrix) -> list[str]:
    names = [entry.name for entry in matrix.entries]
    return [*names[:30], *(["..."] if len(names) > 30 else [])]


def session(asked: Asked) -> str:
    """The session of nox that carries it out."""
    return "compare" if asked.compare else "multinode"


def moves(asked: Asked) -> bool:
    """Whether the base of the comparison is a reference of the request's own repository."""
    return bool(asked.compare) and not re.search(r"@|^pip:|^image$", asked.compare)


def words(asked: Asked, tested: Pinned | None, base: str = "") -> tuple[str, ...]:
    """The options of that session.

    Args:
        tested: what the pull request changes; None when that is this harness.
        base: the commit that the base of a comparison means, where that moves.

    Raises:
        UsageError: it asks for two versions of one product, or compares nothing.
    """
    products = dict(asked.products)
    if tested and tested.product in products:
        raise UsageError(
            f"--product: {tested.product} is what this pull request changes",
            "Name another product, or write the comment on another pull request.",
        )
    if asked.compare and not tested:
        raise UsageError("--compare: this pull request changes no product that a run tests", USE)
    found: list[str] = []
    if tested and asked.compare:
        other = f"{tested.repository}@{base}" if base else asked.compare
        found += ["--a", f"{tested.product}={other}", "--b", tested.word]
        found += ["--budget", asked.budget] if asked.budget else []
    elif tested:
        found += ["--product", tested.word]
    for name, reference in products.items():
        found += ["--product", f"{name}={reference}"]
    return (*found, *(("--image", asked.image) if asked.image else ()))
