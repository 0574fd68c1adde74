"""Label and field selectors: text in, a predicate over objects out; a bad text raises what the
server answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .errors import bad_request

Test = Callable[[dict[str, Any]], bool]
_TOKEN = re.compile(r"\s*(!=|==|=|!|\(|\)|,|[^\s=!(),]+)")


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def labels(text: str) -> Test:
    """A predicate over an object's labels, from ``a=b,c!=d,e in (f,g),h,!i``."""
    tokens = _tokens(text)
    tests: list[Callable[[dict[str, str]], bool]] = []
    at = 0

    def take() -> str:
        nonlocal at
        token = tokens[at] if at < len(tokens) else ""
        at += 1
        return token

    while at < len(tokens):
        token = take()
        if token == "!":
            key = take()
            tests.append(lambda have, key=key: key not in have)  # type: ignore[misc]
        else:
            key, operator = token, take()
            if operator in ("=", "=="):
                value = take()
                if value == ",":
                    value, at = "", at - 1
                tests.append(lambda have, key=key, value=value: have.get(key) == value)  # type: ignore[misc]
            elif operator == "!=":
                value = take()
                tests.append(lambda have, key=key, value=value: have.get(key) != value)  # type: ignore[misc]
            elif operator in ("in", "notin"):
                values = _values(take)
                if operator == "in":
                    tests.append(lambda have, key=key, values=values: have.get(key) in values)  # type: ignore[misc]
                else:
                    tests.append(lambda have, key=key, values=values: have.get(key) not in values)  # type: ignore[misc]
            elif operator in (",", ""):
                at -= 1
                tests.append(lambda have, key=key: key in have)  # type: ignore[misc]
            else:
                raise bad_request(
                    f"unable to parse requirement: found '{operator}', "
                    "expected: in, notin, =, ==, !=, gt, lt"
                )
        separator = take()
        if separator not in (",", ""):
            raise bad_request(f"found '{separator}', expected: ',' or 'end of string'")
    return lambda obj: all(test(obj["metadata"].get("labels") or {}) for test in tests)


def _values(take: Callable[[], str]) -> set[str]:
    if (found := take()) != "(":
        raise bad_request(f"unable to parse requirement: found '{found}', expected: '('")
    values = set()
    while True:
        values.add(take())
        separator = take()
        if separator == ")":
            return values
        if separator != ",":
            raise bad_request(
                f"unable to parse requirement: found '{separator}', expected: ',' or ')'"
            )


_FIELDS = {
    "metadata.name",
    "metadata.namespace",
    "status.phase",
    "spec.nodeName",
    "spec.restartPolicy",
    "status.podIP",
    "involvedObject.name",
    "involvedObject.kind",
    "involvedObject.uid",
    "involvedObject.namespace",
    "reason",
    "type",
    "reportingComponent",
}


def fields(text: str) -> Test:
    """A predicate over the few fields that real servers index."""
    wanted: list[tuple[str, str, bool]] = []
    for part in filter(None, text.split(",")):
        equal = "!=" not in part
        path, _, value = part.partition("!=" if not equal else "==" if "==" in part else "=")
        if path not in _FIELDS:
            raise bad_request(f"field label not supported: {path}")
        wanted.append((path, value, equal))

    def test(obj: dict[str, Any]) -> bool:
        for path, value, equal in wanted:
            found: Any = obj
            for step in path.split("."):
                found = (found or {}).get(step)
            if ((found or "") == value) != equal:
                return False
        return True

    return test
