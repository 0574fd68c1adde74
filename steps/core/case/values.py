"""Frozen values out of JSON that another program wrote, by their annotations.

Enters: a kind (a dataclass, or what stands in an annotation) and a JSON value. Leaves: a value of
that kind, or the field that is wrong. Touches nothing.

``dataclasses.asdict`` and :func:`plain` write what :func:`decode` reads.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from steps.core.case.numbers import Refused, is_finite, shown

Read = Callable[[Any], Any]
Kind = TypeVar("Kind")


class _Wrong(Refused):
    """A value that is not of the kind that was expected, and where it stands."""

    def __init__(self, text: str, place: str = "") -> None:
        super().__init__(f"{place.lstrip('.')}: {text}" if place else text)
        self.text, self.place = text, place

    def inside(self, place: str) -> _Wrong:
        """The same, seen from the value around it."""
        return _Wrong(self.text, place + self.place)


def decode(kind: type[Kind], data: Any, *, spare: bool = False) -> Kind:
    """The value of a kind; a field that is absent takes its default.

    Args:
        spare: fields that the kind does not have are dropped, not refused.

    Raises:
        Refused: a ValueError that names the field, what was found and what was expected.
    """
    if spare and isinstance(data, Mapping) and is_dataclass(kind):
        known = {entry.name for entry in fields(kind)}
        data = {name: value for name, value in data.items() if name in known}
    return cast(Kind, _reader(cast(Any, kind))(data))


def plain(value: Any) -> Any:
    """What ``dataclasses.asdict`` says, which copies every word deeply and takes far longer."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    return value


def salvage(kind: type[Kind], data: Any, instead: Mapping[str, Any]) -> Kind:
    """The value of a dataclass of which some fields were lost on the way.

    Args:
        instead: what a field is that cannot be read and has no default.

    Raises:
        Refused: there is no object at all.
    """
    if not isinstance(data, Mapping):
        raise _expected(data, "an object")
    found: dict[str, Any] = dict(instead)
    for name, (read, _) in _fields(cast(Any, kind)).items():
        try:
            found[name] = read(data[name])
        except (KeyError, Refused):
            continue
    return kind(**found)


@cache
def _reader(kind: Any) -> Read:
    """How a value of an annotation is read; worked out once."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin in (Union, types.UnionType) and inner[1] is type(None):
        wanted = _reader(inner[0])
        return lambda value: None if value is None else wanted(value)
    if origin is tuple and inner[1:] == (...,):
        return _tuple(_reader(inner[0]))
    if origin is Mapping:
        return _mapping(_reader(inner[1]))
    if is_dataclass(kind):
        return _object(kind)
    raise TypeError(f"no reader for {kind}")


def _expected(value: Any, what: str) -> _Wrong:
    return _Wrong(f"found {shown(value)}, expected {what}")


def _exactly(kind: type, what: str) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _expected(value, what)
        return value

    return read


def _whole(value: Any) -> Any:
    if type(value) is not int or not is_finite(value):
        raise _expected(value, "a whole number")
    return value


def _number(value: Any) -> Any:
    # Kept as it is: a plan that was read is written the same, byte for byte.
    if not is_finite(value):
        raise _expected(value, "a number")
    return value


_PLAIN: Mapping[Any, Read] = {
    str: _exactly(str, "text"),
    int: _whole,
    bool: _exactly(bool, "true or false"),
    float: _number,
}


def _tuple(inner: Read) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _expected(value, "a list")
        found: list[Any] = []
        try:
            for entry in value:
                found.append(inner(entry))
        except _Wrong as wrong:
            raise wrong.inside(f"[{len(found)}]") from None
        return tuple(found)

    return read


def _mapping(inner: Read) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected(value, "an object")
        found = {}
        for key, entry in value.items():
            try:
                found[key] = inner(entry)
            except _Wrong as wrong:
                raise wrong.inside(f".{key[:40]}") from None
        return found

    return read


@cache
def _fields(kind: Any) -> dict[str, tuple[Read, bool]]:
    """How each field of a dataclass is read, and whether it must be there."""
    hints = get_type_hints(kind)
    return {
        entry.name: (
            _reader(hints[entry.name]),
            entry.default is MISSING and entry.default_factory is MISSING,
        )
        for entry in fields(kind)
    }


def _object(kind: Any) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _expected(value, "an object")
        known = _fields(kind)
        unknown = [name for name in value if name not in known]
        if unknown:
            raise _Wrong(f"found {shown(unknown[0])}, which {kind.__name__} does not have")
        found = {}
        for name, (inner, needed) in known.items():
            if name in value:
                try:
                    found[name] = inner(value[name])
                except _Wrong as wrong:
                    raise wrong.inside(f".{name}") from None
            elif needed:
                raise _Wrong("it is missing", f".{name}")
        return kind(**found)

    return read
