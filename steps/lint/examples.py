"""The examples of the rules, and the base cases they change: small, correct, without a finding.

Enters: ``data/``: the base cases, and each rule's examples. Leaves: both. Touches: reads
those files once. The examples are the rules' tests and stand on their reference page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from steps.core.case.source import Loader

_DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Example:
    """A base case (a key of :data:`BASES`) with small edits, each (old, new)."""

    base: str
    edits: tuple[tuple[str, str], ...] = ()


@cache
def data(name: str) -> dict[str, Any]:
    """A file of ``data/``."""
    text = (_DATA / f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, Loader=Loader)
    return found


def of(code: str, kind: str) -> tuple[Example, ...]:
    """The examples of a rule; ``kind``: those that it ``fails`` or ``passes``."""
    return tuple(
        Example(base, tuple(zip(edits[::2], edits[1::2], strict=True)))
        for base, *edits in data("examples").get(code, {}).get(kind, ())
    )


def text_of(example: Example) -> str:
    """The example's whole case; each edit changes the first place where its old text stands.

    Raises:
        ValueError: an old text does not stand in the base.
    """
    text = BASES[example.base]
    for old, new in example.edits:
        if old not in text:
            raise ValueError(f"{old!r} is not in the base {example.base}")
        text = text.replace(old, new, 1)
    return text


#: Two nodes with one data-parallel group, the second headless; one prefill and one decode node;
#: two nodes whose ranks are servers of their own.
PARALLEL, SPLIT, ROUTING = (
    (_DATA / f"{name}.yaml").read_text(encoding="utf-8")
    for name in ("parallel", "split", "routing")
)
BASES = {"parallel": PARALLEL, "split": SPLIT, "routing": ROUTING}
