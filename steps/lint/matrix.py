"""The nightly matrix as the matrix rules look at it.

Enters: the matrix file and the cases that were validated. Leaves: a :class:`Matrix`.
Touches: reads the matrix, and cases it names that were not among those.

A matrix maps each SoC to a list of entries: ``name``, ``case`` (a path, from
the repository's root, from ``configs/``, or a bare name), ``size`` (nodes), and
what else CI wants. ``excluded`` maps cases to the reason why no job runs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.core.case.case import Case
from steps.core.case.fields import is_several
from steps.core.case.source import Source, load_yaml
from steps.core.errors import CaseError, Place, Problem


@dataclass(frozen=True)
class Entry:
    """One job of the matrix; ``case`` None: no such file; ``size`` None: not said."""

    soc: str
    name: str
    written: str
    path: Path | None
    size: Any
    num_nodes: int | None
    place: Place
    size_place: Place
    case_place: Place


@dataclass(frozen=True)
class Matrix:
    """What matrix rules look at."""

    source: Source
    entries: tuple[Entry, ...]
    excluded: Mapping[str, str]
    cases: Mapping[Path, Case]


def read(path: Path, cases: Mapping[Path, Case]) -> Matrix:
    """The matrix in a file.

    Raises:
        CaseError: not readable, or not a mapping.
    """
    source = load_yaml(path)
    if not isinstance(source.data, dict):
        message = "expected a mapping from each SoC to its entries"
        raise CaseError([Problem("MN003", message, source.place())])
    return Matrix(source, tuple(_entries(source, path, cases)), _excluded(source), cases)


def _excluded(source: Source) -> dict[str, str]:
    value = source.data.get("excluded")
    if isinstance(value, list):
        return {str(name): "" for name in value}
    if not isinstance(value, dict):
        return {}
    return {str(name): str(reason or "") for name, reason in value.items()}


def _entries(source: Source, path: Path, cases: Mapping[Path, Case]) -> Iterator[Entry]:
    known = {file.resolve(): case for file, case in cases.items()}
    sizes: dict[Path, int | None] = {}
    for soc, value in source.data.items():
        if soc == "excluded" or not isinstance(value, list):
            continue
        for at, raw in enumerate(value):
            if not isinstance(raw, dict):
                continue
            written = str(raw.get("case") or raw.get("config_file_path") or "")
            found = locate(written, path)
            if found is not None and found not in sizes:
                case = known.get(found.resolve())
                sizes[found] = case.num_nodes if case else _num_nodes(found)
            nodes = sizes.get(found) if found else None
            yield Entry(
                str(soc),
                str(raw.get("name", written)),
                written,
                found,
                raw.get("size"),
                nodes,
                source.place(soc, at, "name"),
                source.place(soc, at, "size"),
                source.place(soc, at, "case"),
            )


def _num_nodes(path: Path) -> int | None:
    """What a case says, without reading the rest of it."""
    try:
        data = load_yaml(path).data
    except CaseError:
        return None
    if is_several(data):
        return 1
    nodes = data.get("num_nodes") if isinstance(data, dict) else None
    return nodes if isinstance(nodes, int) else None


def locate(written: str, matrix: Path) -> Path | None:
    """The file an entry names; None when there is none."""
    if not written:
        return None
    roots = [Path(), Path("configs"), matrix.parent, matrix.parent.parent]
    roots += [root / "configs" for root in roots[2:]]
    for root in roots:
        for name in (written, f"{written}.yaml"):
            if os.path.isfile(root / name):  # noqa: PTH113 (it takes any text)
                return root / name
    return None
