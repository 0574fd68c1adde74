"""Documentation of what the schema, the case builder and the resolver report.

Most are found by ``steps.core``; here they only get a page.
"""

from __future__ import annotations

from collections.abc import Iterator

from steps.core.case import check, content
from steps.core.errors import Severity
from steps.lint.examples import data
from steps.lint.fleet import Fleet
from steps.lint.registry import Finding, Rule, register, rule

for _code, _page in data("elsewhere").items():
    _severity = Severity(_page.get("severity", "error"))
    register(Rule(_code, _page["title"], _severity, _page["text"]))


@rule("MN008", Severity.WARNING, "Key that nothing reads")
def unread(fleet: Fleet) -> Iterator[Finding]:
    """A key that asks something of a check (`acceptance_rate`, `expected_response`, prompts) which
    `test_content` does not ask for, or one that nobody reads: what it asks for does not happen."""
    data, kinds = fleet.case.source.data, fleet.case.content.kinds
    asked = dict.fromkeys(content.unread(data, kinds), "no check in test_content reads it")
    odd = [path for path in check.unread(fleet.case.source) if path[:1] != ("benchmarks",)]
    for path in [*odd, *((name,) for name in asked)]:
        name = ".".join(map(str, path))
        yield Finding(
            f"{name}: {asked.get(name, 'nobody here reads this key')}",
            fleet.case.place(*path),
            "Ask for its check in test_content, or remove it."
            if name in asked
            else "Remove it, or keep it for a harness that reads it.",
            field=name,
        )
