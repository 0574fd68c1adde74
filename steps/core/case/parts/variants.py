"""``variants`` of a case: what each changes, and the gates between them.

Enters: the data of a case whose form is right; settings such as ``env_common.X=1``. Leaves:
:class:`Variant` values, what is wrong with them, a changed copy. Touches nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from steps.core.case.case import Against, Variant
from steps.core.case.gates import METRICS
from steps.core.errors import UsageError, cut

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]
MOST_TEXT = 4000
_SETTING = re.compile(r"(?P<path>[^=+]+)(?P<more>\+?)=(?P<value>.*)", re.DOTALL)
_AGAINST = re.compile(
    r"(?P<metric>[a-z0-9_]{1,60}) *(?P<op>[<>]=) *((?P<share>[0-9]{1,9}(\.[0-9]{1,9})?) *\* *)?"
    r"variant\( *(?P<of>[^()]{1,60}?) *\)"
)


def build(data: Mapping[str, Any], problem: Report) -> tuple[Variant, ...]:
    """The variants of a case; each gate names another of them, each setting fits."""
    asked = data.get("variants") or {}
    found = []
    for name, given in asked.items():
        entry, made = given or {}, changed(data, ())
        for at, setting in enumerate(entry.get("set", ())):
            try:
                _set(made, setting)
            except UsageError as error:
                problem("MN023", error.message, error.hint, "variants", name, "set", at)
                break
        gates = []
        for at, text in enumerate(entry.get("gates", ())):
            try:
                gates.append(_against(text, [one for one in asked if one != name]))
            except ValueError as error:
                message = f"found {cut(text, 80)!r}, {error}"
                hint = "Such as 'output_throughput >= 0.97 * variant(NAME)'; docs/compare.md."
                problem("MN019", message, hint, "variants", name, "gates", at)
        found.append(
            Variant(
                name,
                tuple(entry.get("set", ())),
                tuple(entry.get("products", ())),
                entry.get("image", ""),
                tuple(gates),
            )
        )
    return tuple(found)


def _against(text: str, others: Iterable[str]) -> Against:
    """A gate between two variants.

    Raises:
        ValueError: it is none; says what was expected.
    """
    form = _AGAINST.fullmatch(text.strip()[:200])
    if form is None:
        raise ValueError("expected 'metric op share * variant(NAME)'")
    if form["metric"] not in METRICS:
        raise ValueError(f"unknown metric '{form['metric']}', expected one of {', '.join(METRICS)}")
    if (form["op"] == ">=") is not METRICS[form["metric"]][1]:
        better = "more" if METRICS[form["metric"]][1] else "less"
        raise ValueError(f"but {better} is better there: turn the sign")
    if form["of"] not in others:
        raise ValueError(f"expected another variant: {', '.join(map(str, others)) or 'none'}")
    share = float(form["share"] or 1)
    if not 0 < share < 1000:
        raise ValueError("expected a share above 0")
    return Against(form["metric"], share, form["of"])


def changed(content: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of a case's data with settings carried out.

    Raises:
        UsageError: a setting does not fit.
    """
    made = dict(copy.deepcopy(content))
    for setting in settings:
        _set(made, setting)
    return made


def _set(content: Any, setting: str) -> None:
    form = _SETTING.fullmatch(setting)
    if form is None or len(setting) > MOST_TEXT:
        raise UsageError(f"{setting[:200]!r} is no setting", "Write PATH=VALUE or PATH+=MORE TEXT.")
    *parents, last = form["path"].strip().split(".")
    place = content
    for number, word in enumerate(parents):
        place = _child(place, word, ".".join(parents[: number + 1]))
    key = _key(place, last, form["path"].strip())
    value: Any = form["value"]
    if form["more"]:
        before = place[key] if isinstance(place, list) else place.get(key)
        if not isinstance(before, str):
            raise UsageError(f"{form['path']} is no text, so nothing can be added to it")
        place[key] = f"{before.rstrip()} {value.strip()}"
        return
    try:
        place[key] = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise UsageError(f"{form['path']}: {value[:80]!r} is no value of YAML") from None


def _key(place: Any, word: str, path: str) -> Any:
    if isinstance(place, list):
        if not re.fullmatch("[0-9]{1,9}", word) or int(word) >= len(place):
            raise UsageError(f"{path}: found {word!r}, expected 0 to {len(place) - 1}")
        return int(word)
    if not isinstance(place, dict):
        raise UsageError(f"{path}: what holds it is a single value", "Shorten the path.")
    return word


def _child(place: Any, word: str, path: str) -> Any:
    key = _key(place, word, path)
    if isinstance(place, dict) and key not in place:
        raise UsageError(
            f"{path} is not in the case", f"It has: {', '.join(map(str, place))[:200]}."
        )
    return place[key]
