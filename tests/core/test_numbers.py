"""Foreign numbers are finite or refused, and JSON has no others; here and in every module."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.core.case import gates, numbers
from steps.core.record.events import Event
from steps.core.record.records import BenchResult, bench_from, cause_from, record_from, to_dict
from steps.core.record.rundir import read_json, write_json
from tests.core.records import records_of
from tests.core.test_house import ROOT, modules, name_of, nodes_of
from tests.core.test_small import PLAN

#: Copied to other machines as they are, so they cannot import the writer.
ALONE = {"steps/core/case/numbers.py", "steps/core/system/machine.py", "k8s/pod.py"}


def short(value: object) -> str:
    return repr(value)[:20]


@pytest.mark.parametrize(
    ("value", "unit", "number"),
    [
        (12, "", 12), (12.5, "", 12.5), ("12", "", 12), ("-0.5", "", -0.5), ("1e3", "", 1000),
        ("557.0973 token/s", "token/s", 557.0973), ("1,557.1 token/s", "token/s", 1557.1),
        ("12,345,678 tokens/s", "token/s", 12345678), ("34.8 req/s", "req/s", 34.8),
        ("109.0 ms", "ms", 109), ("109.0ms", "ms", 109), ("0.109 s", "ms", 109),
        ("5 us", "ms", 0.005), ("\ufeff75.00", "%", 75), ("75 %", "%", 75), (75, "%", 75),
    ],
)  # fmt: skip
def test_what_a_number_is(value: Any, unit: str, number: float) -> None:
    assert numbers.finite(value, unit) == pytest.approx(number)


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("inf token/s", "token/s"), ("nan ms", "ms"), ("-inf", ""), ("NaN", ""), ("Infinity", ""),
        (math.inf, ""), (math.nan, ""), (True, ""), (False, ""), (None, ""), ([1], ""), ({}, ""),
        ("0x10", ""), ("1_0", ""), ("", ""), ("-", ""), ("1,55.7 token/s", "token/s"), ("1,5", ""),
        ("5 min", "ms"), ("5", "ms"), (5, "ms"), ("5 ms", "token/s"), ("5 token/s", ""),
        ("9" * 400, ""), ("9" * 60, ""), (10**400, ""), (10**25, ""), ("1e999", ""), ("1e99", ""),
        ("٣", ""), ("5 ms 6", "ms"), ("1 557.1 token/s", "token/s"), ("--5", ""),
    ],
    ids=short,
)  # fmt: skip
def test_what_no_number_is(value: Any, unit: str) -> None:
    with pytest.raises(numbers.Refused, match="expected a number") as refused:
        numbers.finite(value, unit)
    assert len(str(refused.value)) < 160


def test_bounds_are_said() -> None:
    with pytest.raises(numbers.Refused, match="found '-3 ms', expected a number in ms, at least 0"):
        numbers.finite("-3 ms", "ms", 0)
    with pytest.raises(numbers.Refused, match="at least 0 and at most 100"):
        numbers.finite("101", "%", 0, 100)


@pytest.mark.parametrize(("value", "number"), [(3, 3), (3.0, 3), ("3", 3), (0, 0)])
def test_whole_numbers(value: Any, number: int) -> None:
    assert numbers.whole(value) == number and isinstance(numbers.whole(value), int)


@pytest.mark.parametrize(
    "value",
    [None, True, 3.5, "3.0", "gsm8k-3", math.nan, math.inf, 10**400, -1, "-1", [3], "9" * 40],
    ids=short,
)
def test_no_whole_numbers(value: Any) -> None:
    with pytest.raises(numbers.Refused):
        numbers.whole(value)


ODD: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(ODD, st.sampled_from(sorted(numbers.UNITS)))
def test_anything_is_finite_or_refused(value: Any, unit: str) -> None:
    for read in (lambda: numbers.finite(value, unit), lambda: numbers.whole(value)):
        with contextlib.suppress(numbers.Refused):
            assert math.isfinite(read())


@given(st.floats(0, 1e9), st.sampled_from(["ms", "token/s", "req/s"]))
def test_what_aisbench_writes_is_read(number: float, unit: str) -> None:
    for text in (f"{number:.4f} {unit}", f"{number:,.4f} {unit}"):
        assert numbers.finite(text, unit, 0) == pytest.approx(number, abs=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "[Infinity]", '{"x": -Infinity}', "1e999", "[" * 200000, "", "{", "9" * 301,
        "9" * 5000, "\ufeff1",
    ],
    ids=short,
)  # fmt: skip
def test_what_no_json_is(text: str) -> None:
    with pytest.raises(ValueError):
        numbers.loads(text)


def test_nothing_writes_a_number_that_is_none(tmp_path: Any) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"kept": 1})
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError):
            numbers.dumps([value])
        with pytest.raises(ValueError):
            write_json(path, {"x": value})
    assert read_json(path) == {"kept": 1}


def test_a_file_with_a_number_that_is_none_is_torn(tmp_path: Any) -> None:
    for text in ('{"x": NaN}', "[" * 200000):
        (tmp_path / "x.json").write_text(text)
        assert read_json(tmp_path / "x.json") is None


@pytest.mark.parametrize("path", modules("ci", "k8s", "steps"), ids=name_of)
def test_every_module_writes_json_without_such_numbers(path: Any) -> None:
    alone = str(path.relative_to(ROOT)) in ALONE
    for node in nodes_of(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
            strict = "allow_nan=False" in map(ast.unparse, node.keywords)
            assert alone and strict, f"{path}:{node.lineno}: use steps.core.case.numbers.dumps"


# Records and gates


@pytest.mark.parametrize("value", [math.inf, math.nan, "12", None, True, 10**400], ids=short)
def test_a_record_with_a_metric_that_is_no_number_is_none(value: Any) -> None:
    good = BenchResult("chat", "smoke", "performance", "pass", metrics={"output_throughput": 1.0})
    assert bench_from(to_dict(good)) == good
    record = records_of(PLAN, benchmarks=(good,))[0]
    data = json.loads(numbers.dumps(to_dict(record)))
    assert record_from(data) is not None
    for change in (
        lambda entry: entry["metrics"].update(output_throughput=value),
        lambda entry: entry.update(runs=[{"output_throughput": value}]),
        lambda entry: entry.update(requests={"ok": value}),
        lambda entry: entry.update(seconds=value),
    ):
        odd = json.loads(json.dumps(data))
        change(odd["benchmarks"][0])
        assert record_from(odd) is None
    for change in (
        lambda record: record.update(started=value),
        lambda record: record["phases"][0].update(seconds=value),
        lambda record: record["processes"][0].update(started=value),
        lambda record: record["processes"][0].update(exit={"at": value, "how": "x"}),
    ):
        odd = json.loads(json.dumps(data))
        change(odd)
        assert record_from(odd) is None


@pytest.mark.parametrize("value", [math.inf, math.nan, "12", None, True, 10**400], ids=short)
def test_a_cause_with_odd_times_is_still_a_cause(value: Any) -> None:
    told = {"kind": "exit", "verdict": "crash", "reason": "died", "at": value, "seconds": value}
    cause = cause_from(told)
    assert cause is not None and (cause.at, cause.seconds, cause.reason) == (0.0, 0.0, "died")
    numbers.loads(numbers.dumps(to_dict(cause)))


@pytest.mark.parametrize("text", ["NaN", "1e999", '"12"', "true", "1e20", "-5", "9" * 400])
@pytest.mark.parametrize("name", ["time", "seconds"])
def test_an_event_with_a_time_that_is_none_is_no_event(name: str, text: str) -> None:
    event = Event(1000.0, "r", 0, "load", "phase-end", {"seconds": 5.0})
    line = event.to_json()
    assert Event.from_json(line) == event
    odd = line.replace({"time": "1000.0", "seconds": "5.0"}[name], text)
    assert odd != line and Event.from_json(odd) is None


@pytest.mark.parametrize("op", ["<=", ">=", "<", ">", "=="])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "5", True, 10**400], ids=short)
def test_a_metric_that_is_no_number_passes_no_gate(op: str, value: Any) -> None:
    for limit in ("1", "0", "-5"):
        held = gates.hold(gates.parse(f"ttft_p99_ms {op} {limit}"), {"ttft_p99_ms": value}, None)
        assert held.passed is False and held.found is None and held.reason
        json.loads(numbers.dumps(vars(held)))


@pytest.mark.parametrize("baseline", [math.inf, -math.inf, math.nan])
def test_a_baseline_that_is_no_number_passes_no_gate(baseline: float) -> None:
    for gate in ("output_throughput >= 0.9 * baseline", "output_throughput <= baseline"):
        held = gates.hold(gates.parse(gate), {"output_throughput": 5.0}, baseline)
        assert held.passed is False and held.limit is None


def test_a_gates_number_is_finite() -> None:
    with pytest.raises(ValueError, match="expected a number"):
        gates.parse(f"ttft_p99_ms <= {'9' * 100}")


@pytest.mark.parametrize(
    "text",
    ["1e999", "[1,-1E0400]", "9" * 301, f"[1,2,{'9' * 301}]", '{"a": [1' + "0" * 400 + "]}", "NaN"],
)
def test_what_no_number_can_be_is_refused_wherever_it_stands(text: str) -> None:
    with pytest.raises(numbers.Refused):
        numbers.loads(text)


def test_large_numbers_that_a_float_has_are_read() -> None:
    assert numbers.loads(f"[1e20, {'9' * 250}, 1.5e-3]") == [1e20, int("9" * 250), 0.0015]
