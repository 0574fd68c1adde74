"""``sweep`` and ``find`` of a benchmark.

Enters: an entry of ``benchmarks`` whose form is right. Leaves: the points of a sweep, a
:class:`Find`, and what is wrong with them. Touches nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from steps.core.case import gates
from steps.core.case.case import Find
from steps.core.errors import cut

#: Takes a message, a hint and the words of a YAML path below the benchmark.
Wrong = Callable[..., None]
#: No fleet is kept for more.
MOST_POINTS = 64
#: Largest value of each knob; what is whole is no fraction.
KNOBS = {"batch_size": 65536, "request_rate": 1_000_000, "max_out_len": 1_000_000}
_LADDER = ({"from", "to", "times"}, {"from", "to", "step"})


def sweep(entry: Mapping[str, Any], wrong: Wrong) -> tuple[Mapping[str, Any], ...]:
    """What each point changes, in the order in which they are measured."""
    asked = entry.get("sweep")
    if not asked:
        return ()
    _alone(entry, "sweep", wrong)
    axes = []
    for knob, value in asked.items():
        axes.append(
            [dict(one) for one in value]
            if knob == "dataset"
            else [{knob: one} for one in _values(knob, value, wrong)]
        )
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MOST_POINTS:
        wrong(f"has {count} points, expected at most {MOST_POINTS}", "Leave some out.", "sweep")
        return ()
    points = (
        itertools.chain.from_iterable(map(dict.items, each)) for each in itertools.product(*axes)
    )
    return tuple(dict(point) for point in points)


def _values(knob: str, value: Any, wrong: Wrong) -> list[float]:
    """The values of a list or a ladder."""
    found = value if isinstance(value, list) else _ladder(knob, value, wrong)
    for at, one in enumerate(found):
        whole = knob != "request_rate"
        number = isinstance(one, int if whole else (int, float)) and not isinstance(one, bool)
        if not number or not 0 < one <= KNOBS[knob]:
            kind = "a whole number" if whole else "a number"
            message = f"found {cut(repr(one), 40)}, expected {kind} above 0, at most {KNOBS[knob]}"
            wrong(message, "", "sweep", knob, *([at] if isinstance(value, list) else []))
            return []
    if len(set(found)) < len(found):
        wrong(
            "has a value twice", "Each point is measured once; `repeat` does more.", "sweep", knob
        )
    return list(dict.fromkeys(found))


def _ladder(knob: str, value: Mapping[str, Any], wrong: Wrong) -> list[float]:
    """From a value to another, in equal factors or equal steps; the end is among them."""
    good = all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in value.values()
    )
    told = cut(str(dict(value)), 60)
    if set(value) not in _LADDER or not good:
        message = f"found {told}, expected numbers 'from', 'to', and 'times' or 'step'"
        wrong(message, "Such as {from: 1, to: 64, times: 2}.", "sweep", knob)
        return []
    low, high = value["from"], value["to"]
    times, step = value.get("times", 1), value.get("step", 0)
    if not 0 < low <= high or (times < 1.05 if "times" in value else step <= 0):
        hint = "It goes up: 'times' is at least 1.05, 'step' above 0."
        wrong(f"found {told}, which leads nowhere", hint, "sweep", knob)
        return []
    found: list[float] = []
    at = float(low)
    while at < high * (1 - 1e-9) and len(found) <= MOST_POINTS:
        found.append(at if knob == "request_rate" else round(at))
        at = at * times + step
    return list(dict.fromkeys([*found, high]))


def find(entry: Mapping[str, Any], wrong: Wrong) -> Find | None:
    """What is searched for."""
    asked = entry.get("find")
    if not asked:
        return None
    _alone(entry, "find", wrong)
    if entry.get("sweep"):
        wrong("stands beside 'sweep'", "Make two benchmarks of them.", "find")
    if entry.get("repeat", 1) > 1:
        wrong("is more than 1", "A search repeats by itself, near the border.", "repeat")
    limits = []
    for at, text in enumerate(asked["subject_to"]):
        try:
            limit = gates.parse(text)
        except ValueError as error:
            wrong(f"found {cut(text, 80)!r}, {error}", "", "find", "subject_to", at)
            continue
        share = limit.metric == "success_ratio"
        more_is_better = gates.METRICS[limit.metric][1] and not share
        odd = more_is_better or limit.metric == "duration_ms" or limit.of_baseline
        if odd or limit.op[0] not in (">=" if share else "<"):
            message = f"found {cut(text, 80)!r}, which is not surely broken by more load"
            hint = "Limit a time, such as 'tpot_p99_ms <= 50'."
            wrong(message, hint, "find", "subject_to", at)
        limits.append(limit)
    low, high = asked["within"]
    made = Find(
        asked["maximise"],
        tuple(limits),
        float(low),
        float(high),
        float(asked.get("tolerance", 0.05)),
    )
    if not low < high:
        wrong(f"found {low:g} to {high:g}, expected the lower first", "", "find", "within")
    elif made.knob == "batch_size" and not (low == int(low) >= 1 and high == int(high) <= 65536):
        message = f"found {low:g} to {high:g}, expected whole numbers from 1 to 65536"
        wrong(message, "They are requests in flight.", "find", "within")
    return made


def _alone(entry: Mapping[str, Any], key: str, wrong: Wrong) -> None:
    if entry["case_type"] != "performance":
        wrong(f"stands in a benchmark of {entry['case_type']}", "Only performance has loads.", key)
