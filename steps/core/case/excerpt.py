"""Problems as people read them: the line of the file, a caret, what to do.

Enters: problems. Leaves: text. Touches: reads the files the problems are in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from steps.core import foreign, redaction
from steps.core.case.masked import mask
from steps.core.errors import Place, Problem, Severity

_COLOURS = {Severity.ERROR: "31", Severity.WARNING: "33", Severity.INFO: "36"}
_WIDTH = 120
#: So many problems of one kind are folded into one; so many of their lines are named.
_FOLDED, _NAMED = 3, 10

Lines = Callable[[str], Sequence[str]]


@cache
def lines_of(file: str) -> tuple[str, ...]:
    """The lines of a file, without secrets; none when it is no regular file that can be read."""
    try:
        if not Path(file).is_file():
            return ()
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        redaction.here().study_yaml(text)
        return tuple(mask(text).splitlines())
    except (OSError, ValueError):
        return ()


def render(problem: Problem, *, colour: bool = False, lines: Lines = lines_of) -> str:
    """One problem: place, severity, rule, message, excerpts of both places, hint."""
    severity = problem.severity.value
    if colour:
        severity = f"\x1b[{_COLOURS[problem.severity]}m{severity}\x1b[0m"
    said = foreign.block(f"{problem.rule}: {problem.message}")
    parts = [f"{foreign.line(problem.place)}: {severity} {said}"]
    parts += _excerpt(problem.place, lines)
    for place in problem.related:
        parts.append(f"  see also {foreign.line(place)}")
        parts += _excerpt(place, lines)
    if problem.hint:
        parts.append(foreign.block(f"  = {problem.hint}"))
    return "\n".join(parts)


def render_all(
    problems: Iterable[Problem], *, colour: bool = False, lines: Lines = lines_of
) -> str:
    """All problems, an empty line between them, and how many of each severity there are.

    Of more than two that only differ in numbers the first is shown, and the others' lines.
    """
    every = list(problems)
    kinds: dict[tuple[str, ...], list[Problem]] = {}
    for problem in every:
        shape = re.sub(r"[0-9]+", "#", problem.message)
        kind = (problem.place.file, problem.rule, problem.severity, shape)
        kinds.setdefault(kind, []).append(problem)
    parts = []
    for same in kinds.values():
        shown, folded = (same, []) if len(same) < _FOLDED else (same[:1], same[1:])
        parts += [render(problem, colour=colour, lines=lines) for problem in shown]
        if folded:
            where = ", ".join(str(problem.place.line) for problem in folded[:_NAMED])
            more = " and so on" if len(folded) > _NAMED else ""
            parts[-1] += f"\n  ... and {len(folded)} more: lines {where}{more}"
    parts.append(summary(every))
    return "\n\n".join(parts) + "\n"


def summary(problems: Iterable[Problem]) -> str:
    """How many of each severity, such as ``1 error, 2 warnings``."""
    counts = Counter(problem.severity for problem in problems)
    words = [
        f"{counts[severity]} {severity.value}{'s' if counts[severity] != 1 else ''}"
        for severity in Severity
        if counts[severity] and severity is not Severity.INFO
    ]
    if counts[Severity.INFO]:
        words.append(f"{counts[Severity.INFO]} info")
    return ", ".join(words) or "no problems"


def _excerpt(place: Place, lines: Lines) -> list[str]:
    text = lines(place.file)
    if not 0 < place.line <= len(text):
        return []
    line = text[place.line - 1].rstrip()
    start = max(place.column - 1, 0)
    if len(line) > _WIDTH:
        left = max(0, min(start - 20, len(line) - _WIDTH))
        line, start = line[left : left + _WIDTH], start - left
    if not line.strip():
        return []
    line = foreign.signs(line)
    pad = "".join("\t" if char == "\t" else " " for char in line[:start])
    gutter = " " * len(str(place.line))
    return [f"  {place.line} | {line}", f"  {gutter} | {pad}^"]
