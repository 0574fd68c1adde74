"""What a report shows of a run's logs: of each its head, its first error and its tail.

Enters: a run directory. Leaves: excerpts of at most ``LOGS_BYTES`` together.
Touches: reads the logs, in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steps.core import foreign
from steps.core.plan.plan import Plan
from steps.core.record.rundir import RunDir
from steps.core.record.verdict import Verdict
from steps.core.redaction import Redactor

#: Bytes of all log excerpts together, and of one.
LOGS_BYTES, LOG_BYTES = 1_600_000, 48_000
NEEDLES = (b"Traceback (most recent call last)", b"ERROR", b"Error:", b"FATAL", b"CRITICAL")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Excerpt:
    """What the report shows of a log: its parts in order, and how large the file is."""

    path: str
    size: int
    parts: tuple[tuple[str, str], ...]
    first: bool = False


def excerpts(run_dir: RunDir, plan: Plan, verdict: Verdict, redactor: Redactor) -> list[Excerpt]:
    """Of every log its head, the surroundings of its first error, and its tail."""
    paths = [
        path
        for node in plan.nodes
        for path in sorted(run_dir.node(node.index).path.glob("*.log"))
        if path.is_file() and not path.is_symlink()
    ]
    first = verdict.cause.log if verdict.cause else ""
    names = {path: path.relative_to(run_dir.path).as_posix() for path in paths}
    paths.sort(key=lambda path: (names[path] != first, names[path]))
    share = max(2_000, min(LOG_BYTES, LOGS_BYTES // max(1, len(paths))))
    return [
        Excerpt(
            names[path],
            path.stat().st_size,
            tuple((name, redactor.text(text)) for name, text in parts(path, share)),
            names[path] == first,
        )
        for path in paths
    ]


def parts(path: Path, share: int) -> Iterator[tuple[str, str]]:
    """(what it is, text) of a log within ``share`` bytes; the file is read in pieces."""
    size = path.stat().st_size
    with path.open("rb") as source:
        if size <= share:
            yield "all of it", _text(source.read(share))
            return
        yield "its start", _text(source.read(share // 4))
        error = first_error(path)
        if error is not None and share // 4 < error < size - share // 2:
            source.seek(max(0, error - share // 16))
            yield "around its first error", _text(source.read(share // 4))
        source.seek(size - share // 2)
        yield "its end", _text(source.read(share // 2))


def first_error(path: Path) -> int | None:
    """Where the first error word stands in a file, in bytes."""
    longest = max(map(len, NEEDLES))
    offset, rest = 0, b""
    with path.open("rb", buffering=0) as source:
        while chunk := source.read(_CHUNK):
            window = rest + chunk
            hits = [hit for needle in NEEDLES if (hit := window.find(needle)) >= 0]
            if hits:
                return offset - len(rest) + min(hits)
            offset += len(chunk)
            rest = window[-longest:]
    return None


def _text(raw: bytes) -> str:
    return foreign.plain(raw.decode("utf-8", "replace"))
