"""baseline: propose what a case's benchmarks should be held against.

Enters: a case and its history. Leaves: a diff of the case file to review, and
why. Touches: reads the store and the case; with ``--write`` the case.

    nox -s baseline -- DeepSeek-V3.yaml

The proposal is the median of the good runs since the level last changed. A
lower baseline hides a regression, so none is proposed unless ``--lower`` is
given; the text then still says which commits made it slower.
"""

from __future__ import annotations

import argparse
import difflib
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.nightly.history import Result
from ci.nightly.trend import ENOUGH, Point, add_arguments, level, results_of, series, span, store_of
from steps.core import door, foreign
from steps.core.case.build import cases_in, choose, load_case
from steps.core.case.case import Benchmark, Case
from steps.core.case.source import Source, parse_yaml
from steps.core.errors import CaseError, UsageError
from steps.core.node import wishes
from steps.core.record import stats
from steps.core.record.rundir import write_text

DIGITS = 4


@dataclass(frozen=True)
class Proposal:
    """A baseline for one benchmark; ``value`` None: nothing is proposed, for the reason given."""

    benchmark: str
    metric: str
    now: float | None
    value: float | None
    reason: str


def propose(benchmark: Benchmark, results: Sequence[Result], lower: bool = False) -> Proposal:
    """A baseline from what history holds, a pure function."""
    metric = benchmark.compared
    points = series(results, benchmark.name, metric)
    recent = level(points)
    values = [point.value for point in recent]

    def answer(value: float | None, reason: str) -> Proposal:
        return Proposal(benchmark.name, metric, benchmark.baseline, value, reason)

    if benchmark.rates:
        return answer(None, "its baseline is a list of rates, which is not proposed")
    if benchmark.no_gate_reason:
        return answer(None, f"gate: none, {benchmark.no_gate_reason}")
    if len(values) < ENOUGH:
        return answer(None, f"{len(values)} good runs at this level, expected at least {ENOUGH}")
    middle = statistics.median(values)
    value = float(f"{middle:.{DIGITS}g}")
    why = (
        f"median {middle:g} of {len(values)} good runs ({recent[0].run} to {recent[-1].run}), "
        f"noise {100 * stats.noise(values):.1f} %, lowest {min(values):g}, highest {max(values):g}"
    )
    if len(recent) < len(points):
        why += f"; the level changed with {_change(points, recent)}"
    if benchmark.baseline is not None and abs(value - benchmark.baseline) <= 0.005 * abs(value):
        return answer(None, f"stays at {benchmark.baseline:g}: {why}")
    meaningful = benchmark.baseline not in (None, 0.0, 1.0)
    if meaningful and benchmark.baseline is not None and value < benchmark.baseline and not lower:
        return answer(
            None,
            f"NOT lowered from {benchmark.baseline:g} to {value:g}: {why}. A lower baseline hides "
            "a regression; give --lower when it is meant",
        )
    return answer(value, why)


def _change(points: Sequence[Point], recent: Sequence[Point]) -> str:
    return span(points[len(points) - len(recent) - 1], recent[0])


def edited(source: Source, text: str, benchmark: str, value: float) -> str:
    """The case's text with another baseline; every other byte stays.

    Raises:
        UsageError: the value cannot be changed alone, as when an anchor shares it.
    """
    path = ("benchmarks", benchmark, "baseline")
    lines = text.splitlines(keepends=True)
    shown = f"{value:g}" if value < 1e6 else f"{value:.0f}"
    if path in source.spans:
        line, column, _, style = source.spans[path]
        old = lines[line - 1]
        head, tail = old[: column - 1], old[column - 1 :]
        pattern = r"'[^']*'" if style == "'" else r'"[^"]*"' if style == '"' else r"[^\s,}#]+"
        lines[line - 1] = head + re.sub(pattern, shown, tail, count=1)
    else:
        mark = source.marks[("benchmarks", benchmark, "case_type")]
        before = lines[mark[0] - 1]
        if not before[: mark[1] - 1].isspace():
            raise UsageError(f"{source.file}:{mark[0]}: write 'baseline: {shown}' there by hand")
        ending = "\n" if before.endswith("\n") else ""
        if not ending:
            lines[mark[0] - 1] = before + "\n"
        lines.insert(mark[0], f"{before[: mark[1] - 1]}baseline: {shown}{ending}")
    new = "".join(lines)
    wanted = {**_data(text, source.file), source.only: _with(source.data, benchmark, value)}
    try:
        if _data(new, source.file) == wanted:
            return new
    except CaseError:
        pass
    raise UsageError(
        f"{source.file}: the baseline of '{benchmark}' cannot be changed alone",
        f"Is it shared by an anchor? Set 'baseline: {shown}' by hand.",
    )


def _data(text: str, file: str) -> dict[str, Any]:
    """Every case of a file, by its name there."""
    return {only: source.data for only, source in cases_in(parse_yaml(text, file)).items()}


def _with(data: Any, benchmark: str, value: float) -> Any:
    entry = {**data["benchmarks"][benchmark], "baseline": value}
    return {**data, "benchmarks": {**data["benchmarks"], benchmark: entry}}


def diff(case: Case, text: str, proposals: Sequence[Proposal]) -> tuple[str, str]:
    """The case's new text, and the change as a unified diff."""
    new = text
    for proposal in proposals:
        if proposal.value is not None:
            source = choose(case.file, cases_in(parse_yaml(new, case.file)), case.only)
            new = edited(source, new, proposal.benchmark, proposal.value)
    name = Path(case.file).as_posix()
    change = difflib.unified_diff(
        text.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return new, "".join(line if line.endswith("\n") else f"{line}\n" for line in change)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--lower", action="store_true", help="propose lower baselines too")
    parser.add_argument("--write", action="store_true", help="change the case file, too")
    add_arguments(parser)


def work(arguments: argparse.Namespace) -> int:
    """Print the proposal."""
    path = wishes.find_case(arguments.case)
    case = load_case(path, only=arguments.only)
    results = results_of(store_of(arguments), str(path), arguments.last, case.only)
    proposals = [propose(entry, results, arguments.lower) for entry in case.benchmarks]
    for entry in proposals:
        head = "no change" if entry.value is None else f"baseline: {entry.value:g}"
        print(foreign.line(f"# {entry.benchmark}, {entry.metric}: {head}; {entry.reason}"))
    text = path.read_text(encoding="utf-8")
    new, change = diff(case, text, proposals)
    print(change, end="")
    if arguments.write and change:
        write_text(path, new)
    return 0


main = door.Verb("baseline", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
