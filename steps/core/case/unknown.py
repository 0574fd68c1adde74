"""Keys of a file that its form does not know: mistakes, and those of later harnesses.

Enters: a parsed :class:`Source`, the path of a key. Leaves: whether it is a
mistake, and what was probably meant. Touches nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from steps.core.case.fields import BENCHMARK, FIELDS, dialect_of, known_keys
from steps.core.case.source import DataPath, Source

#: Keys that later upstream harnesses read and nobody here, by what their cases have (to 0.30).
LATER = frozenset(
    {
        "acceptance_rate",
        "api_keyword_args",
        "chat_prompts",
        "expected_response",
        "reasoning_effort",
        "test_content",
    }
)
#: A line that goes on so far behind a key holds more than an anchor.
_LONG = 300
#: No key that a person misspelled is longer.
_LONGEST_KEY = 60
#: Ends of fields that later upstream harnesses have, near some field that is here.
_LATER = ("_threshold", "_baseline", "_path", "_conf", "_args", "_kwargs")


def is_mistake(dialect: str, path: DataPath) -> bool:
    """Whether an unknown key is more than what a later upstream harness reads.

    A file that is no case has no keys but ours, and a role that nobody knows has no nodes.
    """
    key = str(path[-1])
    if dialect not in FIELDS or path[:2] == ("routing", "groups"):
        return True
    in_benchmark = path[:1] == ("benchmarks",) and len(path) == 3
    if in_benchmark and key.endswith(_LATER) and not _close(dialect, path, 0.9):
        return False
    return key not in LATER


def unread(source: Source) -> Iterator[DataPath]:
    """Keys of a case that later upstream harnesses read and nobody here.

    An error would refuse cases that run. The linter says that they are not read.
    """
    dialect = dialect_of(source.data) if isinstance(source.data, dict) else None
    if dialect is not None:
        yield from _unread(source, dialect, source.data, ())


def _unread(source: Source, dialect: str, value: Any, path: DataPath) -> Iterator[DataPath]:
    if isinstance(value, list):
        for at, inner in enumerate(value):
            if isinstance(inner, dict):
                yield from _unread(source, dialect, inner, (*path, at))
    elif isinstance(value, dict):
        known = _known_at(dialect, tuple(0 if isinstance(part, int) else part for part in path))
        for key, inner in value.items():
            where = (*path, key)
            if known and key not in known:
                if path or not holds_anchor(source, key):
                    yield where
            elif isinstance(inner, (dict, list)) and key not in ("envs", "server_cmd_template"):
                yield from _unread(source, dialect, inner, where)


@cache
def _known_at(dialect: str, path: DataPath) -> frozenset[str]:
    return frozenset(known_keys(dialect, path))


def holds_anchor(source: Source, key: Any) -> bool:
    """A key that is not ours but only holds a YAML anchor for others is no mistake."""
    if str(key).startswith(("x-", ".")):
        return True
    place = source.place(key)
    text = source.lines[place.line - 1] if place.line <= len(source.lines) else ""
    if len(text) > place.column + len(str(key)) + _LONG:
        return False
    return bool(re.search(r":\s*&[\w-]+\s*(#.*)?$", text[place.column - 1 :]))


def _close(dialect: str, path: DataPath, ratio: float) -> str:
    """The key that may stand here and is spelled nearly so; empty when there is none."""
    key = str(path[-1])
    if len(key) > _LONGEST_KEY:
        return ""
    close = difflib.get_close_matches(key, known_keys(dialect, path[:-1]), 1, ratio)
    return close[0] if close else ""


def suggest(source: Source, dialect: str, path: DataPath) -> str:
    """What to do about an unknown key."""
    here = known_keys(dialect, path[:-1])
    known = f"Remove it. Known here: {', '.join(sorted(here))}." if here else "Remove it."
    return _meant(source, dialect, path) or known


def _meant(source: Source, dialect: str, path: DataPath) -> str:
    """What an unknown key was probably meant to be; empty when that cannot be told."""
    key = str(path[-1])
    close = _close(dialect, path, 0.7)
    if close:
        return f"Did you mean '{close}'?"
    if dialect not in FIELDS:
        return ""
    if key in known_keys(dialect, ()):
        return f"'{key}' belongs at the top of the case; check its indentation."
    if key in BENCHMARK:
        return f"'{key}' belongs under a name in 'benchmarks'; check its indentation."
    if _looks_like_benchmark(source, path):
        if path[:1] == ("benchmarks",):
            return f"'{key}' looks like a benchmark: it belongs beside '{path[1]}', not in it."
        return f"'{key}' looks like a benchmark: it belongs in 'benchmarks'."
    inside = [
        name
        for name in ("deployment", "config", "templates", "routing", "disaggregated_prefill")
        if key in known_keys(dialect, (name, 0)) or key in known_keys(dialect, (name,))
    ]
    if inside:
        return f"'{key}' belongs in '{inside[0]}'; check its indentation."
    other = "routing" if dialect == "deployment" else "deployment"
    if not path[:-1] and key in FIELDS[other]:
        return f"'{key}' belongs to the {other} dialect; this case is written in the {dialect} one."
    return ""


def _looks_like_benchmark(source: Source, path: DataPath) -> bool:
    value = source.data
    for part in path:
        value = value[part]
    return isinstance(value, dict) and "case_type" in value
