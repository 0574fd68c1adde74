"""A case file that is made of another.

Enters: a case file, which of its cases is meant. Leaves: its data, to be changed, and a file of
that. Touches: reads the one, writes the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from steps.core.case.build import cases_in, load_case
from steps.core.case.source import load_yaml
from steps.core.record.rundir import write_text


def opened(path: Path, only: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of a file, and the part of it that is the case; it is the whole where it is alone.

    Raises:
        CaseError, UsageError: it is no case, or several; each mistake is named.
    """
    load_case(path, only=only)  # which bounds what is read below
    whole = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    several = whole.get("test_cases")
    if not several:
        return whole, whole
    return whole, several[[*cases_in(load_yaml(path))].index(only) if only else 0]


def written(target: Path, whole: dict[str, Any], only: str) -> None:
    """Write the data.

    Raises:
        CaseError: it is no case any more.
    """
    write_text(target, yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=4096))
    load_case(target, only=only)
