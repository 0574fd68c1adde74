"""What can go wrong, as values, and the exit code each class of it has.

Enters: findings of other modules. Leaves: :class:`Problem` values and the
exceptions that carry them to the command line. Touches nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from steps.core import foreign

#: Problems of one file that are told; a file with more is not read line by line.
MAX_PROBLEMS = 200


class Exit(enum.IntEnum):
    """Exit codes of every command."""

    PASS = 0
    PRODUCT = 1
    USAGE = 2
    INFRA = 3
    DEADLINE = 4
    INTERRUPTED = 130


class Severity(str, enum.Enum):
    """How much a finding weighs; only an error stops a run."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Place:
    """Where in a file: line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One finding about what the user wrote."""

    rule: str
    message: str
    place: Place
    hint: str = ""
    severity: Severity = Severity.ERROR
    field: str = ""
    related: tuple[Place, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The finding as ``validate --format json`` prints it."""
        return {
            "file": self.place.file,
            "line": self.place.line,
            "column": self.place.column,
            "rule": self.rule,
            "severity": self.severity.value,
            "message": self.message,
            "hint": self.hint,
            "field": self.field,
            "related": [asdict(place) for place in self.related],
        }

    def __str__(self) -> str:
        text = f"{self.place}: {self.severity.value} {self.rule}: {self.message}"
        for place in self.related:
            text += f"\n    see also {place}"
        return foreign.block(f"{text}\n    {self.hint}" if self.hint else text)


class MultinodeError(Exception):
    """Base of every error with a message meant for the user and an exit code.

    Args:
        message: what was found and what was expected, without a trailing stop.
        hint: what to do next.
    """

    exit_code: Exit = Exit.INFRA

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n    {self.hint}" if self.hint else self.message


class UsageError(MultinodeError):
    """The command line is wrong."""

    exit_code = Exit.USAGE


class CaseError(MultinodeError):
    """The case (or another input file) has errors; carries all of them."""

    exit_code = Exit.USAGE

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InfraError(MultinodeError):
    """Something around the product under test is broken: hosts, network, tools."""

    exit_code = Exit.INFRA


class DeadlineError(MultinodeError):
    """Something took longer than it may."""

    exit_code = Exit.DEADLINE


def errors_of(problems: Sequence[Problem]) -> list[Problem]:
    """Only the findings that stop a run."""
    return [problem for problem in problems if problem.severity is Severity.ERROR]


def sort_problems(problems: Iterable[Problem]) -> list[Problem]:
    """In the order in which a reader meets them, without repetitions."""
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda p: (p.place.file, p.place.line, p.place.column, p.rule))


def enough(problems: Iterable[Problem]) -> list[Problem]:
    """What is told of a file: in reading order, errors first when there are too many."""
    every = sort_problems(problems)
    if len(every) <= MAX_PROBLEMS:
        return every
    chosen = sorted(every, key=lambda problem: problem.severity is not Severity.ERROR)
    left = chosen[MAX_PROBLEMS:]
    severity = Severity.ERROR if errors_of(left) else Severity.WARNING
    more = f"and {len(left):,} more problems, which are not shown"
    last = Problem("MN009", more, left[-1].place, "Mend some of these first.", severity)
    return [*sort_problems(chosen[:MAX_PROBLEMS]), last]


def cut(text: str, most: int = 1000) -> str:
    """A text as a message shows it: no longer than ``most``."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
