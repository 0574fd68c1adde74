"""Secrets out of everything that leaves a process.

Enters: text, files, known secret values. Leaves: the same with secrets
replaced by ``<redacted>``. Touches: the files it is told to clean.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

MASK = "<redacted>"
_NAMES = re.compile(
    r"(TOKEN(?!S|IZ)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
    r"|KUBECONFIG_B64|_AUTH\b)",
    re.IGNORECASE,
)
#: Counts of tokens, switches about them, and places where a secret lies, are none themselves.
_NOT_SECRET = re.compile(r"(TOKEN_(ID|COUNT|LEN|PER|TYPE)|_(PATH|FILE|DIR|URL)$|DISABLE)", re.I)
#: Options whose value, the next word, is a secret.
_OPTIONS = ("--api-key", "--hf-token", "--token", "--password")
_PATTERNS = (
    re.compile(r"(?P<keep>https?://[^/\s:@]+:)[^@\s/]+(?=@)"),
    re.compile(r"(?P<keep>(?i:authorization)['\"]?\s*[:=]\s*['\"]?(?i:bearer|basic)\s+)[^\s'\"]+"),
    re.compile(
        r"(?P<keep>--(?:api-key|hf-token|token|password)(?:=|['\",\s]+))"
        r"(?!-)[^\s'\",]+(?: +(?![-|&>;])[^\s'\",]+)*"
    ),
    re.compile(r"(?P<keep>(?i:api_?key)['\"]?\s*[:=]\s*\[?['\"])[^'\"\n]+"),
    re.compile(
        r"(?P<keep>)\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,})\b"
    ),
    re.compile(
        r"(?P<keep>)(?<![\w-])eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\b"
    ),
)
_CHUNK = 1 << 20


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return bool(_NAMES.search(name)) and not _NOT_SECRET.search(name)


def secrets_in(env: Mapping[str, str]) -> list[str]:
    """The values of an environment whose names say that they are secret."""
    return [value for name, value in env.items() if is_secret_name(name)]


class Redactor:
    """Replaces known secret values and everything that looks like one.

    Args:
        secrets: values to hide; those shorter than six characters are left,
            since hiding them would garble ordinary text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._values: list[str] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these values too from now on."""
        # A file is cleaned line by line, so a key of many lines is hidden line by line.
        pieces = (line.strip() for secret in secrets for line in secret.splitlines())
        values = {*self._values, *(piece for piece in pieces if len(piece) >= 6)}
        self._values = sorted(values, key=len, reverse=True)

    @staticmethod
    def of_environment(env: Mapping[str, str], extra: Iterable[str] = ()) -> Redactor:
        """A redactor that knows the secrets of an environment."""
        return Redactor([*secrets_in(env), *extra])

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        for value in self._values:
            if value in text:
                text = text.replace(value, MASK)
        for pattern in _PATTERNS:
            text = pattern.sub(lambda match: f"{match['keep']}{MASK}", text)
        return text

    def value(self, value: Any, name: str = "") -> Any:
        """A JSON value without secrets, also those under telling keys."""
        if isinstance(value, str):
            return MASK if value and name and is_secret_name(name) else self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(inner, str(key)) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return list(self._words(value))
        return value

    def _words(self, words: Iterable[Any]) -> Iterator[Any]:
        """A list, perhaps of a command's words: an option's values end at the next option."""
        option = ""
        for word in words:
            if not isinstance(word, str) or word.startswith("-"):
                option = word if word in _OPTIONS else ""
            yield MASK if option and word != option else self.value(word)

    def file(self, path: Path) -> bool:
        """Clean a text file in place; true when something was hidden."""
        if not self._suspicious(path):
            return False
        changed = False
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with (
                os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as out,
                path.open(encoding="utf-8", errors="surrogateescape", newline="") as source,
            ):
                for block in _blocks(source):
                    clean = self.text(block)
                    changed = changed or clean != block
                    out.write(clean)
            if changed:
                Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        return changed

    def _suspicious(self, path: Path) -> bool:
        """A cheap look at the bytes, so that a gigabyte without secrets costs one read."""
        needles = [value.encode() for value in (*self._values, *_OPTIONS)]
        needles += [
            b"://",
            b"earer ",
            b"asic ",
            b"hf_",
            b"gh",
            b"sk-",
            b"eyJ",
            b"api_key",
            b"apikey",
        ]
        longest = max(map(len, needles))
        tail = b""
        with path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                window = tail + chunk
                if any(needle in window for needle in needles):
                    return True
                tail = window[-longest:]
        return False


def _blocks(source: TextIO) -> Iterator[str]:
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
