"""Reading what AISBench left, and believing none of it unchecked.

Enters: AISBench's work directory, and what was asked for. Leaves:
:class:`Found`: a measurement with its evidence, and a row a request. Touches:
reads those files; writes ``requests.jsonl``.

AISBench 3.1 ends with code 0 when requests failed, when answers were cut by an
error in mid-stream (a success to it, without a token count) and when there is
no score at all. A number or a row that cannot be read fails a check, which
names it; the others count.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import sqlite3
import statistics
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from steps import bench_drivers
from steps.bench_drivers import Measurement, Sample
from steps.core import foreign
from steps.core.case.case import Benchmark
from steps.core.case.numbers import Refused, finite, is_finite, loads, whole
from steps.core.record.records import Check

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
    "Output Token Throughput": ("output_throughput", "token/s"),
    "Input Token Throughput": ("input_throughput", "token/s"),
    "Total Token Throughput": ("total_throughput", "token/s"),
    "Request Throughput": ("request_throughput", "req/s"),
    "Prefill Token Throughput": ("prefill_throughput", "token/s"),
    "Benchmark Duration": ("duration_ms", "ms"),
}
#: Totals that not every AISBench writes: what is gated by one must be there.
_MAYBE = ("Input Token Throughput", "Prefill Token Throughput", "Benchmark Duration")
_T = TypeVar("_T")
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
    others: Sequence[str] = (),
) -> Found:
    """What is in AISBench's work directory.

    Args:
        model, data: the ``abbr`` of both, which name the files.
        asked: how many requests there must be; 0: nobody knows.
        size: how many questions the data set has; 0: nobody counted.
        others: further data sets of an accuracy run.
    """
    run = _newest(work)
    reader = _performance if benchmark.case_type == "performance" else _accuracy
    return reader(_Run(run, model, (data, *others), asked, stream, size), benchmark)


def exit_check(code: int) -> Check:
    """AISBench's exit code, when it is not 0."""
    return Check("ais_bench ended well", "fail", f"exit code {code}")


@dataclass(frozen=True)
class _Run:
    """One run's directory and what is expected in it."""

    path: Path
    model: str
    data: tuple[str, ...]
    asked: int
    stream: bool
    size: int

    def file(self, kind: str, suffix: str, at: int = 0) -> Path:
        """A result file, of the first data set unless another is asked for."""
        return self.path / kind / self.model / f"{self.data[at]}{suffix}"


def _newest(work: Path) -> Path:
    """AISBench's directory, named by the second; ``work`` is fresh, so there is one."""
    found = sorted(path for path in work.glob("[0-9]*_[0-9]*") if path.is_dir())
    return found[-1] if found else work / "none"


# Performance


def _performance(run: _Run, benchmark: Benchmark) -> Found:
    exact = bool(benchmark.sampling.get("ignore_eos", True))
    timed, odd = _lines(run.file("performances", "_details.jsonl"), _timed)
    lost, odd_failed = _lines(run.file("performances", "_failed.jsonl"), _failure)
    rows, odd_times = _rows(timed, run.path / "performances" / run.model / "db_data", run.stream)
    metrics, counts, results = _results(run)
    good = [row for row in rows if not row.error]
    failed = [row for row in rows if row.error]
    known = {row.index for row in failed}
    missing = [row.error for row in lost if row.index not in known]
    empty = [row for row in good if not _answered(row, benchmark.max_out_len)]
    cut = [row for row in good if row not in empty and _cut(row, benchmark.max_out_len, exact)]
    errors = [*[row.error for row in failed], *missing]
    failures = max(len(errors), counts.get("Failed Requests", 0))
    sent = len(rows) + len(odd)
    checks = (
        results,
        _readable(bool(timed or odd), [*odd, *odd_failed, *odd_times]),
        _asked(run, max(sent, counts.get("Total Requests", 0))),
        _count("requests failed", errors, failures),
        _count("answers empty", [_told(row, "no text") for row in empty]),
        _count("answers cut", [_told(row, _short(row, benchmark, exact)) for row in cut]),
    )
    requests = {
        "asked": run.asked,
        "sent": sent,
        "ok": len(good) - len(empty) - len(cut),
        "failed": failures,
        "empty": len(empty),
        "truncated": len(cut),
    }
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


@dataclass(frozen=True)
class _Timed:
    """A request, and where the times of its chunks lie: database and row."""

    row: Sample
    database: str
    reference: int


def _timed(line: Mapping[str, Any]) -> _Timed:
    """A line of the details."""
    row = _sample(line, line.get("success"))
    for name in ("input_tokens", "output_tokens"):
        value = line.get(name)
        setattr(row, name, _field(name, whole, 0 if value is None else value))
    points = line.get("time_points")
    reference = points.get("__db_ref__") if isinstance(points, dict) else None
    row_of = _field("time_points", whole, reference or 0)
    return _Timed(row, str(line.get("db_name") or ""), row_of)


def _failure(line: Mapping[str, Any]) -> Sample:
    """A line of the list of failures."""
    return _sample(line, False)


def _sample(line: Mapping[str, Any], success: Any) -> Sample:
    if not isinstance(success, bool):
        raise Refused(f"success: found {str(success)[:40]!r}, expected true or false")
    said = " ".join(foreign.line(line.get("error_info") or "").split())
    error = "" if success else said if said.strip("\N{REPLACEMENT CHARACTER} ") else "failed"
    number = _field("id", whole, line.get("id"))
    return Sample(number, text=_text(line.get("prediction")), error=error)


def _rows(
    timed: Sequence[_Timed], databases: Path, stream: bool
) -> tuple[tuple[Sample, ...], list[str]]:
    """Requests in the order of the questions, timed where the database has them; odd times."""
    times: dict[str, dict[int, list[float]]] = {}
    found, odd = [], []
    for entry in sorted(timed, key=lambda entry: entry.row.index):
        name = entry.database
        if name and name not in times:
            times[name] = _time_points(databases / Path(name).name)
        points = times.get(name, {}).get(entry.reference, [])
        if not all(map(is_finite, points)) or any(b < a for a, b in pairwise(points)):
            odd.append(_told(entry.row, f"its times in {name} are no rising numbers"))
            points = []
        found.append((entry.row, points))
    start = min((points[0] for _, points in found if points), default=0.0)
    room = GAPS_KEPT
    for row, points in found:
        if len(points) > 1:
            row.begun = round(points[0] - start, 6)
            row.e2el = round(points[-1] - points[0], 6)
            row.ttft = round(points[1] - points[0], 6) if stream else 0.0
            if len(points) - 2 <= room:
                row.itl = [round(b - a, 6) for a, b in pairwise(points[1:])]
                room -= len(row.itl)
    return tuple(row for row, _ in found), odd


def _time_points(path: Path) -> dict[int, list[float]]:
    """Row id -> the times of a request's chunks, from AISBench's database of NumPy arrays."""
    found: dict[int, list[float]] = {}
    if not path.is_file():
        return found
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as store:
        for number, blob in store.execute("SELECT id, arr_blob FROM numpy_store"):
            if isinstance(number, int) and isinstance(blob, bytes):
                found[number] = _array(blob)
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
    except (ValueError, LookupError, SyntaxError, TypeError, struct.error):
        return []
    except (RecursionError, MemoryError):  # a head that is nested too deeply
        return []


def _results(run: _Run) -> tuple[dict[str, float], dict[str, int], Check]:
    """Metrics and counts of the csv and the json; what is not in them, or is none."""
    totals, why = _json(run.file("performances", ".json"))
    table = _table(run.file("performances", ".csv"))
    odd: list[str] = []
    metrics: dict[str, float] = {}
    told = {key: entry for key, entry in _TOTALS.items() if key in totals or key not in _MAYBE}
    for key, (metric, unit) in told.items() if totals else ():
        _take(odd, key, metrics, metric, partial(finite, unit=unit, least=0), _total(totals, key))
    counts: dict[str, int] = {}
    for key in ("Total Requests", "Failed Requests") if totals else ():
        _take(odd, key, counts, key, whole, _total(totals, key))
    for label, name, value in _cells(table):
        _take(odd, label, metrics, name, partial(finite, unit="ms", least=0), value)
    absent = [file for file, there in (("csv", table), ("json", totals)) if not there]
    if absent:
        odd.insert(0, f"no readable {' and no '.join(absent)}" + (f": {why}" if why else ""))
    said = ("fail", "; ".join(odd)[:1000]) if odd else ("pass", "csv, json")
    return metrics, counts, Check("AISBench's results", *said)


def _take(
    odd: list[str],
    label: str,
    into: dict[str, _T],
    key: str,
    read: Callable[[Any], _T],
    value: Any,
) -> None:
    """Read one value, or say why it is none."""
    try:
        into[key] = _field(label, read, value)
    except Refused as error:
        odd.append(str(error))


def _cells(table: Sequence[Mapping[str, str]]) -> Iterable[tuple[str, str, str | None]]:
    """(label, our name, text) of each latency; rows that are absent (one chunk, no stream) stay so.

    Each request has an end-to-end latency, so its average is always among them.
    """
    rows = {
        row.get("Performance Parameters", ""): row for row in table if row.get("Stage") == "total"
    }
    for parameter, name in _ROWS.items():
        row = rows.get(parameter, {})
        for column, stat in _COLUMNS.items():
            value = row.get(column)
            if value is not None or (table and (parameter, column) == ("E2EL", "Average")):
                yield f"{parameter} {column}", f"{name}_{stat}_ms", value


# Accuracy


def _accuracy(run: _Run, benchmark: Benchmark) -> Found:
    answers, odd = _of_all(run, ".jsonl", _answer)
    lost, odd_failed = _of_all(run, "_failed.jsonl", _failure)
    good = [row for row in answers if not row.error]
    rows = tuple(sorted((*good, *lost), key=lambda row: row.index))
    failed = [row for row in rows if row.error]
    empty = [row for row in rows if not row.error and not row.text.strip()]
    score, said = _score(run, averaged="longbenchv2" in benchmark.dataset_conf.lower())
    sent = len(rows) + len(odd)
    unread = [*odd, *odd_failed]
    checks = (
        *((_readable(True, unread),) if unread else ()),
        _asked(run, sent),
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
        "sent": sent,
        "ok": len(rows) - len(failed) - len(empty),
        "failed": len(failed),
        "empty": len(empty),
        "truncated": 0,
    }
    metrics = {} if score is None else {"accuracy": score, "success_ratio": _share(requests)}
    return Found(Measurement(metrics, requests, checks), rows)


def _of_all(
    run: _Run, suffix: str, read: Callable[[Mapping[str, Any]], Sample]
) -> tuple[list[Sample], list[str]]:
    """The rows of the predictions of every data set, and those that cannot be read."""
    each = [_lines(run.file("predictions", suffix, at), read) for at in range(len(run.data))]
    return [row for rows, _ in each for row in rows], [line for _, odd in each for line in odd]


def _answer(line: Mapping[str, Any]) -> Sample:
    return _sample(line, line.get("success", True))


def _score(run: _Run, averaged: bool) -> tuple[float | None, str]:
    """The score in %, and what to say of it: the last column of the first data set's row.

    Args:
        averaged: it is the mean of the column ``accuracy``, where there is one, over all rows.
    """
    files = sorted((run.path / "summary").glob("summary_*.csv"))
    if not files:
        return None, "there is no summary"
    rows = _table(files[-1])
    own = [row for row in rows if row.get("dataset") in run.data]
    texts = [text for row in rows if averaged and (text := row.get("accuracy"))]
    texts = texts or [list(row.values())[-1] for row in own[:1]]
    if not texts:
        return None, f"the summary has no line for {run.data[0]}"
    try:
        scores = [finite(text, "%", 0, 100) for text in texts]
    except Refused:
        return None, f"the summary has '{', '.join(map(str, texts))}' for {run.data[0]}"
    metric = "mean accuracy" if len(texts) > 1 else (own or rows)[0].get("metric", "score")
    return statistics.mean(scores), f"{metric} {', '.join(map(str, texts))}"


# Both


def write_requests(path: Path, rows: Iterable[Sample]) -> None:
    """Keep the requests; long texts are shortened."""
    bench_drivers.write_requests(path, (replace(row, text=row.text[:TEXT_KEPT]) for row in rows))


def _asked(run: _Run, found: int) -> Check:
    note = f", all of the data set's {run.size} questions" if run.asked == run.size else ""
    if not run.size and found and (not run.asked or found < run.asked):
        note = "nobody here counted the questions of this data set"
        return Check("requests sent", "skipped", f"{found}; {note}")
    if found == run.asked:
        return Check("requests sent", "pass", f"{found}{note}")
    return Check("requests sent", "fail", f"found {found}, expected {run.asked}{note}")


def _readable(there: bool, odd: Sequence[str]) -> Check:
    """Whether every row of the details could be read."""
    name = "AISBench's details"
    if not there:
        return Check(name, "fail", "no readable details.jsonl")
    if not odd:
        return Check(name, "pass", "details.jsonl")
    rows = "1 row" if len(odd) == 1 else f"{len(odd)} rows"
    return Check(name, "fail", f"{rows} cannot be read, the first: {odd[0][:300]}")


def _count(name: str, said: Sequence[str], told: int = 0) -> Check:
    """Whether there is none; ``told`` is how many AISBench counts, though it may not say which."""
    count = max(len(said), told)
    if not count:
        return Check(name, "pass", "0")
    first = said[0][:300] if said else "AISBench does not say why"
    return Check(name, "fail", f"{count}, the first: {first}")


def _told(row: Sample, what: str) -> str:
    return f"request {row.index}: {what}"


def _share(requests: Mapping[str, int]) -> float:
    asked = requests["asked"] or requests["sent"]
    return round(max(0, requests["ok"]) / asked, 6) if asked else 0.0


def _total(data: Mapping[str, Any], key: str) -> Any:
    entry = data.get(key)
    return entry.get("total") if isinstance(entry, dict) else None


def _text(prediction: Any) -> str:
    if isinstance(prediction, list):
        return "\n".join(map(str, prediction))
    return "" if prediction is None else str(prediction)


def _field(name: str, read: Callable[[Any], _T], value: Any) -> _T:
    """One value.

    Raises:
        Refused: it is not what it should be; its name is said.
    """
    try:
        return read(value)
    except Refused as error:
        raise Refused(f"{name}: {error}") from None


def _lines(path: Path, read: Callable[[Mapping[str, Any]], _T]) -> tuple[list[_T], list[str]]:
    """The rows of a file, and those that cannot be read, each by file and line with the reason."""
    found: list[_T] = []
    odd: list[str] = []
    with (
        contextlib.suppress(OSError),
        path.open(encoding="utf-8-sig", errors="replace") as source,
    ):
        for number, line in enumerate(source, 1):
            try:
                value = loads(line)
                if not isinstance(value, dict):
                    raise Refused(f"found {line.strip()[:40]!r}, expected an object")
                found.append(read(value))
            except (ValueError, RecursionError) as error:
                odd.append(f"{path.name}:{number}: {error}")
    return found, odd


def _json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a file, or why there is none; an absent file needs no reason."""
    try:
        value = loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except OSError:
        return {}, ""
    except ValueError as error:
        return {}, str(error)
    return (value, "") if isinstance(value, dict) else ({}, "it is no object")


def _table(path: Path) -> list[dict[str, str]]:
    with (
        contextlib.suppress(OSError, csv.Error),
        path.open(encoding="utf-8-sig", errors="replace", newline="") as source,
    ):
        return [dict(row) for row in csv.DictReader(source)]
    return []
