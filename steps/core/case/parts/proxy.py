"""What a case says of its proxy.

Enters: the value of ``proxy``. Leaves: a :class:`ProxySpec`, and what is wrong with it.
Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steps.core.case import fields, shellwords
from steps.core.case.case import ProxySpec

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]


def build(entry: Any, problem: Report) -> ProxySpec:
    """The proxy of a case whose form is right; ``problem`` is told what is wrong with it."""
    if entry is None:
        return ProxySpec()
    if isinstance(entry, str):
        if entry in fields.PROXIES:
            return ProxySpec(entry)
        return ProxySpec("script", script=entry) if entry.endswith(".py") else _none(entry, problem)
    known = {"kind", "script", "args", "command"}
    for key in entry:
        if key not in known:
            problem(
                "MN005", "unknown key", f"Known here: {', '.join(sorted(known))}.", "proxy", key
            )
    args = entry.get("args", [])
    if not isinstance(args, list):
        problem("MN006", "expected a list", "", "proxy", "args")
        args = []
    for key in ("kind", "script", "command"):
        if key in entry and not (isinstance(entry[key], str) and entry[key]):
            problem("MN006", f"found {entry[key]!r}, expected text", "", "proxy", key)
            return ProxySpec()
    if "command" in entry:
        _is_command(entry["command"], problem)
        return ProxySpec("command", command=entry["command"])
    kind = entry.get("kind", "script" if entry.get("script") else "auto")
    if kind not in ("auto", *fields.PROXIES):
        return _none(entry, problem)
    return ProxySpec(kind, entry.get("script", ""), tuple(str(arg) for arg in args))


def _is_command(text: str, problem: Report) -> None:
    try:
        if shellwords.split(text):
            return
        problem("MN014", "is empty, expected a command", "", "proxy", "command")
    except shellwords.UnbalancedQuote as error:
        problem("MN013", str(error), "Close the quote.", "proxy", "command")


def _none(entry: Any, problem: Report) -> ProxySpec:
    problem(
        "MN007",
        f"found {entry!r}, expected {', '.join(fields.PROXIES)}, a path that ends "
        "in .py, or a mapping with kind, script, args or command",
        "",
        "proxy",
    )
    return ProxySpec()
