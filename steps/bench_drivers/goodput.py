"""Goodput: the requests a second that met every latency limit of their benchmark.

Enters: a measurement, its benchmark, the directory with its ``requests.jsonl``. Leaves: the
measurement with ``goodput``, where limits are known. Touches: reads that file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.bench_drivers import Measurement
from steps.core.case import gates
from steps.core.case.numbers import loads
from steps.core.plan.plan import BenchmarkPlan


def added(measured: Measurement, entry: BenchmarkPlan, place: Path) -> Measurement:
    """The measurement with its goodput; as it was where no limit, or no request, is known."""
    search = entry.benchmark.find
    limits = gates.each([*entry.gates, *(search.limits if search else ())])
    seconds = measured.metrics.get("duration_ms", 0) / 1000
    if not limits or seconds <= 0:
        return measured
    try:
        good = met(rows(place / "requests.jsonl"), limits)
    except (OSError, ValueError):
        return measured
    return replace(measured, metrics={**measured.metrics, "goodput": round(good / seconds, 4)})


def met(requests: Iterable[Mapping[str, Any]], limits: Mapping[str, float]) -> int:
    """How many requests were answered within all limits (milliseconds)."""
    return sum(
        all(took is not None and 1000 * took <= limits[name] for name, took in _times(each, limits))
        for each in requests
        if not each.get("error") and each.get("output_tokens")
    )


def _times(request: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
    """Each time in seconds; None: it was not seen."""
    first, took, tokens = (request.get(key) or 0 for key in ("ttft", "e2el", "output_tokens"))
    # A single token has no next one to wait for.
    each = (took - first) / (tokens - 1) if tokens > 1 else 0.0
    told = {"ttft": first or None, "e2el": took or None, "tpot": each}
    return ((name, told[name]) for name in names)


def rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The requests of a file.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with path.open(encoding="utf-8") as source:
        for line in source:
            yield loads(line)
