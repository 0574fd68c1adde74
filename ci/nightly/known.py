"""Known issues: failures that somebody is already looking at.

Enters: ``ci/known-issues.yaml``, a case, a verdict. Leaves: the entry that
explains a failure, or every problem of the file. Touches: reads that file.

A known failure stays a failure; it is only named, so that nobody looks twice.
An entry says ``green: true`` to let it pass, with its reason, and every entry
ends on a day: after it, running a case it is for is an error.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.core import door
from steps.core.case import check
from steps.core.case.source import load_yaml
from steps.core.errors import CaseError, Place, Problem
from steps.core.plan import clusters
from steps.core.record.verdict import PRODUCT_FAULTS, Verdict

FILE = Path("ci/known-issues.yaml")
_TEXT = {"type": "string", "empty": False, "required": True}
ENTRY: dict[str, Any] = {
    "signature": _TEXT,
    "case": _TEXT,
    "link": {**_TEXT, "regex": r"https?://\S+"},
    "expiry": {"type": "date", "required": True},
    "reason": _TEXT,
    "green": {"type": "boolean"},
}


@dataclass(frozen=True)
class Known:
    """One entry.

    Attributes:
        signature: the id of one of the harness's log signatures, or a regular
            expression that the cause or its evidence contains.
        case: path of cases, a shell pattern, such as ``configs/DeepSeek-*``.
        expiry: the last day on which it holds.
        green: a run that fails only by it exits with 0.
    """

    signature: str
    case: str
    link: str
    expiry: datetime.date
    reason: str
    green: bool
    place: Place

    def is_for(self, case_file: str, only: str = "") -> bool:
        """Whether it speaks of this case; ``only`` is its name among several of its file."""
        path = Path(case_file)
        names = {case_file, path.name, path.stem, *filter(None, (only,))}
        if path.is_absolute() and path.is_relative_to(clusters.ROOT):
            names.add(path.relative_to(clusters.ROOT).as_posix())
        return any(fnmatch.fnmatch(name, self.case) for name in names)

    def explains(self, verdict: Verdict) -> bool:
        """Whether the verdict's cause is this issue."""
        cause = verdict.cause
        if cause is None or verdict.verdict not in PRODUCT_FAULTS:
            return False
        if cause.signature and cause.signature == self.signature:
            return True
        text = "\n".join([str(cause), *cause.evidence])
        return re.search(self.signature, text) is not None


def load(path: Path = clusters.ROOT / FILE) -> tuple[Known, ...]:
    """Every entry of the file; none when there is no file.

    Raises:
        CaseError: every problem of its form.
    """
    if not path.is_file():
        return ()
    source = load_yaml(path)
    schema = {"issues": {"type": "list", "schema": {"type": "dict", "schema": ENTRY}}}
    data = source.data if isinstance(source.data, dict) else {"issues": source.data}
    problems = [
        Problem("known", f"{'.'.join(map(str, where))}: {text}", source.place(*where))
        for where, text in check.told(schema, {"issues": data.get("issues") or []})
    ]
    found = []
    for at, raw in enumerate(data.get("issues") or [] if not problems else []):
        try:
            re.compile(raw["signature"])
        except re.error as error:
            where = source.place("issues", at, "signature")
            problems.append(Problem("known", f"not a regular expression: {error}", where))
        found.append(
            Known(**{**raw, "green": raw.get("green", False)}, place=source.place("issues", at))
        )
    if problems:
        raise CaseError(problems)
    return tuple(found)


def expired(known: Iterable[Known], today: datetime.date) -> list[Problem]:
    """A problem for each entry whose day is over."""
    return [
        Problem(
            "known",
            f"expired on {entry.expiry}: {entry.reason}",
            entry.place,
            f"Look at {entry.link}: remove the entry, or give it a new day.",
        )
        for entry in known
        if entry.expiry < today
    ]


def of_case(
    known: Iterable[Known], case_file: str, today: datetime.date, only: str = ""
) -> tuple[Known, ...]:
    """The entries for a case; ``only`` is its name among several of its file.

    Raises:
        CaseError: one of them has expired.
    """
    mine = tuple(entry for entry in known if entry.is_for(case_file, only))
    problems = expired(mine, today)
    if problems:
        raise CaseError(problems)
    return mine


def explaining(known: Iterable[Known], verdict: Verdict) -> Known | None:
    """The first entry that explains a verdict."""
    return next((entry for entry in known if entry.explains(verdict)), None)


def remark(entry: Known) -> str:
    """A paragraph for the summary."""
    tail = "It is let pass, as the entry says." if entry.green else "It is still not green."
    return (
        f"**Known issue:** {entry.reason} ({entry.link}), known until {entry.expiry} by "
        f"`{entry.place.file}:{entry.place.line}`. {tail}"
    )


def work(arguments: argparse.Namespace) -> int:
    """Check the file; exit code 2 when an entry is wrong or has expired."""
    known = load()
    problems = expired(known, datetime.date.today())
    if problems:
        raise CaseError(problems)
    print(f"{FILE}: {len(known)} known issues")
    return 0


main = door.Verb("python -m ci.nightly.known", __doc__, door.no_options, work)


if __name__ == "__main__":
    sys.exit(main())
