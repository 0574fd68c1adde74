"""What `vllm serve` knows: its options, and options it once knew.

Enters: the tables under ``data/``. Leaves: :data:`OPTIONS`, :data:`FORMER` and
look-ups. Touches: reads those files once.

``data/vllm_flags.json`` is written by ``rehearsal/make_flags.py`` from the real
parser; ``data/tables.json`` by hand from vLLM's and vllm-ascend's sources and
documentation (release notes for what was removed); ``data/aisbench.json`` holds
the file names under ``configs/`` of the package ``ais-bench-benchmark``.
"""

from __future__ import annotations

import difflib
import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

#: No option is longer.
_LONGEST = 80
_DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Spec:
    """One option of the parser.

    Attributes:
        name: its first long name.
        nargs: None for one value, 0, ``+`` or ``?``.
        kind: ``store``, ``true``, ``boolean``, ``append`` or ``help``.
        type: ``int float str json json-or-str human-int human-int-or-auto``, or None.
    """

    name: str
    nargs: Any
    kind: str
    type: str | None
    choices: tuple[str, ...]


@cache
def version() -> str:
    """The vLLM whose options these are."""
    return str(_data("vllm_flags.json")["vllm"])


def tables() -> dict[str, Any]:
    """The hand-made tables: former options, keys of JSON options, environment names."""
    return _data("tables.json")


def aisbench() -> dict[str, Any]:
    """The names of AISBench's own configurations: ``version``, ``requests``, ``datasets``."""
    return _data("aisbench.json")


@cache
def _data(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((_DATA / name).read_text(encoding="utf-8"))
    return data


@cache
def options() -> dict[str, Spec]:
    """Every spelling of every option -> what it takes."""
    found: dict[str, Spec] = {}
    for entry in _data("vllm_flags.json")["options"]:
        names = entry["names"]
        spec = Spec(
            next((name for name in names if name.startswith("--")), names[0]),
            entry["nargs"] if entry["takes_value"] else 0,
            entry["kind"],
            entry["type"],
            tuple(map(str, entry["choices"] or ())),
        )
        found.update(dict.fromkeys(names, spec))
    return found


def former() -> dict[str, str]:
    """Options that older vLLM had -> what to write now (perhaps nothing)."""
    found: dict[str, str] = tables()["former_flags"]
    return found


@lru_cache(maxsize=4096)
def abbreviated(name: str) -> tuple[str, ...]:
    """The long options that ``name`` is the beginning of."""
    if not name.startswith("--") or len(name) < 4:
        return ()
    first = bisect_left(_ordered(), name)
    return tuple(takewhile(lambda option: option.startswith(name), _ordered()[first:]))


@cache
def _ordered() -> tuple[str, ...]:
    return tuple(sorted(options()))


@lru_cache(maxsize=4096)
def near(name: str) -> str:
    """The known option that ``name`` probably means; empty when none is near."""
    if len(name) > _LONGEST:
        return ""
    found = difflib.get_close_matches(name, list(options()), 1, 0.84)
    return found[0] if found else ""
