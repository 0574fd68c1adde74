"""Runs the rules over a case and honours what the author chose to ignore.

Enters: a :class:`Case` and its :class:`Plan`. Leaves: problems. Touches nothing,
but for :func:`lint_matrix`, which reads the matrix.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from steps.core.case.case import Case
from steps.core.case.source import Source
from steps.core.errors import MAX_PROBLEMS, CaseError, Place, Problem, Severity, cut, sort_problems
from steps.core.plan.plan import Plan
from steps.lint import rules  # noqa: F401  (registers every rule)
from steps.lint.fleet import build
from steps.lint.matrix import read as read_matrix
from steps.lint.registry import RULES, Finding, Rule

IGNORE = re.compile(r"#\s{0,9}multinode:\s{0,9}ignore\[([^\]]{0,200})\](.*)$")
USELESS_IGNORE = "MN199"
#: Further places that are shown of one finding.
MAX_RELATED = 20


@dataclass
class _Ignore:
    """One code that the author ignores, where, and on which lines (all when empty)."""

    code: str
    place: Place
    lines: range | None
    reason: str
    used: bool = False

    def covers(self, problem: Problem) -> bool:
        if problem.rule != self.code:
            return False
        return self.lines is None or problem.place.line in self.lines


def lint(case: Case, plan: Plan) -> list[Problem]:
    """Every finding of every rule, but for those the author ignores."""
    fleet = build(case, plan)
    found: list[Problem] = []
    for entry in RULES.values():
        if entry.check is not None and entry.code[2] != "8":
            few = islice(entry.check(fleet), 2 * MAX_PROBLEMS)
            found += (as_problem(entry, finding) for finding in few)
    return sort_problems(honour(case, found))


def lint_matrix(path: Path, cases: Mapping[Path, Case]) -> list[Problem]:
    """Every finding of the matrix rules; a case's ``lint: {ignore: ...}`` counts here too."""
    try:
        matrix = read_matrix(path, cases)
    except CaseError as error:
        return list(error.problems)
    found = [
        as_problem(entry, finding)
        for entry in RULES.values()
        if entry.check is not None and entry.code[2] == "8"
        for finding in islice(entry.check(matrix), 2 * MAX_PROBLEMS)
    ]
    ignoring = {case.file: case.lint_ignore for case in cases.values()}
    return [p for p in found if p.rule not in ignoring.get(p.place.file, ())]


def as_problem(entry: Rule, finding: Finding) -> Problem:
    """A finding as the value every command prints."""
    related = tuple(place for place in dict.fromkeys(finding.related) if place != finding.place)
    related = related[:MAX_RELATED]
    return Problem(
        entry.code,
        cut(finding.message),
        finding.place,
        cut(finding.hint),
        finding.severity or entry.severity,
        cut(finding.field),
        related,
    )


def honour(case: Case, problems: Iterable[Problem]) -> Iterator[Problem]:
    """Leave out what is ignored; report ignores that ignore nothing, or give no reason."""
    ignores = [*_in_comments(case.source), *_in_case(case)]
    by_code: dict[str, list[_Ignore]] = {}
    for ignore in ignores:
        by_code.setdefault(ignore.code, []).append(ignore)
    for problem in problems:
        covering = [ig for ig in by_code.get(problem.rule, ()) if ig.covers(problem)]
        for ignore in covering:
            ignore.used = True
        if not covering:
            yield problem
    for ignore in ignores:
        if not ignore.used and not ignore.code.startswith("MN8"):
            yield _useless(ignore, "ignores nothing here", "Remove it, or correct the code.")
        elif not ignore.reason:
            yield _useless(ignore, "gives no reason", "Say why, behind the bracket.")


def _useless(ignore: _Ignore, what: str, hint: str) -> Problem:
    message = f"ignore[{ignore.code}] {what}"
    return Problem(USELESS_IGNORE, message, ignore.place, hint, Severity.WARNING)


def _in_case(case: Case) -> Iterator[_Ignore]:
    for code, reason in case.lint_ignore.items():
        yield _Ignore(code, case.place("lint", "ignore", code), None, reason)


def _in_comments(source: Source) -> Iterator[_Ignore]:
    blocks: dict[int, int] | None = None
    starts: list[int] = []
    for row, line in enumerate(source.lines, 1):
        if "multinode:" not in line:
            continue
        match = IGNORE.search(line)
        if match is None:
            continue
        blocks = _blocks(source) if blocks is None else blocks
        starts = starts or list(blocks)
        if _inside_text(blocks, starts, row):
            continue
        alone = not line[: match.start()].strip()
        lines = range(row, row + 2 if alone else row + 1)
        last = blocks.get(lines[-1], lines[-1])
        lines = range(row, max(last, lines[-1]) + 1)
        for code in match[1].split(","):
            place = Place(source.file, row, match.start() + 1)
            yield _Ignore(code.strip(), place, lines, match[2].strip())


def _blocks(source: Source) -> dict[int, int]:
    """Each block of text: the line on which it starts -> its last one."""
    found: dict[int, int] = {}
    known: dict[tuple[int, int], int] = {}  # aliases stand on the same lines
    for first, _, last, style in source.spans.values():
        if style in ("|", ">"):
            if (first, last) not in known:
                known[first, last] = _last(source, first, last)
            found[first] = max(found.get(first, 0), known[first, last])
    return dict(sorted(found.items()))


def _inside_text(blocks: dict[int, int], starts: list[int], row: int) -> bool:
    """Whether the line belongs to a block of text, where ``#`` starts no comment."""
    at = bisect_left(starts, row) - 1
    return at >= 0 and row <= blocks[starts[at]]


def _last(source: Source, first: int, last: int) -> int:
    """A block of text ends before the comments and blank lines that follow it."""
    indent = None
    end = first
    for row in range(first, min(last, len(source.lines))):
        line = source.lines[row]
        if not line.strip():
            continue
        width = len(line) - len(line.lstrip())
        indent = width if indent is None else indent
        if width < indent:
            break
        end = row + 1
    return end
