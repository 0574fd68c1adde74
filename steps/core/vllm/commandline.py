"""A `vllm serve` command to its options, read as vLLM's own parser reads it.

Enters: argv and perhaps the place of each word. Leaves: a :class:`Command`, for plans and for
rules. Touches nothing. The linter judges what is read. The parser's liberties (vLLM 0.32, ``vllm
serve --help=all``): underscores for dashes, ``--name=value``, short names, the beginning of a
name, the last one wins.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from steps.core.errors import Place
from steps.core.vllm import options
from steps.core.vllm.options import Spec

#: No number that a plan is made of is larger.
MAX_NUMBER = 10**9
#: vLLM's ports when a command does not name them.
DEFAULT_PORT = 8000
DEFAULT_RPC_PORT = 29550
#: vLLM's default block size in tokens on CPUs and NPUs; on other devices it is smaller.
LARGEST_BLOCK = 128
_NUMBER = re.compile(r"^-\d+(\.\d+)?$|^-\.\d+$")
_HUMAN = re.compile(r"^(\d+(?:\.\d+)?)([kKmMgGtT]?)$")
_FACTORS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}


@dataclass(frozen=True)
class Option:
    """One option as it stands in a command.

    Attributes:
        spelled: as written, without a value glued by ``=``.
        name: the long name it means; for an unknown one, as written with dashes.
        part: what follows a dot, as in ``--compilation-config.cudagraph_mode``.
        values: what it takes.
        at: its position in argv.
        missing: it wants a value and has none.
        extra: a value glued by ``=`` to an option that takes none.
        candidates: more than one: an ambiguous abbreviation.
    """

    spelled: str
    name: str
    spec: Spec | None
    at: int
    values: tuple[str, ...] = ()
    value_at: int = -1
    part: str = ""
    missing: bool = False
    extra: str = ""
    abbreviation: bool = False
    candidates: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """Its first value, or nothing."""
        return self.values[0] if self.values else ""


@dataclass(frozen=True)
class Command:
    """A parsed command: its options in order, and words that belong to none."""

    argv: tuple[str, ...]
    places: tuple[Place, ...]
    model: str = ""
    model_at: int = -1
    options: tuple[Option, ...] = ()
    stray: tuple[int, ...] = ()
    by_name: dict[str, Option] = field(default_factory=dict, repr=False)

    def option(self, name: str) -> Option | None:
        """The last ``name``, which is the one that counts."""
        return self.by_name.get(name)

    def has(self, name: str) -> bool:
        """Whether the switch is on: given, and not as ``--no-...`` after that."""
        return name in self.by_name and not self.off(name)

    def off(self, name: str) -> bool:
        """Whether the switch is turned off: ``--no-...`` is given last."""
        found = self.by_name.get(name)
        return found is not None and found.spelled.startswith("--no-")

    def text(self, name: str, default: str = "") -> str:
        """Its value."""
        found = self.by_name.get(name)
        return found.value if found and found.values else default

    def number(self, name: str, default: int) -> int:
        """Its value as a whole number; ``130k`` where vLLM takes such a one.

        ``default`` when absent, no number, negative, or absurd.
        """
        found = self.by_name.get(name)
        if found is None or not found.values:
            return default
        human = found.spec is not None and str(found.spec.type).startswith("human")
        value = whole(found.value) if human else integer(found.value)
        return value if value is not None and 0 <= value <= MAX_NUMBER else default

    def json(self, name: str) -> Any:
        """Its JSON value; None when absent or not JSON."""
        found = self.by_name.get(name)
        if found is None or not found.values:
            return None
        try:
            return parse_json(found.value)
        except ValueError:
            return None

    def mapping(self, name: str) -> dict[str, Any]:
        """Its JSON value if that is a mapping, else an empty one."""
        value = self.json(name)
        return value if isinstance(value, dict) else {}

    @property
    def served_name(self) -> str:
        """The name that clients ask for: the first ``--served-model-name``, else the model."""
        return self.text("--served-model-name") or self.model

    @property
    def dp_size(self) -> int:
        """Ranks of its data-parallel group."""
        return self.number("--data-parallel-size", 1)

    @property
    def local_ranks(self) -> int:
        """Data-parallel ranks it holds itself."""
        if self.option("--data-parallel-rank"):
            return 1
        return self.number("--data-parallel-size-local", self.dp_size)

    @property
    def first_rank(self) -> int:
        """Its first global rank."""
        if self.option("--data-parallel-rank"):
            return self.number("--data-parallel-rank", 0)
        return self.number("--data-parallel-start-rank", 0)

    @property
    def drafts(self) -> int:
        """Tokens it drafts ahead (speculative decoding); 0: it does not."""
        if self.option("--speculative-config") is None:
            return 0
        return integer(self.mapping("--speculative-config").get("num_speculative_tokens", 1)) or 1

    @property
    def nnodes(self) -> int:
        """Nodes that one rank spans."""
        return max(self.number("--nnodes", 1), 1)

    @property
    def ray(self) -> bool:
        """Ray places its ranks, so nothing here says where they are."""
        words = ("--data-parallel-backend", "--distributed-executor-backend")
        return any(self.text(word) == "ray" for word in words)

    @property
    def devices(self) -> int:
        """Devices it takes on its node; decode context parallelism takes none of its own."""
        width = self.number("--tensor-parallel-size", 1)
        width *= self.number("--pipeline-parallel-size", 1)
        width *= self.number("--prefill-context-parallel-size", 1)
        return -(-width // self.nnodes) * max(self.local_ranks, 1)

    @property
    def block_size(self) -> int:
        """Tokens of a KV block; the largest default when the command does not say."""
        return self.number("--block-size", 0) or LARGEST_BLOCK

    def place(self, at: int) -> Place:
        """Where the word at position ``at`` stands."""
        return self.places[min(max(at, 0), len(self.places) - 1)]

    def place_of(self, *names: str) -> Place:
        """Where the first of ``names`` that is given stands, else where the command starts."""
        for name in names:
            found = self.by_name.get(name)
            if found is not None:
                return self.place(found.at)
        return self.place(0)

    def value_place(self, name: str) -> Place:
        """Where the option's value stands."""
        found = self.by_name.get(name)
        if found is None:
            return self.place(0)
        return self.place(found.value_at if found.value_at >= 0 else found.at)


@lru_cache(maxsize=4096)
def parse_json(text: str) -> Any:
    """JSON, remembered: the commands of a fleet repeat it. Callers do not change it.

    Raises:
        ValueError: not JSON, or with numbers that no program keeps.
    """
    try:
        return json.loads(text, parse_int=_json_int, parse_float=_json_float, parse_constant=_none)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _none(text: str) -> Any:
    raise ValueError(f"{text[:40]} is no number that JSON has")


def _json_int(text: str) -> int:
    number = integer(text)
    return _none(text) if number is None else number


def _json_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _none(text)


def integer(value: Any) -> int | None:
    """A whole number as Python reads one; None when it is none, or larger than 64 bits."""
    if isinstance(value, str) and len(value) > 40:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1 << 63 else None


@lru_cache(maxsize=4096)
def whole(text: str) -> int | None:
    """A whole number as vLLM reads one: ``8192``, ``130k`` (thousands), ``128K`` (of 1024)."""
    match = _HUMAN.match(text.strip()) if len(text) <= 40 else None
    if not match:
        return None
    number, unit = match.groups()
    if "." in number and unit not in ("k", "m", "g", "t"):
        return None
    return int(float(number) * _FACTORS[unit])


@lru_cache(maxsize=8192)
def looks_like_option(word: str) -> bool:
    """Whether the parser takes ``word`` for an option and not for a value."""
    return (
        len(word) > 1
        and word[0] == "-"
        and not _NUMBER.match(word)
        and (" " not in word or "=" in word.split(" ", 1)[0])
    )


def parse(argv: Sequence[str], places: Sequence[Place]) -> Command:
    """Read a command whose words stand in a file.

    ``places`` may be shorter than ``argv``: words that the harness added have
    the place of the last one.
    """
    return replace(_read(tuple(argv)), places=tuple(places))


def read(argv: Sequence[str]) -> Command:
    """Read a command for its values alone."""
    return _read(tuple(argv))


@lru_cache(maxsize=4096)
def _read(argv: tuple[str, ...]) -> Command:
    start = _start(argv)
    options: list[Option] = []
    stray: list[int] = []
    model, model_at = "", -1
    at = start
    while at < len(argv):
        word = argv[at]
        if not looks_like_option(word):
            if model_at < 0 and at == start:
                model, model_at = word, at
            else:
                stray.append(at)
            at += 1
            continue
        option = _option(argv, at)
        options.append(option)
        at = max(at, option.value_at + len(option.values) - 1) + 1 if option.values else at + 1
        if option.values and option.value_at == option.at:
            at = option.at + 1
    by_name = {option.name: option for option in options if not option.part}
    if model_at < 0 and "--model" in by_name:
        found = by_name["--model"]
        model, model_at = found.value, found.value_at
    elif model_at < 0 and stray:
        model_at = stray.pop(0)
        model = argv[model_at]
    return Command(argv, (), model, model_at, tuple(options), tuple(stray), by_name)


def _start(argv: Sequence[str]) -> int:
    for at, word in enumerate(argv[:8]):
        if word == "serve" and at and PurePath(argv[at - 1]).name == "vllm":
            return at + 1
        if word.startswith("vllm.entrypoints"):
            return at + (2 if list(argv[at + 1 : at + 2]) == ["serve"] else 1)
    return 0 if argv and argv[0].startswith("-") else min(2, len(argv))


@dataclass(frozen=True)
class _Spelling:
    """What one word of a command says by itself."""

    spelled: str
    name: str
    part: str
    spec: Spec | None
    nargs: Any
    glued: str | None
    abbreviation: bool
    candidates: tuple[str, ...]


@lru_cache(maxsize=4096)
def _spelling(word: str) -> _Spelling:
    spelled, equals, glued = word.partition("=")
    table = options.options()
    name, part = spelled, ""
    if spelled.startswith("--"):
        base, _, part = spelled.partition(".")
        name = f"--{base[2:].replace('_', '-')}"
        spelled = f"--{spelled[2:].replace('_', '-')}"
    elif "." in spelled:
        name, _, part = spelled.partition(".")
    spec = table.get(name)
    abbreviation = False
    candidates: tuple[str, ...] = ()
    if spec is None:
        candidates = options.abbreviated(name)
        if len({table[found].name for found in candidates}) == 1:
            abbreviation, spec = True, table[candidates[0]]
    known = spec.name if spec is not None else name
    nargs = "*" if spec is None else spec.nargs
    return _Spelling(
        spelled,
        known,
        part,
        spec,
        None if part else nargs,
        glued if equals else None,
        abbreviation,
        () if abbreviation and not part else candidates,
    )


def _option(argv: Sequence[str], at: int) -> Option:
    word = argv[at]
    if word.startswith("-O"):
        spelled, equals, glued = word.partition("=")
        return _optimization(argv, at, spelled, glued if equals else "")
    found = _spelling(word)
    values: tuple[str, ...] = ()
    value_at, missing, extra = -1, False, ""
    if found.glued is not None:
        if found.nargs == 0:
            extra = found.glued
        else:
            values, value_at = (found.glued,), at
    elif found.nargs != 0:
        values = _values(argv, at + 1, 1 if found.nargs in (None, "?", "*") else 10**6)
        value_at = at + 1 if values else -1
        missing = not values and found.nargs in (None, "+")
    return Option(
        found.spelled,
        found.name,
        found.spec,
        at,
        values,
        value_at,
        found.part,
        missing,
        extra,
        found.abbreviation,
        found.candidates,
    )


def _optimization(argv: Sequence[str], at: int, spelled: str, glued: str) -> Option:
    """``-O3``, ``-O 3``, ``-O=3``, ``-O.mode=3``: the compilation configuration's short form."""
    value = glued or spelled[2:].lstrip(".")
    if not value:
        found = _values(argv, at + 1, 1)
        return Option("-O", "-O", None, at, values=found, value_at=at + 1, part="level")
    return Option("-O", "-O", None, at, values=(value,), value_at=at, part="level")


def _values(argv: Sequence[str], at: int, most: int) -> tuple[str, ...]:
    found: list[str] = []
    while at < len(argv) and len(found) < most and not looks_like_option(argv[at]):
        found.append(argv[at])
        at += 1
    return tuple(found)
