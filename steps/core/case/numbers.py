"""Numbers that others wrote: finite, or refused with a reason; and JSON of such numbers alone.

Enters: text or a JSON value of another program. Leaves: a finite number, or
JSON text. Touches nothing.

``float`` takes ``inf``, ``nan``, ``1_0`` and ``True``; ``json`` takes ``NaN`` and
writes it. A gate passes on an infinite throughput, and no other reader of JSON
accepts either word. So everything that reads a foreign number reads it here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

#: Wanted unit -> spelling of a unit -> what it is worth.
UNITS: Mapping[str, Mapping[str, float]] = {
    "": {"": 1.0},
    "%": {"": 1.0, "%": 1.0},
    "ms": {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3},
    "token/s": {"token/s": 1.0, "tokens/s": 1.0},
    "req/s": {"req/s": 1.0, "requests/s": 1.0},
}
#: Anything larger is no measurement; sums and squares of what is smaller stay finite.
LIMIT = 1e24
_LONGEST = 64
_LAST = 1e11  # the year 5138
_FORM = re.compile(
    r"([-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?)"
    r"\s*([A-Za-zµ%/]*)"
)
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")


class Refused(ValueError):
    """What was found is not the number that was expected; the text says both."""


def finite(
    value: Any, unit: str = "", least: float | None = None, most: float | None = None
) -> float:
    """A number, or text such as ``12.5``, ``1,557.1 token/s`` or ``0.1 s``, in ``unit``.

    Raises:
        Refused: it is infinite, no number, out of bounds, or in no unit that is known.
    """
    expected = f"a number in {unit}" if unit else "a number"
    found: float | None = None
    if isinstance(value, str) and len(value) <= _LONGEST:
        match = _FORM.fullmatch(value.strip("\ufeff \t\r\n\xa0"))
        if match and match[2] in UNITS[unit]:
            found = float(match[1].replace(",", "")) * UNITS[unit][match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and "" in UNITS[unit]:
        found = float(value) if abs(value) <= LIMIT else None
    if found is None or not abs(found) <= LIMIT:
        raise Refused(f"found {shown(value)}, expected {expected}")
    if (least is not None and found < least) or (most is not None and found > most):
        bounds = [f"at least {least:g}"] if least is not None else []
        bounds += [f"at most {most:g}"] if most is not None else []
        raise Refused(f"found {shown(value)}, expected {expected}, {' and '.join(bounds)}")
    return found


def whole(value: Any, least: int = 0) -> int:
    """A whole number, or its digits as text.

    Raises:
        Refused: it is something else, a fraction, or below ``least``.
    """
    found: int | None = None
    if isinstance(value, str):
        digits = value.strip("\ufeff \t\r\n")
        found = int(digits) if _WHOLE.fullmatch(digits) else None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value):
        found = int(value) if value == int(value) else None
    if found is None or found < least:
        raise Refused(f"found {shown(value)}, expected a whole number of at least {least}")
    return found


def is_finite(value: Any) -> bool:
    """Whether a value is a number that can be measured."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= LIMIT  # False for NaN
    )


def is_time(value: Any) -> bool:
    """Whether a value is a number of seconds that a calendar knows."""
    return is_finite(value) and 0 <= value <= _LAST


def loads(text: str | bytes) -> Any:
    """The value of a JSON document of another program.

    Raises:
        ValueError: it is no JSON, has ``NaN`` or too large a number, or is nested too deeply.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        return (_DECODER if _small(text) else _STRICT).decode(text)
    except RecursionError:
        raise Refused("nested too deeply") from None


def dumps(value: Any, **options: Any) -> str:
    """JSON text, with the options of :func:`json.dumps`.

    Raises:
        ValueError: a number in it is not finite, for which JSON has no word.
    """
    return json.dumps(value, allow_nan=False, **options)


def _refuse(word: str) -> float:
    raise Refused(f"found {word}, which is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Refused(f"found {text[:40]}, which is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 300:  # beyond that, no float has it
        raise Refused(f"found {text[:40]}..., which is too large")
    return int(text)


def _small(text: str) -> bool:
    """Whether no number in it can be too large: it is then read at full speed."""
    return max(map(len, text.split(","))) < 200 and not _EXPONENT.search(text)


_EXPONENT = re.compile(r"[eE][+-]?0*[1-9]\d\d")
_DECODER = json.JSONDecoder(parse_constant=_refuse)
_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int)


def shown(value: Any) -> str:
    """What was found, short: a number may have thousands of digits, a list thousands of levels."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > LIMIT:
        return "a number of more than 24 digits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
