"""Documentation of what the schema, the case builder and the resolver report.

Most are found by ``steps.core``; here they only get a page.
"""

from __future__ import annotations

from collections.abc import Iterator

from steps.core.case import check
from steps.core.errors import Severity
from steps.lint.examples import data
from steps.lint.fleet import Fleet
from steps.lint.registry import Finding, Rule, register, rule

for _code, _page in data("elsewhere").items():
    _severity = Severity(_page.get("severity", "error"))
    register(Rule(_code, _page["title"], _severity, _page["text"]))


@rule("MN008", Severity.WARNING, "Key of a later harness")
def unread(fleet: Fleet) -> Iterator[Finding]:
    """A key that later upstream harnesses read (`test_content`, `acceptance_rate`) and this one
    does not: what it asks for does not happen here. Any other unknown key is an error (MN005)."""
    for path in check.unread(fleet.case.source):
        if path[:1] == ("benchmarks",):
            continue
        name = ".".join(map(str, path))
        yield Finding(
            f"{name}: nobody here reads this key",
            fleet.case.place(*path),
            "Remove it, or keep it for a harness that reads it.",
            field=name,
        )
