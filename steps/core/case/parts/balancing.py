"""``dp_load_balancing`` against the keys of a case.

Enters: a case and the dialect of its keys. Leaves: what does not agree. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from steps.core.case.fields import balanced
from steps.core.case.source import Source
from steps.core.errors import Problem


def check(source: Source, dialect: str) -> Iterator[Problem]:
    """Upstream goes by this key alone; where it is not what the keys are, one of them is wrong."""
    value = source.data.get("dp_load_balancing")
    if dialect == "single" or not isinstance(value, str):
        return
    chosen = balanced(source.data)
    path, found = ("dp_load_balancing",), f"found {value!r:.80}"
    if chosen is None:
        hint = "Upstream takes no other."
        yield source.problem("MN007", f"{found}, expected internal or external", path, hint)
    elif chosen[0] != dialect:
        message = f"{found}, which is the {chosen[0]} dialect, but the keys are the {dialect} one's"
        yield source.problem("MN007", message, path, "Correct it, or rewrite the case.")
