"""Values out of JSON that another program wrote: whole, or refused with the field's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from steps.core.case.values import decode, salvage
from steps.core.plan.cluster import Cluster, Rehearsal
from steps.core.plan.plan import from_json, to_json
from tests.core.cases import ROUTING, SPLIT, cluster_of, plan_of


@dataclass(frozen=True)
class Part:
    name: str
    size: float = 1.0


@dataclass(frozen=True)
class Whole:
    index: int
    on: bool = False
    code: int | None = None
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    named: Mapping[str, Part] = field(default_factory=dict)
    deep: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    free: Any = None


GOOD: dict[str, Any] = {
    "index": 3,
    "on": True,
    "code": None,
    "part": {"name": "a", "size": 2},
    "parts": [{"name": "b"}],
    "named": {"x": {"name": "c", "size": 0.5}},
    "deep": {"y": {"z": [1, 2]}},
    "free": [{"any": None}],
}


def test_what_was_written_is_read_back() -> None:
    whole = decode(Whole, GOOD)
    assert whole.part == Part("a", 2)
    assert whole.parts == (Part("b"),)
    assert whole.deep == {"y": {"z": (1, 2)}}
    assert decode(Whole, json.loads(json.dumps(asdict(whole)))) == whole
    assert decode(Whole, {"index": 1}) == Whole(1)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"index": "3"}, "index: found '3', expected a whole number"),
        ({"index": True}, "index: found True, expected a whole number"),
        ({"index": 1.0}, "index: found 1.0, expected a whole number"),
        ({"on": 1}, "on: found 1, expected true or false"),
        ({"code": "1"}, "code: found '1', expected a whole number"),
        ({"part": {"name": None}}, "part.name: found None, expected text"),
        ({"part": {}}, "part.name: it is missing"),
        ({"part": [1]}, "part: found a list, expected an object"),
        ({"parts": [{"name": "a"}, {"name": 1}]}, "parts[1].name: found 1, expected text"),
        ({"parts": {"name": "a"}}, "parts: found an object, expected a list"),
        ({"parts": "ab"}, "parts: found 'ab', expected a list"),
        ({"named": {"x": {"name": "a", "size": "big"}}}, "named.x.size: found 'big', expected a"),
        ({"named": {"x": {"name": "a", "size": float("inf")}}}, "named.x.size: found inf, exp"),
        ({"deep": {"y": {"z": [1, 2, []]}}}, "deep.y.z[2]: found a list, expected a whole number"),
        ({"more": 1}, "found 'more', which Whole does not have"),
    ],
)
def test_what_is_odd_is_refused_with_its_place(odd: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        decode(Whole, {**GOOD, **odd})
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("value", [None, 7, "x", [], [[]]])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected an object"):
        decode(Whole, value)
    with pytest.raises(ValueError, match="expected an object"):
        salvage(Whole, value, {"index": 0})


def test_a_refusal_is_short_whatever_was_found() -> None:
    for odd in ({"i" * 10000: 1}, {"index": "9" * 10000}, {"named": {"k" * 10000: 1}}):
        with pytest.raises(ValueError) as caught:
            decode(Whole, {**GOOD, **odd})
        assert len(str(caught.value)) < 200


def test_spare_fields_may_be_dropped_and_lost_ones_replaced() -> None:
    assert decode(Whole, {"index": 1, "later": 2}, spare=True) == Whole(1)
    torn = {"index": "x", "on": 3, "code": 5, "later": 2}
    assert salvage(Whole, torn, {"index": 9}) == Whole(9, code=5)


@pytest.mark.parametrize("rehearsed", [True, False])
def test_a_plan_and_a_cluster_come_back_as_they_were(rehearsed: bool) -> None:
    for text in (SPLIT, ROUTING):
        plan = plan_of(text, rehearsed=rehearsed, proxy_script="/w/p.py")
        assert from_json(to_json(plan)) == plan
        assert to_json(from_json(to_json(plan))) == to_json(plan)
    cluster = cluster_of(2)
    assert decode(Cluster, json.loads(json.dumps(cluster.to_dict()))) == cluster
    with_stand_ins = {**cluster.to_dict(), "rehearsal": {"load_seconds": 2, "faults": ["x"]}}
    assert decode(Cluster, with_stand_ins).rehearsal == Rehearsal(2, ("x",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan["nodes"][1].update(index="1"), "nodes[1].index: found '1'"),
        (lambda plan: plan["budgets"]["load"].pop("stall"), "budgets.load.stall: it is missing"),
        (lambda plan: plan.update(extra=1), "found 'extra', which Plan does not have"),
        (lambda plan: plan.pop("schema"), "KeyError: 'schema'"),
    ],
)
def test_a_torn_plan_names_the_field(change: Any, words: str) -> None:
    data = asdict(plan_of(SPLIT))
    change(data)
    with pytest.raises(ValueError, match="not a plan of this version") as caught:
        from_json(json.dumps(data))
    assert words in str(caught.value)
