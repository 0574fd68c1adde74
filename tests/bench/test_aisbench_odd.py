"""AISBench leaves numbers that are none, and rows that cannot be read: never green, no crash."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps import bench as bench_step
from steps.bench_drivers import Measurement
from steps.bench_drivers.aisbench import material, results
from steps.bench_drivers.hub import NotHere
from steps.core.case.case import Benchmark
from steps.core.case.numbers import dumps, loads
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record.records import Check

from .conftest import SAMPLES
from .test_aisbench_results import failed, only, read

Change = Callable[[str], str]


def row(**fields: Any) -> Change:
    """The fourth row of the details with other fields."""

    def change(text: str) -> str:
        lines = text.splitlines(keepends=True)
        lines[3] = json.dumps({**json.loads(lines[3]), **fields}) + "\n"
        return "".join(lines)

    return change


def swap(pattern: str, new: str) -> Change:
    return lambda text: re.sub(pattern, new, text, count=1)


def leave(work: Path, name: str, change: Change) -> None:
    path = only(work, name)
    path.write_text(change(path.read_text()))


def copied(folder: Path, name: str = "perf-good") -> Path:
    shutil.copytree(SAMPLES / name, folder / name)
    return folder / name


DETAILS, TOTALS, TABLE = "gsm8k_details.jsonl", "gsm8k.json", "gsm8k.csv"
ROWS: dict[str, Change] = {
    "id is null": row(id=None),
    "id is text": row(id="gsm8k-3"),
    "id is true": row(id=True),
    "tokens are NaN": row(output_tokens=float("nan")),
    "tokens are infinite": row(output_tokens=float("inf")),
    "tokens are text": row(output_tokens="16.0"),
    "tokens are a fraction": row(output_tokens=15.5),
    "tokens have 400 digits": row(input_tokens=10**400),
    "tokens are a list": row(input_tokens=[5]),
    "success is text": row(success="false"),
    "reference is a list": row(time_points={"__db_ref__": [1]}),
    "nested deep": lambda text: text.replace("}\n", ', "x": ' + "[" * 9000 + "]" * 9000 + "}\n", 1),
    "no object": swap(r"\{.*\}\n\Z", "[1, 2]\n"),
    "null": swap(r"\{.*\}\n\Z", "null\n"),
    "torn": swap(r"\{.*\}\n\Z", '{"id": 1'),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_cannot_be_read_fails_its_check_and_the_others_count(tmp_path, name):
    work = copied(tmp_path)
    leave(work, DETAILS, ROWS[name])
    found = read("perf-good", work)
    [check] = failed(found).items()
    assert check[0] == "AISBench's details"
    assert check[1].startswith("1 row cannot be read, the first: gsm8k_details.jsonl:")
    assert found.measurement.requests["ok"] == len(found.rows) == 15
    assert found.measurement.requests["sent"] == 16
    assert found.measurement.metrics["output_throughput"] == 557.0973
    results.write_requests(tmp_path / "requests.jsonl", found.rows)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        (TOTALS, swap("557.0973", "inf"), "Output Token Throughput: found 'inf token/s'"),
        (TOTALS, swap("557.0973", "nan"), "Output Token Throughput: found 'nan token/s'"),
        (TOTALS, swap("557.0973", "-5"), "at least 0"),
        (TOTALS, swap("557.0973 token/s", "557.0973 ms"), "expected a number in token/s"),
        (TOTALS, swap('"557.0973 token/s"', "1e999"), "no readable json"),
        (TOTALS, swap('"total": 16', '"total": NaN'), "no readable json"),
        (TOTALS, swap('"total": 16', '"total": "many"'), "Total Requests: found 'many'"),
        (TOTALS, swap("Failed Requests", "Failed"), "Failed Requests: found None"),
        (TOTALS, swap("Output Token Throughput", "Output"), "Output Token Throughput: found None"),
        (TOTALS, lambda text: "[" * 9000, "no readable json: nested too deeply"),
        (TABLE, swap("109.0 ms", "nan ms"), "E2EL Average: found 'nan ms'"),
        (TABLE, swap("28.0 ms", "inf ms"), "TTFT P99: found 'inf ms'"),
        (TABLE, swap("28.0 ms", "0x1c ms"), "TTFT P99: found '0x1c ms'"),
        (TABLE, swap("E2EL,total", "E2EL,stable"), "E2EL Average: found None"),
        (TABLE, swap("Average", "Mean"), "E2EL Average: found None"),
    ],
)
def test_values_that_are_none_or_absent_are_no_evidence(tmp_path, file, change, named):
    work = copied(tmp_path)
    leave(work, file, change)
    found = read("perf-good", work)
    assert named in failed(found)["AISBench's results"]
    loads(dumps(asdict(found.measurement)))


@pytest.mark.parametrize(
    ("file", "change", "metric", "value"),
    [
        (TOTALS, swap("557.0973", "1,557.1"), "output_throughput", 1557.1),
        (TABLE, lambda text: "\ufeff" + text, "e2el_mean_ms", 109.0),
        (TABLE, swap("109.0 ms", "0.109 s"), "e2el_mean_ms", 109.0),
        (TABLE, swap("109.0 ms", '"1,109.0 ms"'), "e2el_mean_ms", 1109.0),
        (DETAILS, lambda text: "\ufeff" + text, "success_ratio", 1.0),
    ],
)
def test_other_spellings_are_read(tmp_path, file, change, metric, value):
    work = copied(tmp_path)
    leave(work, file, change)
    found = read("perf-good", work)
    assert failed(found) == {}
    assert found.measurement.metrics[metric] == pytest.approx(value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("bad \ud83d \x00\x1b[31m\n</script>", "bad \ufffd \ufffd </script>"),
        ("\x00", "failed"),
        (0, "failed"),
    ],
)
def test_an_error_is_told_plainly_and_is_one_whatever_it_says(tmp_path, said, told):
    work = copied(tmp_path)
    leave(work, DETAILS, row(success=False, error_info=said))
    assert failed(read("perf-good", work)) == {"requests failed": f"1, the first: {told}"}


@pytest.mark.parametrize("score", ["nan", "inf", "-1", "100.5", "0x10", "1e9", "", "75 ms"])
def test_a_score_is_a_share_of_100(tmp_path, score):
    work = copied(tmp_path, "accuracy-good")
    leave(work, "summary_*.csv", swap("75.00", score))
    found = read("accuracy-good", work)
    assert "score" in failed(found) and found.measurement.metrics == {}


@pytest.mark.parametrize("fields", [{"id": None}, {"id": "x"}, {"success": "no"}])
def test_an_odd_answer_of_an_accuracy_run(tmp_path, fields):
    work = copied(tmp_path, "accuracy-good")
    leave(work, "predictions/*/gsm8k.jsonl", row(**fields))
    found = read("accuracy-good", work)
    assert "gsm8k.jsonl:4" in failed(found)["AISBench's details"]
    assert len(found.rows) == 15


def database(work: Path, *times: float) -> None:
    """AISBench's database with the times of the first request."""
    details = only(work, DETAILS)
    line = json.loads(details.read_text().splitlines()[0])
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({len(times)},), }}\n".encode()
    blob = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
    blob += struct.pack(f"<{len(times)}d", *times)
    place = details.parent / "db_data"
    place.mkdir()
    store = sqlite3.connect(place / line["db_name"])
    store.execute("CREATE TABLE numpy_store (id, arr_blob)")
    store.execute("INSERT INTO numpy_store VALUES (1, ?)", (blob,))
    store.execute("INSERT INTO numpy_store VALUES ('x', ?)", (blob,))
    store.execute("INSERT INTO numpy_store VALUES (2, NULL)")
    store.execute("INSERT INTO numpy_store VALUES (3, ?)", (blob[:10] + b"[" * 90,))
    store.commit()
    store.close()


@pytest.mark.parametrize(
    "times", [(1.0, float("nan"), 2.0), (1.0, 2.0, float("inf")), (3.0, 2.0, 1.0)]
)
def test_times_that_are_none(tmp_path, times):
    work = copied(tmp_path)
    database(work, *times)
    found = read("perf-good", work)
    assert "request 0: its times" in failed(found)["AISBench's details"]
    results.write_requests(tmp_path / "requests.jsonl", found.rows)
    assert [loads(line)["e2el"] for line in (tmp_path / "requests.jsonl").open()] == [0.0] * 16


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
FIELDS = ("id", "success", "error_info", "time_points", "input_tokens", "output_tokens",
          "prediction", "db_name", "turn_id")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUE, min_size=1, max_size=3))
def test_any_odd_row_leaves_the_others(fields: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = copied(Path(folder))
        leave(work, DETAILS, row(**fields))
        found = read("perf-good", work)
        results.write_requests(Path(folder) / "requests.jsonl", found.rows)
        lines = (Path(folder) / "requests.jsonl").read_text().splitlines()
    assert found.measurement.requests["ok"] >= 15
    assert len([loads(line) for line in lines]) >= 15
    assert found.measurement.requests["ok"] == 16 or failed(found)
    loads(dumps(asdict(found.measurement)))


TEXT = st.from_regex(r"[-+]?[0-9,.]{0,8}(inf|nan|e9|e999|x)?[ _]?(ms|s|token/s)?", fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["557.0973 token/s", "34.8186 req/s"]), TEXT | VALUE)
def test_any_odd_total_is_finite_or_fails(known: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = copied(Path(folder))
        leave(work, TOTALS, lambda text: text.replace(json.dumps(known), json.dumps(value), 1))
        found = read("perf-good", work)
    metric = "output_throughput" if "token" in known else "request_throughput"
    assert (metric in found.measurement.metrics) != ("AISBench's results" in failed(found))
    loads(dumps(asdict(found.measurement)))


# What any driver measures


@pytest.mark.parametrize("value", [float("inf"), float("nan"), None, "5", True])
def test_a_driver_that_measures_no_number_fails(value):
    entry = BenchmarkPlan(Benchmark("x", "performance", max_out_len=1), "smoke", ())
    odd = Measurement({"output_throughput": value, "ttft_mean_ms": 1.0}, {}, (Check("a", "pass"),))
    good = Measurement({"output_throughput": 5.0, "ttft_mean_ms": 1.0})
    for found in ([odd], [good, odd], [odd, good, good]):
        result = bench_step.judge(entry, found, 0.0, 1.0, "x")
        assert result.status == "fail" and "output_throughput" in result.reason
        assert result.metrics == {"ttft_mean_ms": 1.0}
        loads(dumps(asdict(result)))


@pytest.mark.parametrize("line", ["{", "null", '{"question": 1}', '{"image": 5}', "[" * 9000])
def test_a_data_set_whose_pictures_cannot_be_read(tmp_path, line):
    data = tmp_path / "x.jsonl"
    data.write_text(line + "\n")
    with pytest.raises(NotHere, match=r"x\.jsonl:1"):
        material.absolute_images(material.Material(data, 1, tmp_path), tmp_path / "images")
