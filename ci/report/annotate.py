"""GitHub's annotations: what went wrong, at the line of the case it is about.

Enters: problems, or a case and its verdict. Leaves: workflow commands.
Touches: standard output, and only in a GitHub job.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from steps.core import door, settings
from steps.core.case.case import Case
from steps.core.errors import Problem
from steps.core.record.verdict import Verdict
from steps.core.redaction import here
from steps.lint.formats import as_github


def of_verdict(case: Case, verdict: Verdict) -> list[Problem]:
    """A problem for each benchmark that failed, or one for the cause; none for a pass."""
    if verdict.verdict == "pass":
        return []
    found = [
        Problem(
            verdict.verdict, f"{b.name}: {b.reason}", case.place("benchmarks", b.name), field=b.name
        )
        for b in verdict.benchmarks
        if b.status in ("fail", "error")
    ]
    cause = verdict.cause
    if found or cause is None:
        return found
    own = next((node.paths for node in case.nodes if node.index == cause.node), {})
    where = own.get("config") or own.get("node") or ()
    return [Problem(verdict.verdict, str(cause), case.place(*where), cause.hint)]


def show(problems: Sequence[Problem]) -> None:
    """Print them where GitHub reads them."""
    if problems and settings.read().github_actions:
        own = door.own(sys.stdout)
        own.write(as_github(here().value(tuple(problems)), ()))
        own.flush()
