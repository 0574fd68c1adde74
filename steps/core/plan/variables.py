"""Filling variables into environment values and command words.

Enters: text with ``$NAME`` or ``${NAME}``, and tables of values. Leaves: text
without variables, and the names nobody defined. Touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

_ANY = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
#: Variables that hold lists of directories; ``DIR:$PATH`` puts DIR in front.
PATH_LISTS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LD_PRELOAD")


#: The longest text that filling may make, and how far variables may hang on one another.
MAX_FILLED = 131_071
_MAX_CHAIN = 100


class TooLong(ValueError):
    """Variables multiply to a text that no program can be given."""


def names_in(text: str) -> list[str]:
    """Every variable ``text`` uses, in order."""
    return [braced or plain for braced, plain in _ANY.findall(text)]


def bare_names_in(text: str) -> list[str]:
    """Those without braces."""
    return [plain for _, plain in _ANY.findall(text) if plain]


def fill(
    text: str,
    plain: Mapping[str, str],
    unknown: Callable[[str], None],
    braced: Mapping[str, str] | None = None,
) -> str:
    """``text`` with its variables filled.

    Args:
        plain: values of ``$NAME``, and of ``${NAME}`` when ``braced`` is None.
        unknown: told each name that has no value; the text keeps it.
        braced: values of ``${NAME}`` in the routing dialect.

    Raises:
        TooLong: no program takes a text so long.
    """

    if "$" not in text:
        return text

    made = len(text)

    def value(match: re.Match[str]) -> str:
        nonlocal made
        in_braces, bare = match.groups()
        table = braced if in_braces and braced is not None else plain
        name = in_braces or bare
        if name in table:
            made += len(table[name])
            if made > MAX_FILLED:
                raise TooLong(f"{text[:60]!r} becomes longer than {MAX_FILLED:,} characters")
            return table[name]
        unknown(name)
        return match[0]

    return _ANY.sub(value, text)


def fill_environment(
    envs: Mapping[str, str],
    given: Mapping[str, str],
    unknown: Callable[[str, str], None],
    braced: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Environment values with their variables filled from one another and ``given``.

    ``LD_LIBRARY_PATH: /opt/lib:$LD_LIBRARY_PATH`` cannot be known in advance;
    such a value becomes directories to put in front on the node; one that
    nobody defines is no directory and left out.

    Args:
        unknown: told the variable and the name in its value that has no value.

    Returns:
        the environment, and what to put in front of path variables.
    """
    done: dict[str, str] = {}
    paths: dict[str, tuple[str, ...]] = {}

    def render(name: str, trail: tuple[str, ...]) -> str:
        if name in done:
            return done[name]
        text = envs[name]
        if "$" not in text:
            done[name] = text
            return text
        if len(trail) > _MAX_CHAIN:
            raise TooLong(f"{name} hangs on more than {_MAX_CHAIN} other variables in a row")
        table: dict[str, str] = {}
        for used in names_in(text):
            if used in envs and used not in trail and used != name:
                table[used] = render(used, (*trail, name))
            elif used in given:
                table[used] = given[used]
        done_text = fill(text, table, partial(unknown, name), braced)
        if name in PATH_LISTS:
            done_text = ":".join(part for part in done_text.split(":") if "$" not in part)
        done[name] = done_text
        return done_text

    for name, text in envs.items():
        if name in PATH_LISTS and name in names_in(text):
            parts = re.split(rf"\$(?:\{{{name}\}}|{name}\b)", text)
            joined = ":".join(part.strip(":") for part in parts if part.strip(":"))
            others = [used for used in names_in(joined) if used in envs]
            table = {**given, **{used: render(used, (used,)) for used in others}}
            filled = fill(joined, table, partial(unknown, name), braced)
            paths[name] = tuple(part for part in filled.split(":") if part and "$" not in part)
        else:
            render(name, (name,))
    return {name: done[name] for name in envs if name in done}, paths
