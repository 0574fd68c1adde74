"""Secrets out of files that are written already.

Enters: a file, a redactor. Leaves: the same file without secrets, JSON by its values, all else as
text. Touches: that file; one that holds none is only read.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from steps.core.case.numbers import dumps, loads
from steps.core.record.rundir import READ_LIMIT
from steps.core.redaction import Redactor

_CHUNK = 1 << 20
#: Text, whatever signs an engine writes there.
_TEXT = {".log", ".txt", ".json", ".jsonl", ".csv", ".conf", ".yaml"}


def texts(root: Path) -> list[Path]:
    """The files below a directory that may hold text."""
    every = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in every if path.suffix in _TEXT or not _binary(path)]


def _binary(path: Path) -> bool:
    try:
        with path.open("rb") as source:
            return b"\0" in source.read(8192)
    except OSError:
        return False


def clean(path: Path, redactor: Redactor) -> bool:
    """Clean a file in place; true when something was hidden."""
    if all(before == after for before, after in _blocks(path, redactor)):
        return False
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as out:
            for _, after in _blocks(path, redactor):
                out.write(after)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _blocks(path: Path, redactor: Redactor) -> Iterator[tuple[str, str]]:
    """A file in pieces, each as it is and without secrets."""
    whole = path.suffix in (".json", ".yaml", ".yml") and path.stat().st_size <= READ_LIMIT
    kind = path.suffix if whole or path.suffix == ".jsonl" else ""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as source:
        for block in [source.read()] if whole else _pieces(source):
            yield (
                block,
                _cleaned(kind, block, redactor),
            )


def _cleaned(kind: str, text: str, redactor: Redactor) -> str:
    """A text of a kind of file without secrets."""
    if kind == ".json":
        return _json(text, redactor, 2)
    if kind == ".jsonl":
        return "\n".join(_json(line, redactor) for line in text.split("\n"))
    if kind not in (".yaml", ".yml"):
        return redactor.text(text)
    from steps.core.case.masked import mask  # here: few nodes have such a file

    return mask(text, redactor)


def _json(text: str, redactor: Redactor, indent: int | None = None) -> str:
    with contextlib.suppress(ValueError):
        before = loads(text)
        after = redactor.value(before)
        end = "\n" if text.endswith("\n") else ""
        return text if after == before else dumps(after, indent=indent, ensure_ascii=False) + end
    return redactor.text(text)


def _pieces(source: TextIO) -> Iterator[str]:
    """A text in pieces of about a megabyte, whole lines; a longer line is cut between two words."""
    rest = ""
    while chunk := source.read(_CHUNK):
        block = rest + chunk
        cut = max(block.rfind("\n"), block.rfind(" ") if len(block) > 2 * _CHUNK else -1) + 1
        if cut == 0 and len(block) > 4 * _CHUNK:
            cut = len(block)
        if cut:
            yield block[:cut]
        rest = block[cut:]
    if rest:
        yield rest
