"""The nightly matrix: which cases run where, as data that CI reads.

Enters: ``ci/nightly.yaml``, the cases and profiles it names, and for
``--changed-since`` what git says. Leaves: what GitHub's ``fromJSON`` takes, or
every problem of the matrix with its line. Touches: reads those files, runs git.

    nox -s matrix                               a table for people
    nox -s matrix -- --soc a3 --format json     {"include": [...]}
    nox -s matrix -- --changed-since origin/main --only deepseek-v3
    nox -s matrix -- --write-jobs               after a SoC came or went
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ci.nightly import jobs, upstream
from steps.core import door
from steps.core.case import check
from steps.core.case.numbers import dumps
from steps.core.case.source import Source, load_yaml, parse_yaml
from steps.core.errors import CaseError, Problem, UsageError, errors_of, sort_problems
from steps.core.plan import clusters
from steps.core.system.git import git
from steps.lint.engine import lint_matrix
from steps.lint.matrix import locate

MATRIX = Path("ci/nightly.yaml")
PROFILES = Path("configs/clusters")
CADENCES = ("nightly", "weekly", "manual")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
#: A SoC is part of the names of workflow jobs and of a secret.
SOC = r"[a-z0-9][a-z0-9-]{0,30}"
_TEXT = {"type": "string", "empty": False}
ENTRY: dict[str, Any] = {
    "name": {"type": "string", "regex": NAME, "required": True},
    "case": {**_TEXT, "required": True},
    "size": {"type": "integer", "min": 1, "required": True},
    "profile": {**_TEXT, "required": True},
    "runner": {"type": ["string", "list"], "schema": _TEXT, "empty": False, "required": True},
    "cadence": {"type": "string", "allowed": list(CADENCES), "required": True},
    "owner": {**_TEXT, "required": True},
    "minutes": {"type": "integer", "min": 1, "max": 7200},
}
#: What a job may take unless its entry says more.
MINUTES = 480
#: Top-level keys that are no SoC.
EXCLUDED, MAX_PARALLEL = "excluded", "max_parallel"

#: Paths (a file, or a directory with a slash) that change no verdict on a cluster.
IDLE = ("docs/", "tests/", "benchmarks/", "rehearsal/", ".github/", ".ci/", "README.md")
IDLE_SUFFIXES = (".md",)


@dataclass(frozen=True)
class Entry:
    """One job of the matrix; ``case`` is the path of a file that is there."""

    soc: str
    name: str
    case: str
    size: int
    profile: str
    runner: tuple[str, ...]
    cadence: str
    owner: str
    minutes: int = MINUTES


@dataclass(frozen=True)
class Matrix:
    """The whole matrix; ``max_parallel`` is per SoC, at least 1."""

    entries: tuple[Entry, ...]
    max_parallel: Mapping[str, int]

    @property
    def socs(self) -> tuple[str, ...]:
        """Every SoC, in the file's order."""
        return tuple(dict.fromkeys(entry.soc for entry in self.entries))


def load(path: Path = MATRIX) -> Matrix:
    """The matrix of a file.

    Raises:
        CaseError: every problem of it: its form, the linter's matrix rules, profiles.
    """
    source = load_yaml(path)
    problems = list(_form(source)) or [*errors_of(lint_matrix(path, {})), *_profiles(source)]
    if problems:
        raise CaseError(sort_problems(problems))
    return Matrix(tuple(_entries(source, path)), dict(source.data.get(MAX_PARALLEL) or {}))


def of_text(text: str) -> Matrix:
    """The matrix as it stands elsewhere, where nobody looks for its cases and profiles.

    Raises:
        CaseError: every problem of its form.
    """
    source = parse_yaml(text, str(MATRIX))
    problems = list(_form(source))
    if problems:
        raise CaseError(sort_problems(problems))
    return Matrix(tuple(_entries(source, MATRIX)), dict(source.data.get(MAX_PARALLEL) or {}))


def _entries(source: Source, path: Path) -> Iterator[Entry]:
    for soc, _, raw in _raw_entries(source):
        runner = raw["runner"]
        yield Entry(
            soc,
            raw["name"],
            (locate(raw["case"], path) or Path(raw["case"])).as_posix(),
            raw["size"],
            raw["profile"],
            (runner,) if isinstance(runner, str) else tuple(runner),
            raw["cadence"],
            raw["owner"],
            raw.get("minutes", MINUTES),
        )


def _raw_entries(source: Source) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for soc, value in source.data.items():
        if soc not in (EXCLUDED, MAX_PARALLEL):
            for at, raw in enumerate(value or ()):
                yield soc, at, raw


def _form(source: Source) -> Iterator[Problem]:
    """Problems of the form: cerberus, each with its line."""
    if not isinstance(source.data, dict):
        yield Problem("matrix", "expected a mapping from each SoC to its entries", source.place())
        return
    socs = [key for key in source.data if key not in (EXCLUDED, MAX_PARALLEL)]
    schema: dict[Any, Any] = {
        soc: {"type": "list", "schema": {"type": "dict", "schema": ENTRY}} for soc in socs
    }
    schema[EXCLUDED] = {
        "type": "dict",
        "keysrules": {"type": "string"},
        "valuesrules": {"type": "string", "empty": False},
    }
    schema[MAX_PARALLEL] = {
        "type": "dict",
        "keysrules": {"type": "string", "allowed": [str(soc) for soc in socs]},
        "valuesrules": {"type": "integer", "min": 1},
    }
    for soc in socs:
        if not re.fullmatch(SOC, str(soc)):
            message = f"{soc}: no name of a SoC; expected one such as a3-560t"
            yield Problem("matrix", message, source.place(soc))
    for path, text in check.told(schema, source.data):
        known = ", ".join(ENTRY)
        hint = f"An entry has: {known}." if "unknown" in text or "required" in text else ""
        where = ".".join(map(str, path))
        yield Problem("matrix", f"{where}: {text}", source.place(*path), hint)


def _profiles(source: Source) -> Iterator[Problem]:
    """Each profile is there."""
    for soc, at, raw in _raw_entries(source):
        file = clusters.ROOT / PROFILES / f"{raw['profile']}.yaml"
        if file.parent.is_dir() and not file.is_file():
            yield Problem(
                "matrix",
                f"no profile '{raw['profile']}'",
                source.place(soc, at, "profile"),
                f"Expected {PROFILES / (raw['profile'] + '.yaml')}.",
            )


# Selection


def select(
    matrix: Matrix,
    *,
    socs: Sequence[str] = (),
    only: Sequence[str] = (),
    cadences: Sequence[str] = (),
) -> tuple[Entry, ...]:
    """Entries of ``socs`` (all when empty); ``only`` names them whatever their cadence.

    Big fleets come first: what waits longest for machines should not wait for small ones too.

    Raises:
        UsageError: a SoC or a name that is not in the matrix.
    """
    _known("--soc", socs, matrix.socs)
    _known("--only", only, [entry.name for entry in matrix.entries])
    found = [
        entry
        for entry in matrix.entries
        if (not socs or entry.soc in socs)
        and (entry.name in only if only else not cadences or entry.cadence in cadences)
    ]
    return tuple(sorted(found, key=lambda entry: -entry.size))


def _known(option: str, given: Sequence[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, 3, 0.4) or names
            raise UsageError(
                f"{option}: found '{name}', which is not in {MATRIX}",
                f"Did you mean {' or '.join(close)}?",
            )


def affected(
    entries: Sequence[Entry], changed: Iterable[str], before: Sequence[Entry] | None
) -> tuple[Entry, ...]:
    """The entries whose verdict a change of the files ``changed`` can alter, a pure function.

    A case alters its entries, a profile those that use it, the matrix those
    that it says differently than ``before`` (None: all). Documents, tests,
    workflows and the stand-ins alter none, any other file all.
    """
    hit: set[Entry] = set()
    for path in changed:
        if path == MATRIX.as_posix():
            hit.update(entry for entry in entries if before is None or entry not in before)
        elif path.startswith(f"{PROFILES.as_posix()}/"):
            hit.update(entry for entry in entries if entry.profile == PurePosixPath(path).stem)
        elif path.startswith("configs/") and path.endswith((".yaml", ".yml")):
            hit.update(entry for entry in entries if entry.case == path)
        elif not (path.startswith(IDLE) or path.endswith(IDLE_SUFFIXES)):
            return tuple(entries)
    return tuple(entry for entry in entries if entry in hit)


def changed_since(rev: str, root: Path = clusters.ROOT) -> list[str]:
    """Files that differ between here and where this branch left ``rev``.

    Raises:
        UsageError: ``rev`` is no commit here.
        InfraError: there is no git, or no repository.
    """
    base = _git(root, "merge-base", "--", rev, "HEAD").strip()
    return _git(root, "diff", "--name-only", "--no-renames", base).splitlines()


def matrix_at(rev: str, root: Path = clusters.ROOT) -> tuple[Entry, ...] | None:
    """The entries as ``rev`` had them; None when it had no valid matrix."""
    try:
        base = _git(root, "merge-base", "--", rev, "HEAD").strip()
        return of_text(_git(root, "show", f"{base}:{MATRIX.as_posix()}")).entries
    except (UsageError, CaseError):
        return None


def _git(root: Path, *arguments: str) -> str:
    hint = "Name a commit of this clone; in CI check out with fetch-depth: 0."
    return git(root, *arguments, hint=hint, refused=UsageError)


# Output


def job(entry: Entry) -> dict[str, Any]:
    """An entry as a job's ``matrix`` values."""
    return {**asdict(entry), "runner": list(entry.runner)}


def as_json(entries: Sequence[Entry]) -> str:
    """``{"include": [...]}`` on one line, as ``fromJSON`` takes it."""
    return dumps({"include": [job(entry) for entry in entries]}, separators=(",", ":"))


def as_github(matrix: Matrix, entries: Sequence[Entry]) -> str:
    """Lines for ``$GITHUB_OUTPUT``: for each SoC and for ``all`` its jobs, how many, at once."""
    lines = []
    for soc in (*matrix.socs, "all"):
        name = soc if soc == "all" else jobs.name(soc)
        mine = [entry for entry in entries if soc in (entry.soc, "all")]
        lines.append(f"{name}={as_json(mine)}")
        lines.append(f"{name}-count={len(mine)}")
        lines.append(f"{name}-parallel={matrix.max_parallel.get(soc, 1)}")
    return "\n".join(lines)


def as_table(entries: Sequence[Entry]) -> str:
    """Columns for people."""
    head = ("soc", "name", "case", "size", "profile", "runner", "cadence", "owner")
    rows = [head] + [tuple(str(cell) for cell in _cells(entry)) for entry in entries]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _cells(entry: Entry) -> tuple[Any, ...]:
    runner = ",".join(entry.runner)
    return (*list(asdict(entry).values())[:5], runner, entry.cadence, entry.owner)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--soc", action="append", default=[], help="only this SoC; repeatable")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these entries")
    parser.add_argument(
        "--cadence", action="append", default=[], choices=CADENCES, help="repeatable; default: all"
    )
    parser.add_argument(
        "--changed-since", metavar="REV", help="only what a change since REV can affect"
    )
    parser.add_argument("--format", choices=("table", "json", "github"), help="default: see below")
    parser.add_argument("--file", type=Path, default=MATRIX, help=f"default: {MATRIX}")
    parser.add_argument(
        "--from-upstream", nargs="+", type=Path, default=[], metavar="FILE",
        help="print a matrix made of upstream's nightly_config.yaml, weekly_config.yaml",
    )  # fmt: skip
    parser.add_argument("--checkout", type=Path, help="upstream's checkout, where the cases are")
    parser.add_argument(
        "--write-jobs", action="store_true", help=f"write the jobs of each SoC into {jobs.FOLDER}"
    )
    parser.epilog = "The default format is a table on a terminal, JSON elsewhere."


def work(arguments: argparse.Namespace) -> int:
    """Print the chosen part of the matrix."""
    if arguments.from_upstream:
        print(upstream.ours(arguments.from_upstream, NAME, arguments.cadence, arguments.checkout))
        return 0
    matrix = load(arguments.file)
    if arguments.write_jobs:
        jobs.write(matrix.socs)
        return 0
    entries = select(matrix, socs=arguments.soc, only=arguments.only, cadences=arguments.cadence)
    if arguments.changed_since:
        changed = changed_since(arguments.changed_since)
        before = matrix_at(arguments.changed_since) if MATRIX.as_posix() in changed else None
        entries = affected(entries, changed, before)
    style = arguments.format or ("table" if sys.stdout.isatty() else "json")
    if style == "github":
        print(as_github(matrix, entries))
    else:
        print(as_json(entries) if style == "json" else as_table(entries))
    return 0


main = door.Verb("matrix", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
