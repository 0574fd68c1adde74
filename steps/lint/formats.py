"""Problems in the formats that other programs read.

Enters: problems and the files that were looked at. Leaves: text. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from steps.core import VERSION, foreign
from steps.core.case.excerpt import render
from steps.core.case.numbers import dumps
from steps.core.errors import Place, Problem, Severity, errors_of
from steps.lint.registry import RULES

Format = Callable[[Sequence[Problem], Sequence[str]], str]


def as_json(problems: Sequence[Problem], files: Sequence[str]) -> str:
    """A list of problems: file, line, column, rule, severity, message, hint and more."""
    body = [problem.to_dict() for problem in problems]
    return foreign.json(dumps(body, indent=2, ensure_ascii=False)) + "\n"


def as_github(problems: Sequence[Problem], files: Sequence[str]) -> str:
    """GitHub's workflow commands, which annotate a pull request."""
    levels = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}
    lines = []
    for problem in problems:
        message = problem.message
        for place in problem.related:
            message += f"\nsee also {place}"
        if problem.hint:
            message += f"\n{problem.hint}"
        fields = (
            f"file={foreign.field(problem.place.file)},line={problem.place.line},"
            f"col={problem.place.column},title={problem.rule}"
        )
        lines.append(f"::{levels[problem.severity]} {fields}::{foreign.data(message)}\n")
    return "".join(lines)


def as_sarif(problems: Sequence[Problem], files: Sequence[str]) -> str:
    """SARIF 2.1.0, which code scanning reads."""
    levels = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
    used = sorted({problem.rule for problem in problems})
    descriptions = []
    for code in used:
        entry: dict[str, Any] = {"id": code}
        if code in RULES:
            entry["shortDescription"] = {"text": RULES[code].title}
            entry["fullDescription"] = {"text": RULES[code].explanation}
            entry["defaultConfiguration"] = {"level": levels[RULES[code].severity]}
        descriptions.append(entry)
    results = []
    for problem in problems:
        text = f"{problem.message}. {problem.hint}" if problem.hint else problem.message
        result: dict[str, Any] = {
            "ruleId": problem.rule,
            "ruleIndex": used.index(problem.rule),
            "level": levels[problem.severity],
            "message": {"text": text},
            "locations": [{"physicalLocation": _location(problem.place)}],
        }
        if problem.related:
            result["relatedLocations"] = [
                {
                    "id": number,
                    "physicalLocation": _location(place),
                    "message": {"text": "disagrees with"},
                }
                for number, place in enumerate(problem.related)
            ]
        results.append(result)
    driver = {"name": "multinode", "version": VERSION, "rules": descriptions}
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
        ],
    }
    return foreign.json(dumps(log, indent=2, ensure_ascii=False)) + "\n"


def _location(place: Place) -> dict[str, Any]:
    return {
        "artifactLocation": {"uri": quote(place.file.replace("\\", "/"), errors="surrogateescape")},
        "region": {"startLine": place.line, "startColumn": place.column},
    }


def as_junit(problems: Sequence[Problem], files: Sequence[str]) -> str:
    """JUnit: one test case a file; errors fail it, the rest is its output."""
    from junit_xml import TestCase, TestSuite, to_xml_report_string

    cases = []
    for file in files:
        mine = [problem for problem in problems if problem.place.file == file]
        rest = [problem for problem in mine if problem.severity is not Severity.ERROR]
        case = TestCase(
            foreign.xml(file), "validate", stdout=foreign.xml("\n\n".join(map(render, rest)))
        )
        errors = errors_of(mine)
        if errors:
            text = foreign.xml("\n\n".join(map(render, errors)))
            case.add_failure_info(foreign.xml(errors[0].message), text, errors[0].rule)
        cases.append(case)
    text = to_xml_report_string([TestSuite("multinode validate", cases)])
    return f"{text}\n"


FORMATS: dict[str, Format] = {
    "json": as_json,
    "github": as_github,
    "sarif": as_sarif,
    "junit": as_junit,
}
