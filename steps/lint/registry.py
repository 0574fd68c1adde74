"""How a rule is written and where all rules are listed.

Enters: functions marked with :func:`rule`. Leaves: :data:`RULES`, by code.
Touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from steps.core.errors import Place, Severity
from steps.lint import examples
from steps.lint.examples import Example

#: First two characters of the number -> theme, in the order of the reference page.
THEMES = {
    "0": "Form and resolution",
    "1": "Flags",
    "2": "Data parallel",
    "3": "Devices",
    "4": "Prefill and decode",
    "5": "Model",
    "6": "Variables",
    "7": "Benchmarks",
    "8": "Matrix",
}


@dataclass(frozen=True)
class Finding:
    """What a rule saw at one place.

    Attributes:
        related: the other places that disagree with ``place``.
        severity: None: that of the rule.
    """

    message: str
    place: Place
    hint: str = ""
    related: tuple[Place, ...] = ()
    severity: Severity | None = None
    field: str = ""


@dataclass(frozen=True)
class Rule:
    """One rule: what it looks for; its examples (``data/examples.yaml``) are its tests.

    Attributes:
        check: takes a :class:`steps.lint.fleet.Fleet` (for matrix rules a
            :class:`steps.lint.matrix.Matrix`); None when another module finds it.
    """

    code: str
    title: str
    severity: Severity
    explanation: str
    check: Callable[[Any], Iterator[Finding]] | None = None

    @property
    def fails(self) -> tuple[Example, ...]:
        """Examples in which it finds something."""
        return examples.of(self.code, "fails")

    @property
    def passes(self) -> tuple[Example, ...]:
        """Examples in which it finds nothing."""
        return examples.of(self.code, "passes")

    @property
    def theme(self) -> str:
        """The heading it stands under."""
        return THEMES[self.code[2]]


RULES: dict[str, Rule] = {}


def register(entry: Rule) -> None:
    """Add a rule.

    Raises:
        ValueError: the code is taken or has another form than ``MN123``.
    """
    if entry.code in RULES or not re.fullmatch(r"MN\d{3}", entry.code):
        raise ValueError(f"rule code {entry.code}: taken, or not of the form MN123")
    RULES[entry.code] = entry


def rule(
    code: str, severity: Severity, title: str
) -> Callable[[Callable[[Any], Iterator[Finding]]], Callable[[Any], Iterator[Finding]]]:
    """Register the decorated function; its docstring is the rule's explanation."""

    def add(function: Callable[[Any], Iterator[Finding]]) -> Callable[[Any], Iterator[Finding]]:
        text = " ".join((function.__doc__ or "").split())
        register(Rule(code, title, severity, text, function))
        return function

    return add
