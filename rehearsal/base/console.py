"""Log lines as vLLM writes them, on standard output; a reader that went away is nobody's error."""

from __future__ import annotations

import contextlib
import os
import time
import traceback

_who = ""


def speak_as(who: str) -> None:
    """Prefix every later line of this process with `(who pid=N)`."""
    global _who
    _who = f"({who} pid={os.getpid()}) "


def write(text: str) -> None:
    """One write, so that lines of processes that share a log do not mix."""
    with contextlib.suppress(OSError):
        os.write(1, text.encode(errors="replace"))


def plain(text: str) -> None:
    """Lines without time and place, such as a traceback or uvicorn's access log."""
    write("".join(f"{_who}{line}\n" for line in text.rstrip("\n").split("\n")))


def log(level: str, place: str, text: str) -> None:
    """`INFO 11-23 18:00:00 [api_server.py:1234] text`, every line of `text` with the prefix."""
    head = f"{_who}{level} {time.strftime('%m-%d %H:%M:%S')} [{place}] "
    write("".join(f"{head}{line}\n" for line in text.rstrip("\n").split("\n")))


def info(place: str, text: str) -> None:
    """An INFO line."""
    log("INFO", place, text)


def warning(place: str, text: str) -> None:
    """A WARNING line."""
    log("WARNING", place, text)


def error(place: str, text: str) -> None:
    """An ERROR line."""
    log("ERROR", place, text)


def trace(error: BaseException) -> str:
    """The traceback text of an exception that was raised or not."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    if error.__traceback__ is None:
        lines.insert(0, "Traceback (most recent call last):\n")
    return "".join(lines).rstrip("\n")
