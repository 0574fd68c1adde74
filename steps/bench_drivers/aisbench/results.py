"""Reading what AISBench left, and believing none of it unchecked.

Enters: AISBench's work directory, and what was asked for. Leaves:
:class:`Found`: a measurement with its evidence, and a row a request. Touches:
reads those files; writes ``requests.jsonl``.

AISBench 3.1 ends with code 0 when requests failed, when answers were cut by an
error in mid-stream (a success to it, without a token count) and when there is
no score at all.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from steps.bench_drivers import Measurement, Sample
from steps.core.case import Benchmark
from steps.core.records import Check

_ROWS = {"E2EL": "e2el", "TTFT": "ttft", "TPOT": "tpot", "ITL": "itl"}
_COLUMNS = {
    "Average": "mean",
    "Min": "min",
    "Max": "max",
    "Median": "median",
    "P75": "p75",
    "P90": "p90",
    "P95": "p95",
    "P99": "p99",
}
_TOTALS = {
    "Output Token Throughput": "output_throughput",
    "Total Token Throughput": "total_throughput",
    "Request Throughput": "request_throughput",
}
#: Gaps between chunks kept in ``requests.jsonl``; all of them stay in AISBench's own database.
GAPS_KEPT = 200_000
TEXT_KEPT = 2000


@dataclass(frozen=True)
class Found:
    """The measurement and its requests."""

    measurement: Measurement
    rows: tuple[Sample, ...] = ()


def read(
    work: Path,
    model: str,
    data: str,
    benchmark: Benchmark,
    asked: int,
    *,
    stream: bool,
    size: int,
) -> Found:
    """What is in AISBench's work directory.

    Args:
        model, data: the ``abbr`` of both, which name the files.
        asked: how many requests there must be.
        size: how many questions the data set has.
    """
    run = _newest(work)
    reader = _performance if benchmark.case_type == "performance" else _accuracy
    return reader(_Run(run, model, data, asked, stream, size), benchmark)


def exit_check(code: int) -> Check:
    """AISBench's exit code, when it is not 0."""
    return Check("ais_bench ended well", "fail", f"exit code {code}")


@dataclass(frozen=True)
class _Run:
    """One run's directory and what is expected in it."""

    path: Path
    model: str
    data: str
    asked: int
    stream: bool
    size: int

    def file(self, kind: str, suffix: str) -> Path:
        """A result file."""
        return self.path / kind / self.model / f"{self.data}{suffix}"


def _newest(work: Path) -> Path:
    """AISBench's directory, named by the second; ``work`` is fresh, so there is one."""
    found = sorted(path for path in work.glob("[0-9]*_[0-9]*") if path.is_dir())
    return found[-1] if found else work / "none"


# Performance


def _performance(run: _Run, benchmark: Benchmark) -> Found:
    exact = bool(benchmark.sampling.get("ignore_eos", True))
    lines = _jsonl(run.file("performances", "_details.jsonl"))
    failed_lines = _jsonl(run.file("performances", "_failed.jsonl"))
    totals = _json(run.file("performances", ".json"))
    table = _table(run.file("performances", ".csv"))
    rows = _rows(lines, run.path / "performances" / run.model / "db_data")
    good = [row for row in rows if not row.error]
    failed = [row for row in rows if row.error]
    missing = _lost(failed_lines, rows)
    empty = [row for row in good if not _answered(row, benchmark.max_out_len)]
    cut = [row for row in good if row not in empty and _cut(row, benchmark.max_out_len, exact)]
    count = _whole(totals, "Total Requests")
    told = _whole(totals, "Failed Requests")
    errors = [*[row.error for row in failed], *missing]
    if told and told > len(errors):
        errors += ["AISBench does not say why"] * (told - len(errors))
    checks = (
        _present("AISBench's results", {"csv": bool(table), "json": bool(totals)}),
        _present("AISBench's details", {"details.jsonl": bool(lines)}),
        _asked(run, max(len(rows), count or 0) if count is not None else len(rows)),
        _count("requests failed", errors),
        _count("answers empty", [_told(row, "no text") for row in empty]),
        _count("answers cut", [_told(row, _short(row, benchmark, exact)) for row in cut]),
    )
    requests = {
        "asked": run.asked,
        "sent": len(rows),
        "ok": len(good) - len(empty) - len(cut),
        "failed": len(errors),
        "empty": len(empty),
        "truncated": len(cut),
    }
    metrics = {**_totals(totals), **_latencies(table)}
    if metrics:
        metrics["success_ratio"] = _share(requests)
    return Found(Measurement(metrics, requests, checks), rows)


def _answered(row: Sample, wanted: int) -> bool:
    """Whether there is an answer; a single token asked for may well have no text of its own."""
    return bool(row.text.strip()) or (wanted == 1 and row.output_tokens == 1)


def _cut(row: Sample, wanted: int, exact: bool) -> bool:
    """Whether an answer stopped early; one whose token count never came did so in mid-stream."""
    return row.output_tokens != wanted if exact else row.output_tokens == 0


def _short(row: Sample, benchmark: Benchmark, exact: bool) -> str:
    if row.output_tokens == 0:
        return "its token count never came: the stream broke off"
    return f"{row.output_tokens} tokens" + (f" of {benchmark.max_out_len}" if exact else "")


def _rows(lines: Sequence[Mapping[str, Any]], databases: Path) -> tuple[Sample, ...]:
    """A row a request, in the order of the questions, with times where the database has them."""
    times: dict[str, dict[int, list[float]]] = {}
    paired: list[tuple[Sample, list[float]]] = []
    for line in lines:
        name = str(line.get("db_name") or "")
        if name and name not in times:
            times[name] = _time_points(databases / name)
        points = line.get("time_points")
        ref = points.get("__db_ref__") if isinstance(points, dict) else None
        error = "" if line.get("success") else str(line.get("error_info") or "failed")
        row = Sample(
            index=int(line.get("id", len(paired))),
            input_tokens=int(line.get("input_tokens") or 0),
            output_tokens=int(line.get("output_tokens") or 0),
            text=_text(line.get("prediction")),
            error=error,
        )
        paired.append((row, times.get(name, {}).get(ref or 0, [])))
    start = min((points[0] for _, points in paired if points), default=0.0)
    room = GAPS_KEPT
    for row, points in sorted(paired, key=lambda pair: pair[0].index):
        if len(points) > 1:
            row.begun = round(points[0] - start, 6)
            row.e2el = round(points[-1] - points[0], 6)
            row.ttft = round(points[1] - points[0], 6)
            if len(points) - 2 <= room:
                row.itl = [round(b - a, 6) for a, b in pairwise(points[1:])]
                room -= len(row.itl)
    return tuple(row for row, _ in sorted(paired, key=lambda pair: pair[0].index))


def _time_points(path: Path) -> dict[int, list[float]]:
    """Row id -> the times of a request's chunks, from AISBench's database of NumPy arrays."""
    found: dict[int, list[float]] = {}
    if not path.is_file():
        return found
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as store:
        for number, blob in store.execute("SELECT id, arr_blob FROM numpy_store"):
            found[int(number)] = _array(blob)
    return found


def _array(blob: bytes) -> list[float]:
    """A one-dimensional array of doubles in NumPy's file format; empty when it is none."""
    if blob[:6] != b"\x93NUMPY" or len(blob) < 12:
        return []
    wide = blob[6] > 1
    (length,) = struct.unpack_from("<I" if wide else "<H", blob, 8)
    start = (12 if wide else 10) + length
    try:
        head = ast.literal_eval(blob[start - length : start].decode("latin-1"))
        if head["descr"] != "<f8":
            return []
        return list(struct.unpack_from(f"<{head['shape'][0]}d", blob, start))
    except (ValueError, SyntaxError, KeyError, IndexError, TypeError, struct.error):
        return []


def _lost(failed: Iterable[Mapping[str, Any]], rows: Iterable[Sample]) -> list[str]:
    """Failures that only the list of failures knows."""
    known = {row.index for row in rows if row.error}
    return [
        str(line.get("error_info") or "failed")
        for line in failed
        if int(line.get("id", -1)) not in known
    ]


def _totals(data: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for key, metric in _TOTALS.items():
        value = _number(_total(data, key))
        if value is not None:
            found[metric] = value
    return found


def _latencies(table: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Milliseconds by our names; rows that are absent (one chunk, no stream) stay absent."""
    found = {}
    for row in table:
        name = _ROWS.get(row.get("Performance Parameters", ""))
        if name is None or row.get("Stage") != "total":
            continue
        for column, stat in _COLUMNS.items():
            value = _number(row.get(column))
            if value is not None:
                found[f"{name}_{stat}_ms"] = value
    return found


# Accuracy


def _accuracy(run: _Run, benchmark: Benchmark) -> Found:
    lines = _jsonl(run.file("predictions", ".jsonl"))
    failed_lines = _jsonl(run.file("predictions", "_failed.jsonl"))
    rows = tuple(
        sorted(
            (
                *(_answer(line, "") for line in lines if line.get("success", True)),
                *(_answer(line, str(line.get("error_info") or "failed")) for line in failed_lines),
            ),
            key=lambda row: row.index,
        )
    )
    failed = [row for row in rows if row.error]
    empty = [row for row in rows if not row.error and not row.text.strip()]
    score, said = _score(run)
    checks = (
        _asked(run, len(rows)),
        _count("requests failed", [row.error for row in failed]),
        _count("answers empty", [_told(row, "no text") for row in empty]),
        Check(
            "answers cut",
            "skipped",
            "AISBench keeps neither token counts nor finish reasons of an accuracy run",
        ),
        Check("score", "fail" if score is None else "pass", said),
    )
    requests = {
        "asked": run.asked,
        "sent": len(rows),
        "ok": len(rows) - len(failed) - len(empty),
        "failed": len(failed),
        "empty": len(empty),
        "truncated": 0,
    }
    metrics = {} if score is None else {"accuracy": score, "success_ratio": _share(requests)}
    return Found(Measurement(metrics, requests, checks), rows)


def _answer(line: Mapping[str, Any], error: str) -> Sample:
    return Sample(int(line.get("id", 0)), text=_text(line.get("prediction")), error=error)


def _score(run: _Run) -> tuple[float | None, str]:
    """The score in %, from the last column of the summary; and what to say of it."""
    files = sorted((run.path / "summary").glob("summary_*.csv"))
    if not files:
        return None, "there is no summary"
    for row in _table(files[-1]):
        if row.get("dataset") == run.data:
            text = list(row.values())[-1]
            value = _number(text)
            if value is None:
                return None, f"the summary has '{text}' for {run.data}"
            return value, f"{row.get('metric', 'score')} {text}"
    return None, f"the summary has no line for {run.data}"


# Both


def write_requests(path: Path, rows: Iterable[Sample], *, keep_text: bool) -> None:
    """One JSON line a request, in the smoke driver's shape; long texts are shortened."""
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            text = row.text[:TEXT_KEPT] if keep_text else ""
            out.write(json.dumps({**vars(row), "text": text}) + "\n")


def _asked(run: _Run, found: int) -> Check:
    note = ""
    if run.asked == run.size:
        note = f", all of the data set's {run.size} questions"
    if found == run.asked:
        return Check("requests sent", "pass", f"{found}{note}")
    return Check("requests sent", "fail", f"found {found}, expected {run.asked}{note}")


def _present(name: str, files: Mapping[str, bool]) -> Check:
    absent = [file for file, there in files.items() if not there]
    if absent:
        return Check(name, "fail", f"no readable {' and no '.join(absent)}")
    return Check(name, "pass", ", ".join(files))


def _count(name: str, said: Sequence[str]) -> Check:
    if not said:
        return Check(name, "pass", "0")
    return Check(name, "fail", f"{len(said)}, the first: {said[0][:300]}")


def _told(row: Sample, what: str) -> str:
    return f"request {row.index}: {what}"


def _share(requests: Mapping[str, int]) -> float:
    return round(max(0, requests["ok"]) / requests["asked"], 6) if requests["asked"] else 0.0


def _total(data: Mapping[str, Any], key: str) -> Any:
    entry = data.get(key)
    return entry.get("total") if isinstance(entry, dict) else None


def _whole(data: Mapping[str, Any], key: str) -> int | None:
    value = _number(_total(data, key))
    return None if value is None else int(value)


def _number(value: Any) -> float | None:
    """``12``, ``"12.5"`` or ``"12.5 token/s"``; None for anything else."""
    try:
        return float(str(value).split()[0])
    except (ValueError, IndexError):
        return None


def _text(prediction: Any) -> str:
    if isinstance(prediction, list):
        return "\n".join(map(str, prediction))
    return "" if prediction is None else str(prediction)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file; torn lines, such as a killed writer leaves, are left out."""
    found = []
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as source:
        for line in source:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
    return found


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        if isinstance(value, dict):
            return value
    return {}


def _table(path: Path) -> list[dict[str, str]]:
    with (
        contextlib.suppress(OSError, csv.Error),
        path.open(encoding="utf-8", errors="replace", newline="") as source,
    ):
        return [dict(row) for row in csv.DictReader(source)]
    return []
