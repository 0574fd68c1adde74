"""What an installation left of each product on a node.

Enters: a run directory, a node. Leaves: commits, and folders for path variables. Touches: reads and
writes ``products.json`` in the node's directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from steps.core.case.numbers import Refused
from steps.core.case.values import decode, plain
from steps.core.record.rundir import RunDir, read_json, write_json


@dataclass(frozen=True)
class Placed:
    """One product on a node; ``commit`` ends in ``-dirty`` where files differ from it."""

    asked: str
    commit: str = ""
    checkout: str = ""
    done: str = ""
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def write(run_dir: RunDir, index: int, found: Mapping[str, Placed]) -> None:
    """Keep what was placed, for the steps that come."""
    content = {name: plain(one) for name, one in found.items()}
    write_json(run_dir.node(index).path / "products.json", content)


def read(run_dir: RunDir, index: int) -> dict[str, Placed]:
    """The same, by the products' names."""
    found = read_json(run_dir.node(index).path / "products.json")
    try:
        return {name: decode(Placed, one) for name, one in found.items()} if found else {}
    except (Refused, AttributeError):
        return {}


def paths(run_dir: RunDir, index: int) -> dict[str, tuple[str, ...]]:
    """Folders of checkouts that go in front of path variables."""
    merged: dict[str, tuple[str, ...]] = {}
    for one in read(run_dir, index).values():
        for name, folders in one.paths.items():
            merged[name] = (*merged.get(name, ()), *folders)
    return merged
