"""What a dead process's log says: the first error lines, and what they mean.

Enters: a log file. Leaves: :class:`Evidence`. Touches: reads that file.

The last lines of a log are seldom the reason: a fleet's processes shout about
one another's death for pages. The first error line is where it began.

A log may hold anything: a line of 100 MB, millions of errors. So a long line is
cut into pieces before any pattern sees it, a pattern looks a bounded number of
characters ahead, and only so many errors are compared with the signatures.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

#: Bytes read of a log's start, and of its end.
PART_BYTES = 4 << 20
#: Bytes of a line that a pattern sees together, and how much of a long one before its error.
PIECE, OVERLAP = 2_000, 200
#: Lines of a part that may be errors; error lines that are compared with the signatures.
CANDIDATES, ERRORS = 20_000, 400
BLOCK_BYTES = 64_000
#: Characters of a line that are shown.
SHOWN = 400
#: Lower-case words of which every error line has at least one: a search for them is fast.
_HINTS = (
    b"error", b"exception", b"traceback", b"fatal", b"critical", b"panick", b"fail", b"kill",
    b"abort", b"fault", b"memory", b"in use", b"no space", b"dumped", b"exit",
    *(f"e{letter}{digit}".encode() for letter in "efhijklrz" for digit in "09"),
)  # fmt: skip
_END = re.compile(rb"[\r\n]")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERROR = re.compile(
    r"(Traceback \(most recent call last\)"
    r"|\bERROR\b|\bCRITICAL\b|\bFATAL\b|\bFatal\b|panicked at"
    r"|^\s*(\w+\.)*[A-Z]\w*(Error|Exception|Exit)\b\s*(:|$)|\berror: "
    r"|\bE[A-Z]\d{4}\b|\bACL_ERROR\w*|HCCL[^\n]{0,40}(error|fail)|aclrt\w{1,60} fail"
    r"|[Oo]ut of memory|OutOfMemory|oom-kill|address already in use|No space left on device"
    r"|core dumped|Segmentation fault|Bus error|Killed$|Aborted$|\bassert(ion)? failed)"
)
_HARMLESS = re.compile(
    r"(error_count|errors?[=:] ?0\b|no errors?\b|log_level|\bERROR_LEVEL"
    r"|--[a-z][\w.-]{0,60}([ =]['\"]?)?error|loglevel"
    r"|GLOBAL_LOG_LEVEL|on_error|raise_error|ignore[_ ]errors?)",
    re.IGNORECASE,
)
#: An exception in the midst of a line that is too long to have a beginning.
_AMID = re.compile(r"[A-Z]\w{0,60}(Error|Exception): ")
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
    return of_bytes(_parts(path), limit)


def of_bytes(parts: Iterable[bytes], limit: int = 8) -> Evidence:
    """Evidence from the parts of a log that were read."""
    errors = (_block(_after(part, at)) for part in parts for at in _errors(part))
    block = next(errors, None)
    if block is None:
        return Evidence()
    signature = recognise(block)
    if signature is None:
        # A warning-like first error may stand long before the deadly one.
        for later in islice(errors, ERRORS):
            signature = recognise(later)
            if signature is not None:
                block = [*block[:2], *later]
                break
    return Evidence(tuple(_shown(line) for line in block[:limit]), signature)


def tail(path: Path) -> str:
    """The end of a log, without what only a terminal wants; empty where there is none."""
    try:
        with path.open("rb") as source:
            source.seek(0, 2)
            source.seek(max(0, source.tell() - 4096))
            return _ANSI.sub("", source.read().decode("utf-8", "replace"))
    except OSError:
        return ""


def last_line(path: Path) -> str:
    """The last line of a log that says something, cleaned for a status line."""
    lines = [line.strip() for line in tail(path).splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def _errors(part: bytes) -> Iterator[int]:
    """Where the error lines begin; of a long line its piece with the error."""
    low, end = part.lower(), 0
    for at in islice(heapq.merge(*(_places(low, hint) for hint in _HINTS)), CANDIDATES):
        if at < end:
            continue
        before = max(part.rfind(mark, max(0, at - PIECE), at) for mark in (b"\n", b"\r"))
        long = before < 0 and at >= PIECE
        start = at - OVERLAP if long else before + 1
        stop = _END.search(part, at, at + PIECE)
        end = stop.start() if stop else at + PIECE - OVERLAP
        line = _ANSI.sub("", part[start:end].decode("utf-8", "replace"))
        match = _ERROR.search(line) or (_AMID.search(line) if long else None)
        if match and not _HARMLESS.search(line):
            yield start


def _places(text: bytes, word: bytes) -> Iterator[int]:
    """Where a word stands in a text."""
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + len(word))


def _after(part: bytes, start: int) -> list[str]:
    """The lines from an error on, as far as a block may reach."""
    text = _ANSI.sub("", part[start : start + BLOCK_BYTES].decode("utf-8", "replace"))
    return [line[:PIECE] for line in text.splitlines()]


def _shown(line: str) -> str:
    """What is shown of a line: its start, or what stands around its error."""
    text = line.strip()
    match = _ERROR.search(text) or _AMID.search(text)
    if match is None or match.end() <= SHOWN:
        return text[:SHOWN]
    start = max(0, match.start() - SHOWN // 4)
    return f"... {text[start : start + SHOWN]}"


def _block(lines: Sequence[str]) -> list[str]:
    """The error line; for a traceback its head, last frame and exception."""
    head = lines[0]
    if "Traceback" not in head:
        return [line for line in lines[:4] if line.strip()]
    frames: list[str] = []
    for line in lines[1:400]:
        match = _EXCEPTION.match(line.strip())
        if match:
            return [head, *frames[-2:], line]
        if line.strip():
            frames.append(line)
    return [head, *frames[-3:]]


def _parts(path: Path) -> list[bytes]:
    """The log, or the first and the last part of a huge one."""
    try:
        with path.open("rb") as source:
            size = source.seek(0, 2)
            source.seek(0)
            whole = source.read(2 * PART_BYTES)
            if size <= len(whole):
                return [whole]
            source.seek(max(PART_BYTES, size - PART_BYTES))
            return [whole[:PART_BYTES], source.read(PART_BYTES)]
    except OSError:
        return []
