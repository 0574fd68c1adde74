"""A streamed completion, from the bytes of an HTTP body to what each event says.

Enters: bytes, in pieces of any size. Leaves: payloads of events, and what a payload says as a
:class:`Chunk`. Touches nothing.

Every function is total: whatever the bytes are, it raises nothing but :class:`BadAnswer`.
Events are those of the HTML standard (server-sent events): any line end, comments, data over
several lines, a byte order mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DONE = b"[DONE]"
LARGEST = 16 << 20
"""Bytes of one event or line; more is no answer of an engine."""
MOST_TOKENS = 10**9
_FIELDS = (b"data", b"event", b"id", b"retry")
_LINE = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)
_TEXTS = ("content", "reasoning_content", "reasoning")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}\Z")


class BadAnswer(Exception):
    """The server's answer is no stream of completions; the text says how."""


@dataclass(frozen=True)
class Chunk:
    """What one event says; a count is None when it does not tell it."""

    text: str = ""
    finish: str = ""
    prompt: int | None = None
    output: int | None = None


class Chunked:
    """The transfer coding ``chunked``, with extensions and trailers, taken off."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """What of the body is in ``data``.

        Raises:
            BadAnswer: a chunk has no size, or does not end where it says.
        """
        self._rest += data
        parts = []
        while self._rest and not self._ended:
            if self._left > 2:
                part = self._rest[: self._left - 2]
                parts.append(part)
                self._rest = self._rest[len(part) :]
                self._left -= len(part)
            elif self._left:
                if len(self._rest) < 2:
                    break
                if self._rest[:2] != b"\r\n":
                    raise BadAnswer(f"a chunk goes on behind its end: {self._rest[:40]!r}")
                self._rest, self._left = self._rest[2:], 0
            elif not self._head():
                break
        return b"".join(parts)

    def _head(self) -> bool:
        line, end, rest = self._rest.partition(b"\n")
        if not end:
            if len(line) > 1 << 16:
                raise BadAnswer(f"a chunk without a size: {line[:40]!r}")
            return False
        size = line.split(b";")[0].strip()
        if not _SIZE.match(size):
            raise BadAnswer(f"a chunk without a size: {line[:40]!r}")
        self._rest, self._left = rest, int(size, 16) + 2
        self._ended = self._left == 2
        return True


class Events:
    """Payloads of the events in a body."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._data: list[bytes] = []
        self._first = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that ``data`` completes.

        Raises:
            BadAnswer: a line is no field of an event, or larger than :data:`LARGEST`.
        """
        self._pieces.append(data)
        self._held += len(data)
        if self._held > LARGEST:
            raise BadAnswer(f"an event of more than {LARGEST >> 20} MiB")
        held = self._pieces[-2] if len(self._pieces) > 1 else b""
        if b"\n" not in data and b"\r" not in data and not held.endswith(b"\r"):
            return
        *lines, rest = _LINE.split(b"".join(self._pieces))
        self._pieces = [rest]
        for line in lines:
            yield from self._line(line)
        self._held = len(rest) + sum(map(len, self._data))

    def end(self) -> Iterator[bytes]:
        """The payload that the end of the body completes."""
        yield from self._line(b"".join(self._pieces).rstrip(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[bytes]:
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        name, _, value = line.partition(b":")
        if not line.strip():
            if payload := b"\n".join(self._data):
                yield payload
            self._data = []
        elif name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name and name not in _FIELDS:
            raise BadAnswer(f"not a stream of events: {_show(line)!r}")


def is_done(payload: bytes) -> bool:
    """Whether an event says that the stream is complete."""
    return payload.strip() == DONE


def chunk(payload: bytes) -> Chunk:
    """What an event's payload says.

    Raises:
        BadAnswer: it is no chunk of a completion, or an error.
    """
    try:
        data = json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"an event is no JSON ({error}): {_show(payload)}") from None
    data = _object(data, "an event")
    if data.get("error"):
        raise BadAnswer(f"an error in the middle of the stream: {_show(payload)}")
    choices = data.get("choices") or []
    if not isinstance(choices, list):
        raise BadAnswer(f"choices is no list: {_show(payload)}")
    text, finish = "", ""
    for entry in choices:
        choice = _object(entry, "a choice")
        delta = _object(choice.get("delta") or {}, "delta")
        found = {name: _text(delta.get(name), name) for name in _TEXTS}
        text += next(filter(None, found.values()), "")
        finish = _text(choice.get("finish_reason"), "finish_reason") or finish
    usage = data.get("usage")
    if usage is None:
        return Chunk(text, finish)
    usage = _object(usage, "usage")
    names = ("prompt_tokens", "completion_tokens")
    prompt, output = (_count(usage.get(name), name) for name in names)
    return Chunk(text, finish, prompt, output)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer(f"{name} is {_kind(value)}, not an object")
    return value


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadAnswer(f"{name} is {_kind(value)}, not text")
    return clean(value)


def _count(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise BadAnswer(f"{name} is {_kind(value)}, not a count")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:60]}"


def clean(text: str) -> str:
    """Text that can be written: a lone surrogate, which JSON can spell, is replaced."""
    return text.encode("utf-8", "replace").decode()


def _show(data: bytes) -> str:
    return " ".join(data[:200].decode("utf-8", "replace").split())
