"""The requests of a benchmark, one by one, from what its driver left.

Enters: the directory of a benchmark. Leaves: a :class:`Sample` a request.
Touches: reads those files, a line at a time.

The smoke driver leaves ``requests.jsonl``. AISBench leaves
``*_details.jsonl``, whose time points (seconds of one clock: sent, first
token, ..., last token) lie as NumPy arrays in ``db_data/*.db`` beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The gaps between tokens, thousands a request, of which no plot is made.
_ITL = re.compile(r"(?<=\"itl\": )\[[^\]]*\]")


@dataclass(frozen=True)
class Sample:
    """One request; times in seconds, ``begun`` since the first; None: was not seen."""

    begun: float
    e2el: float | None
    ttft: float | None
    tpot: float | None
    output_tokens: int
    ok: bool


def samples(directory: Path) -> list[Sample]:
    """Every request under ``directory``, by the time it was sent; none when there are no files."""
    found: list[Sample] = []
    for path in sorted(directory.rglob("requests.jsonl")):
        found += _smoke(path)
    for path in sorted(directory.rglob("*_details.jsonl")):
        found += _aisbench(path)
    found.sort(key=lambda sample: sample.begun)
    first = found[0].begun if found else 0.0
    return [Sample(s.begun - first, s.e2el, s.ttft, s.tpot, s.output_tokens, s.ok) for s in found]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as source:
        for line in source:
            with contextlib.suppress(ValueError):
                data = json.loads(_ITL.sub("[]", line))
                if isinstance(data, dict):
                    yield data


def _smoke(path: Path) -> Iterator[Sample]:
    for data in _lines(path):
        tokens = int(data.get("output_tokens") or 0)
        yield _sample(
            float(data.get("begun") or 0),
            data.get("ttft"),
            data.get("e2el"),
            tokens,
            not data.get("error") and tokens > 0,
        )


def _aisbench(path: Path) -> Iterator[Sample]:
    times = _time_points(path.parent / "db_data")
    for data in _lines(path):
        reference = data.get("time_points")
        key = reference.get("__db_ref__") if isinstance(reference, dict) else None
        points = times.get((data.get("db_name"), key))
        if points is None:
            continue
        sent, first, last = points
        tokens = int(data.get("output_tokens") or 0)
        ok = bool(data.get("success")) and tokens > 0
        yield _sample(sent, first - sent, last - sent, tokens, ok)


def _time_points(folder: Path) -> dict[tuple[Any, Any], tuple[float, float, float]]:
    """(database, row) -> sent, first token, last token."""
    import numpy

    found: dict[tuple[Any, Any], tuple[float, float, float]] = {}
    for path in sorted(folder.glob("*.db")):
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(uri, uri=True)) as database,
        ):
            for row, blob in database.execute("SELECT id, arr_blob FROM numpy_store"):
                with contextlib.suppress(ValueError, OSError, EOFError):
                    points = numpy.load(io.BytesIO(blob), allow_pickle=False)
                    if points.ndim == 1 and points.size > 1:
                        times = (float(points[0]), float(points[1]), float(points[-1]))
                        found[(path.name, row)] = times
    return found


def _sample(begun: float, ttft: Any, e2el: Any, tokens: int, ok: bool) -> Sample:
    first = float(ttft) if ttft is not None else None
    whole = float(e2el) if e2el is not None else None
    tpot = None
    if first is not None and whole is not None and tokens > 1:
        tpot = (whole - first) / (tokens - 1)
    return Sample(begun, whole, first, tpot, tokens, ok)
