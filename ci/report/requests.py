"""The requests of a benchmark, one by one, from what its driver left.

Enters: the directory of a benchmark. Leaves: a :class:`Sample` a request.
Touches: reads each ``requests.jsonl`` in it, a line at a time.

Every driver leaves that file, one a measurement, in seconds since the
measurement's first request. AISBench's own files beside it say the same again,
by another clock.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.core.case.numbers import finite, loads, whole

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
    paths = sorted(directory.rglob("requests.jsonl"))
    found = sorted((s for path in paths for s in _read(path)), key=lambda sample: sample.begun)
    first = found[0].begun if found else 0.0
    return [replace(sample, begun=sample.begun - first) for sample in found]


def _read(path: Path) -> Iterator[Sample]:
    """The requests of a file; lines that cannot be read are left out."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as source:
        for line in source:
            with contextlib.suppress(ValueError):
                data = loads(_ITL.sub("[]", line))
                if isinstance(data, dict):
                    yield _sample(data)


def _sample(data: dict[str, Any]) -> Sample:
    """One line; a time of 0 was not seen.

    Raises:
        Refused: a time or a count is no number.
    """
    begun, first, took = (
        finite(data.get(key) or 0.0, least=0) for key in ("begun", "ttft", "e2el")
    )
    tokens = whole(data.get("output_tokens") or 0)
    tpot = (took - first) / (tokens - 1) if first and took and tokens > 1 else None
    return Sample(
        begun, took or None, first or None, tpot, tokens, not data.get("error") and tokens > 0
    )
