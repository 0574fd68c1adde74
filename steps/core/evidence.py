"""What a dead process's log says: the first error lines, and what they mean.

Enters: a log file. Leaves: :class:`Evidence`. Touches: reads that file.

The last lines of a log are seldom the reason: a fleet's processes shout about
one another's death for pages. The first error line is where it began.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

TAIL_BYTES = 8 << 20
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERROR = re.compile(
    r"(Traceback \(most recent call last\)"
    r"|\bERROR\b|\bCRITICAL\b|\bFATAL\b|\bFatal\b|panicked at"
    r"|^\s*(\w+\.)*[A-Z]\w*(Error|Exception|Exit)\b\s*(:|$)|\berror: "
    r"|\bE[A-Z]\d{4}\b|\bACL_ERROR\w*|HCCL[^\n]{0,40}(error|fail)|aclrt\w+ fail"
    r"|[Oo]ut of memory|OutOfMemory|oom-kill|address already in use|No space left on device"
    r"|core dumped|Segmentation fault|Bus error|Killed$|Aborted$|\bassert(ion)? failed)"
)
_HARMLESS = re.compile(
    r"(error_count|errors?[=:] ?0\b|no errors?\b|log_level|--.*error|\bERROR_LEVEL"
    r"|loglevel|GLOBAL_LOG_LEVEL|on_error|raise_error|ignore[_ ]errors?)",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(
    r"^(?:\([^)]*\)\s*)?(?:ERROR[^\]]*\]\s*)?((\w+\.)*[A-Z]\w*(Error|Exception|Exit|Interrupt))\b"
)


@dataclass(frozen=True)
class Signature:
    """One known pattern of ``data/signatures.yaml``."""

    id: str
    pattern: re.Pattern[str]
    verdict: str
    explanation: str
    hint: str
    example: str
    consequence: bool = False


@dataclass(frozen=True)
class Evidence:
    """The first error lines of a log and the signature they carry, if any."""

    lines: tuple[str, ...] = ()
    signature: Signature | None = None


@lru_cache(maxsize=1)
def signatures() -> tuple[Signature, ...]:
    """The table of known patterns, in its order."""
    import yaml

    text = (Path(__file__).parent / "data" / "signatures.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(
        Signature(
            id=entry["id"],
            pattern=re.compile(entry["pattern"]),
            verdict=entry["verdict"],
            explanation=entry["explanation"],
            hint=entry["hint"],
            example=entry["example"],
            consequence=bool(entry.get("consequence")),
        )
        for entry in yaml.load(text, Loader=loader)
    )


def recognise(lines: Iterable[str]) -> Signature | None:
    """The first signature of the table that any of ``lines`` carries."""
    found = list(lines)
    for signature in signatures():
        if any(signature.pattern.search(line) for line in found):
            return signature
    return None


def of_log(path: Path, limit: int = 8) -> Evidence:
    """Evidence from a log file; empty when it has no error line or cannot be read."""
    return of_lines(_lines(path), limit)


def of_lines(lines: Sequence[str], limit: int = 8) -> Evidence:
    """Evidence from a log's lines."""
    start = next((at for at, line in enumerate(lines) if _is_error(line)), None)
    if start is None:
        return Evidence()
    block = _block(lines, start)
    if recognise(block) is None:
        # A warning-like first error may stand long before the deadly one.
        for at in range(start + 1, min(len(lines), start + 20_000)):
            if _is_error(lines[at]):
                later = _block(lines, at)
                if recognise(later) is not None:
                    block = [*block[:2], *later]
                    break
    shown = tuple(line.strip()[:400] for line in block[:limit])
    return Evidence(shown, recognise(block))


def last_line(path: Path) -> str:
    """The last line of a log that says something, cleaned for a status line."""
    try:
        with path.open("rb") as source:
            source.seek(0, 2)
            source.seek(max(0, source.tell() - 4096))
            text = source.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in _ANSI.sub("", text).splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def _is_error(line: str) -> bool:
    return bool(_ERROR.search(line)) and not _HARMLESS.search(line)


def _block(lines: Sequence[str], start: int) -> list[str]:
    """The error line; for a traceback its head, last frame and exception."""
    head = lines[start]
    if "Traceback" not in head:
        return [line for line in lines[start : start + 4] if line.strip()]
    frames: list[str] = []
    for line in lines[start + 1 : start + 400]:
        match = _EXCEPTION.match(line.strip())
        if match:
            return [head, *frames[-2:], line]
        if line.strip():
            frames.append(line)
    return [head, *frames[-3:]]


def _lines(path: Path) -> list[str]:
    """The log's lines; of a huge log only its first and last part."""
    try:
        with path.open("rb") as source:
            source.seek(0, 2)
            size = source.tell()
            source.seek(0)
            if size <= 2 * TAIL_BYTES:
                raw = source.read()
            else:
                raw = source.read(TAIL_BYTES)
                source.seek(size - TAIL_BYTES)
                raw += b"\n" + source.read()
    except OSError:
        return []
    return _ANSI.sub("", raw.decode("utf-8", "replace")).splitlines()
