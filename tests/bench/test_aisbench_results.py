"""A result counts only with all its evidence; held against what AISBench 3.1 really leaves."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from steps.bench_drivers.aisbench import results
from steps.core.case.case import Benchmark
from steps.core.case.gates import METRICS

from .conftest import SAMPLES

RUNS = json.loads((SAMPLES / "runs.json").read_text())


def benchmark(name: str) -> Benchmark:
    kind = "performance" if name.startswith("perf") else "accuracy"
    return Benchmark(name, kind, max_out_len=RUNS[name]["max_out_len"])


def read(name: str, work: Path | None = None, asked: int = 16) -> results.Found:
    entry = benchmark(name)
    performance = entry.case_type == "performance"
    model = "vllm-api-stream-chat" if performance else "vllm-api-general-chat"
    return results.read(
        work or SAMPLES / name, model, "gsm8k", entry, asked, stream=performance, size=16
    )


def failed(found: results.Found) -> dict[str, str]:
    return {c.name: c.detail for c in found.measurement.checks if c.status == "fail"}


@pytest.fixture
def copy(tmp_path: Path):
    def make(name: str) -> Path:
        work = tmp_path / name
        shutil.copytree(SAMPLES / name, work)
        return work

    return make


def only(work: Path, pattern: str) -> Path:
    [path] = work.rglob(pattern)
    return path


def test_a_good_performance_run():
    found = read("perf-good")
    assert failed(found) == {}
    metrics = found.measurement.metrics
    assert metrics["output_throughput"] == 557.0973
    assert metrics["total_throughput"] == 731.1902
    assert metrics["request_throughput"] == 34.8186
    assert (metrics["ttft_mean_ms"], metrics["ttft_p99_ms"]) == (24.1, 28.0)
    assert (metrics["tpot_median_ms"], metrics["e2el_max_ms"]) == (5.7, 116.1)
    assert metrics["success_ratio"] == 1
    assert set(metrics) <= set(METRICS)
    assert found.measurement.requests == {
        "asked": 16,
        "sent": 16,
        "ok": 16,
        "failed": 0,
        "empty": 0,
        "truncated": 0,
    }
    assert [row.index for row in found.rows] == list(range(16))
    assert all(row.output_tokens == 16 and row.text for row in found.rows)


def test_a_good_accuracy_run_and_what_cannot_be_known_of_it():
    found = read("accuracy-good")
    assert failed(found) == {}
    assert found.measurement.metrics == {"accuracy": 75.0, "success_ratio": 1.0}
    [cut] = [check for check in found.measurement.checks if check.name == "answers cut"]
    assert cut.status == "skipped" and "neither token counts" in cut.detail


def test_failed_requests_are_never_green_though_the_exit_code_was_0():
    assert RUNS["perf-failed"]["exit"] == 0
    found = read("perf-failed")
    assert failed(found) == {"requests failed": "5, the first: Internal Server Error"}
    assert found.measurement.requests["ok"] == 11


def test_failed_requests_scored_as_wrong_answers():
    assert RUNS["accuracy-failed"]["exit"] == 0
    found = read("accuracy-failed")
    assert "5, the first" in failed(found)["requests failed"]
    assert found.measurement.requests["sent"] == 16
    assert found.measurement.metrics["success_ratio"] == 11 / 16


def test_an_error_in_mid_stream_which_aisbench_counts_as_success():
    assert RUNS["perf-midstream"]["exit"] == 0
    found = read("perf-midstream")
    assert failed(found) == {
        "answers cut": "5, the first: request 0: its token count never came: the stream broke off"
    }
    assert found.measurement.requests["truncated"] == 5


def test_an_error_in_mid_stream_without_ignore_eos_is_seen_too():
    entry = Benchmark("x", "performance", max_out_len=16, sampling={"ignore_eos": False})
    found = results.read(
        SAMPLES / "perf-midstream", "vllm-api-stream-chat", "gsm8k", entry, 16, stream=True, size=16
    )
    assert list(failed(found)) == ["answers cut"]


def test_no_result_at_all():
    found = read("perf-all-failed")
    assert found.measurement.metrics == {}
    assert failed(found)["AISBench's results"] == "no readable csv and no json"
    assert failed(found)["requests failed"].startswith("16, ")


def test_a_score_of_dash_is_none():
    found = read("accuracy-none")
    assert failed(found)["score"] == "the summary has '-' for gsm8k"
    assert found.measurement.metrics == {}


def test_a_work_directory_that_is_not_there(tmp_path):
    for name in ("perf-good", "accuracy-good"):
        found = read(name, tmp_path / "nothing")
        assert failed(found) and not found.measurement.metrics


def test_fewer_requests_than_asked(copy):
    found = read("perf-good", copy("perf-good"), asked=17)
    assert failed(found) == {"requests sent": "found 16, expected 17"}
    found = read("accuracy-good", copy("accuracy-good"), asked=20)
    assert failed(found) == {"requests sent": "found 16, expected 20"}


def test_the_file_of_failures_alone_is_enough(copy):
    work = copy("perf-good")
    details = only(work, "gsm8k_details.jsonl")
    lines = details.read_text().splitlines(keepends=True)
    details.write_text("".join(lines[:-1]))
    (details.parent / "gsm8k_failed.jsonl").write_text('{"id": 15, "error_info": "Gone"}\n')
    found = read("perf-good", work)
    assert failed(found)["requests failed"] == "1, the first: Gone"


def test_failures_that_only_the_totals_know(copy):
    work = copy("perf-good")
    totals = only(work, "gsm8k.json")
    data = json.loads(totals.read_text())
    data["Failed Requests"]["total"] = 2
    totals.write_text(json.dumps(data))
    assert failed(read("perf-good", work))["requests failed"].startswith("2, ")


def change(path: Path, **fields: object) -> None:
    """Change the first line of a JSON lines file."""
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **fields}), *rest]) + "\n")


@pytest.mark.parametrize("tokens", [15, 17, 1])
def test_answers_that_are_not_as_long_as_asked(copy, tokens):
    work = copy("perf-good")
    change(only(work, "gsm8k_details.jsonl"), output_tokens=tokens)
    assert f"{tokens} tokens of 16" in failed(read("perf-good", work))["answers cut"]


def test_empty_answers(copy):
    work = copy("perf-good")
    change(only(work, "gsm8k_details.jsonl"), prediction=" \n")
    assert failed(read("perf-good", work)) == {"answers empty": "1, the first: request 0: no text"}
    work = copy("accuracy-good")
    change(only(work, "gsm8k.jsonl"), prediction="")
    assert failed(read("accuracy-good", work)) == {
        "answers empty": "1, the first: request 0: no text"
    }


def test_one_token_may_have_no_text(copy):
    work = copy("perf-good")
    details = only(work, "gsm8k_details.jsonl")
    lines = [json.loads(line) for line in details.read_text().splitlines()]
    lines = [{**line, "output_tokens": 1, "prediction": ""} for line in lines]
    details.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = Benchmark("x", "performance", max_out_len=1)
    found = results.read(work, "vllm-api-stream-chat", "gsm8k", entry, 16, stream=True, size=16)
    assert failed(found) == {}


@pytest.mark.parametrize("name", ["gsm8k.csv", "gsm8k.json", "gsm8k_details.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00 nothing \n"])
def test_results_that_are_absent_or_torn(copy, name, content):
    work = copy("perf-good")
    path = only(work, name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = read("perf-good", work)
    assert failed(found) or not found.measurement.metrics


def test_times_come_from_the_database(copy):
    work = copy("perf-good")
    details = only(work, "gsm8k_details.jsonl")
    line = json.loads(details.read_text().splitlines()[0])
    place = details.parent / "db_data"
    place.mkdir()
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4,), }"
    head += b" " * (118 - 1 - len(head)) + b"\n"
    times = struct.pack("<4d", 10.0, 10.5, 10.75, 11.0)
    blob = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + times
    store = sqlite3.connect(place / line["db_name"])
    store.execute("CREATE TABLE numpy_store (id INTEGER PRIMARY KEY, arr_blob BLOB)")
    number = line["time_points"]["__db_ref__"]
    store.execute("INSERT INTO numpy_store VALUES (?, ?)", (number, blob))
    store.commit()
    store.close()
    row = read("perf-good", work).rows[0]
    assert (row.begun, row.ttft, row.e2el, row.itl) == (0.0, 0.5, 1.0, [0.25, 0.25])


def test_requests_have_the_smoke_drivers_shape(tmp_path):
    from dataclasses import fields

    from steps.bench_drivers.smoke import Sample

    path = tmp_path / "requests.jsonl"
    rows = read("perf-good").rows
    results.write_requests(path, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 16
    assert list(lines[0]) == [f.name for f in fields(Sample)]
