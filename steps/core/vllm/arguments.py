"""Reading single options out of a ``vllm serve`` command.

Enters: the words of a command. Leaves: values of options. Touches nothing.
Judging a command is the linter's work; here only what a plan needs is read,
with the real parser's liberties: underscores for dashes, ``--name=value``,
short names, the last one wins (vLLM 0.32, ``vllm serve --help=all``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-dp": "--data-parallel-size",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
}
#: No number that a plan is made of is larger.
MAX_NUMBER = 10**9
#: vLLM's default API port when a command has no ``--port``.
DEFAULT_PORT = 8000
DEFAULT_RPC_PORT = 29550


def option_name(word: str) -> str:
    """The long dashed name a word spells, without a glued value; the word itself if none."""
    name = word.split("=", 1)[0]
    if name in SHORT:
        return SHORT[name]
    return f"--{name[2:].replace('_', '-')}" if name.startswith("--") else name


@lru_cache(maxsize=512)
def _index(argv: tuple[str, ...]) -> dict[str, list[int]]:
    """Each option of a command -> where it stands; remembered, since one asks for many."""
    found: dict[str, list[int]] = {}
    for at, word in enumerate(argv):
        if word[:1] == "-":
            found.setdefault(option_name(word), []).append(at)
    return found


def positions(argv: Sequence[str], name: str) -> list[int]:
    """Where in ``argv`` the option ``name`` stands."""
    return _index(tuple(argv)).get(name, [])


def value(argv: Sequence[str], name: str) -> str | None:
    """The value of the last ``name``; None when it is absent or has no value."""
    found = positions(argv, name)
    if not found:
        return None
    at = found[-1]
    if "=" in argv[at]:
        return argv[at].split("=", 1)[1]
    return argv[at + 1] if at + 1 < len(argv) else None


def number(argv: Sequence[str], name: str, default: int) -> int:
    """The value of ``name`` as a whole number; ``default`` when absent, none, or absurd."""
    text = value(argv, name)
    try:
        found = int(text) if text is not None and len(text) < 40 else default
    except ValueError:
        return default
    return found if abs(found) <= MAX_NUMBER else default


def has(argv: Sequence[str], name: str) -> bool:
    """Whether the option stands in the command at all."""
    return bool(positions(argv, name))


def model(argv: Sequence[str]) -> str | None:
    """The model: the word behind ``serve``, else ``--model``."""
    for at, word in enumerate(argv[:-1]):
        if word == "serve" and at and Path(argv[at - 1]).name == "vllm":
            if not argv[at + 1].startswith("-"):
                return argv[at + 1]
            break
    return value(argv, "--model")


def served_name(argv: Sequence[str]) -> str | None:
    """The name clients ask for: the first ``--served-model-name``, else the model."""
    return value(argv, "--served-model-name") or model(argv)
