"""row: the cases of one file, one fleet after the other, each a run of its own below the run's.

Enters: a file of several cases, and what carries out one of them. Leaves: a directory a case,
and what sums them up: ``verdict.json``, ``summary.md``, ``junit.xml`` with a suite each. Touches:
the run directory, the terminal.

A product that fails ends no row. What makes the next cases pointless does: a wrong case, an
infrastructure that does not carry, an interrupt; then the others are told as not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ci.report import closing
from steps.core import door, foreign
from steps.core.case.build import cases_in
from steps.core.case.source import load_yaml
from steps.core.errors import CaseError, Exit, MultinodeError, UsageError
from steps.core.node.wishes import Wishes
from steps.core.record.rundir import RunDir, new_run_id, read_json, write_json, write_text
from steps.core.record.verdict import SCHEMA
from steps.core.redaction import here

#: Exit codes from the best to the worst, and those that end a row.
ORDER = (Exit.PASS, Exit.DEADLINE, Exit.PRODUCT, Exit.INFRA, Exit.USAGE, Exit.INTERRUPTED)
ENDS = (Exit.INFRA, Exit.USAGE, Exit.INTERRUPTED)
NOT_RUN = "not run"
#: Carries out one case, to an exit code.
One = Callable[[Wishes, Path], int]


@dataclass
class Part:
    """A case of the row: its name, its directory, and its exit code once it has been run."""

    name: str
    directory: Path
    code: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What its own verdict says."""
        found = read_json(self.directory / "verdict.json") if self.code is not None else None
        return found if isinstance(found, dict) else {}


def names(path: Path) -> tuple[str, ...]:
    """The cases of a file of several; none for any other file, whatever is wrong with it."""
    try:
        return tuple(name for name in cases_in(load_yaml(path)) if name)
    except CaseError:
        return ()


def run(asked: Wishes, path: Path, cases: Sequence[str], one: One) -> int:
    """Carry out every case of the file; the exit code is the worst.

    Raises:
        UsageError: the run directory holds another run.
        MultinodeError: what stopped the row, if it was no run's verdict.
    """
    run_id = new_run_id()
    base = RunDir(asked.run_dir or Path("runs") / run_id)
    if base.verdict.exists():
        raise UsageError(f"{base.path} holds another run", "Name another one with --run-dir.")
    base = base.make()
    base.claim()
    parts = [
        Part(name, base.path / folder) for name, folder in zip(cases, _folders(cases), strict=True)
    ]
    closing.attempt("runs/latest", partial(closing.latest, base), door.warn)
    try:
        for at, part in enumerate(parts, 1):
            print(
                f"\n=== case {at} of {len(parts)}: {foreign.line(here().text(part.name))}",
                flush=True,
            )
            mine = replace(asked, only=part.name, run_dir=part.directory)
            try:
                part.code = one(mine, path)
            except MultinodeError as error:
                part.code = int(error.exit_code)
                raise
            if part.code in ENDS:
                break
    finally:
        summing = partial(_sum_up, asked, base, run_id, path, parts)
        closing.attempt("the summary of all cases", summing, door.warn)
    return worst(parts)


def worst(parts: Sequence[Part]) -> int:
    """The exit code of them all."""
    codes = [Exit(part.code) for part in parts if part.code is not None]
    return int(max(codes, key=ORDER.index, default=Exit.INTERRUPTED))


def _folders(cases: Sequence[str]) -> Iterator[str]:
    """A directory for each case, none of which is another's or a file of the whole."""
    taken = {"verdict.json", "summary.md", "junit.xml"}
    for name in cases:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "case"
        tries = (base, *(f"{base}-{number}" for number in range(2, len(cases) + 5)))
        folder = next(text for text in tries if text not in taken)
        taken.add(folder)
        yield folder


def _sum_up(asked: Wishes, base: RunDir, run_id: str, path: Path, parts: Sequence[Part]) -> None:
    from ci.report import junit  # here: one case alone does without

    code = worst(parts)
    done = [part for part in parts if part.code is not None]
    last = max(done, key=lambda part: ORDER.index(Exit(part.code or 0)), default=None)
    write_json(
        base.verdict,
        {
            "schema": SCHEMA,
            "run": run_id,
            "case": path.stem,
            "verdict": last.told.get("verdict", "no-verdict") if last else NOT_RUN,
            "exit_code": code,
            "cause": last.told.get("cause") if last else None,
            "cases": [_entry(part) for part in parts],
        },
    )
    write_text(base.summary, here().text("\n".join(_lines(path, parts))) + "\n")
    left = [part.name for part in parts if part.code is None]
    suites = [part.directory / "junit.xml" for part in done]
    if left:
        absent = base.path / "not-run.xml"
        write_text(absent, junit.not_run(left, run_id, "a case before it ended the row"))
        suites.append(absent)
    for target in filter(None, (base.junit, asked.junit)):
        junit.collect(target, [suite for suite in suites if suite.is_file()])
    closing.publish(base)
    closing.show(base)


def _entry(part: Part) -> dict[str, Any]:
    told = part.told
    return {
        "case": part.name,
        "directory": part.directory.name,
        "verdict": told.get("verdict", NOT_RUN if part.code is None else "no-verdict"),
        "exit_code": part.code,
        "run": told.get("run"),
        "seconds": told.get("seconds"),
    }


def _lines(path: Path, parts: Sequence[Part]) -> Iterator[str]:
    passed = sum(part.code == Exit.PASS for part in parts)
    mark = "✅" if passed == len(parts) else "❌"
    yield f"# {mark} {foreign.markdown(path.name)}: {passed} of {len(parts)} cases passed"
    yield ""
    yield "| case | verdict | seconds | cause |"
    yield "|---|---|---|---|"
    for part in parts:
        told, entry = part.told, _entry(part)
        cause = told.get("cause")
        reason = str(cause.get("reason", "")) if isinstance(cause, dict) else ""
        cells = (part.name, str(entry["verdict"]), f"{told.get('seconds', '')}", reason)
        yield f"| {' | '.join(foreign.markdown(cell) for cell in cells)} |"
