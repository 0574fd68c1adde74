"""hunt: whether a red night is followed by a search for the commit, and between which ends.

Enters: the run of the night, the history of its case, how old a good run and how dear a search may
be. Leaves: a decision, with its reason; the words of ``nox -s bisect``. Touches: reads the store
and the run directory, writes ``hunt.md`` there.

    nox -s hunt -- CASE --run run --minutes 2000 --days 3
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.nightly.history import Result, case_key
from ci.nightly.trend import store_of
from steps.core import door, foreign
from steps.core.errors import UsageError
from steps.core.plan.products import KNOWN
from steps.core.record.rundir import RunDir, read_json, write_text
from steps.core.record.verdict import PRODUCT_FAULTS

#: Starts of a fleet without which no search says anything: each end several times.
FEWEST = 6
#: Results that are looked through for a good one.
LOOK_BACK = 60
DAY = 86400.0
#: Versions that name the commit of a product, which the search can move.
_TAIL = "-commit"
_COMMIT = re.compile("[0-9a-f]{7,40}")
TEXT = "hunt.md"


@dataclass(frozen=True)
class Limits:
    """What a search may cost: device minutes (0: none is started); days since the good run."""

    minutes: float
    days: float


@dataclass(frozen=True)
class Decision:
    """Whether a search is started.

    Attributes:
        why: a sentence for people.
        ends: product -> its good and its bad commit; empty: nothing is started.
        also: other versions that moved, which no search can move.
    """

    why: str
    ends: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    also: tuple[str, ...] = ()


def decide(
    bad: Result, past: Sequence[Result], known_issue: str, limits: Limits, products: Sequence[str]
) -> Decision:
    """Whether the night's result is worth a search, a pure function.

    Args:
        past: earlier results of the case, oldest first.
        known_issue: what explains the failure already; empty: nothing does.
        products: those whose repositories are known.
    """
    for why in _not_at_all(bad, known_issue, limits):
        return Decision(why)
    alike = [one for one in past if one.compares(bad)]
    good = next((one for one in reversed(alike) if one.verdict == "pass"), None)
    if good is None:
        return Decision("no run of it has passed on this cluster")
    for why in _not_since(bad, good, alike, limits):
        return Decision(why)
    moved = {
        name: (good.versions.get(name, ""), bad.versions.get(name, ""))
        for name in sorted({*good.versions, *bad.versions})
        if good.versions.get(name, "") != bad.versions.get(name, "")
    }
    ends = {name[: -len(_TAIL)]: pair for name, pair in moved.items() if name.endswith(_TAIL)}
    also = tuple(
        f"{name} {old or 'none'} -> {new or 'none'}"
        for name, (old, new) in moved.items()
        if not name.endswith(_TAIL) and name not in ends
    )
    for why in _no_range(ends, also, products):
        return Decision(why, also=also)
    names = ", ".join(ends)
    return Decision(f"{names} moved since {_night(good)}, which passed", ends, also)


def _not_at_all(bad: Result, known_issue: str, limits: Limits) -> Iterator[str]:
    if not limits.minutes:
        yield "searches are switched off"
    if bad.verdict not in PRODUCT_FAULTS:
        yield f"the verdict is {bad.verdict}, which no commit of a product explains"
    if bad.rehearsed:
        yield "it was rehearsed"
    if known_issue:
        yield f"it is a known issue: {known_issue}"


def _not_since(bad: Result, good: Result, alike: Sequence[Result], limits: Limits) -> Iterator[str]:
    """Why the good run is none to begin with."""
    age = (bad.time - good.time) / DAY
    if age > limits.days:
        yield f"the last good run, {_night(good)}, is {age:.1f} days old, at most {limits.days:g}"
    if good.case_sha256 != bad.case_sha256:
        yield f"the case has changed since {_night(good)}, which passed"
    red = [one for one in alike if one.time > good.time and one.verdict == bad.verdict]
    if red:
        yield f"it is {bad.verdict} since {_night(red[0])}, after which a search was due"
    dearest = max(good.npu_minutes, bad.npu_minutes)
    if FEWEST * dearest > limits.minutes:
        yield (
            f"{limits.minutes:g} device minutes are less than {FEWEST} starts of {dearest:.0f}, "
            "without which nothing can be said"
        )


def _no_range(
    ends: Mapping[str, tuple[str, str]], also: Sequence[str], products: Sequence[str]
) -> Iterator[str]:
    """Why the commits are no range to search."""
    for name, pair in ends.items():
        odd = next((text for text in pair if not _COMMIT.fullmatch(text)), None)
        if odd is not None:
            yield f"{name}: {odd or 'nothing'!r} is no commit that can be searched from"
        elif name not in products:
            yield f"nothing says where {name} comes from"
    if not ends and also:
        yield f"no product's commit has moved, but {'; '.join(also)}"
    elif not ends:
        yield "nothing has moved since the good run: it is noise, or the machines"


def _night(result: Result) -> str:
    return f"{result.run} of {time.strftime('%Y-%m-%d', time.gmtime(result.time))}"


def words(decision: Decision, limits: Limits) -> tuple[str, ...]:
    """The options of ``bisect``; its repositories are cloned into ``products/``."""
    found = [word for name in decision.ends for word in ("--repository", f"{name}=products/{name}")]
    for name, (good, bad) in decision.ends.items():
        found += ["--good", f"{name}={good}", "--bad", f"{name}={bad}"]
        found += ["--product", f"{name}={{{name}}}"]  # its place for the commit of each start
    return (*found, "--budget", f"{limits.minutes:g}")


def text(decision: Decision) -> str:
    """The decision for people, Markdown."""
    head = "A search for the commit is started" if decision.ends else "No search for the commit"
    lines = [f"{head}: {foreign.markdown(decision.why)}."]
    for name, (good, bad) in decision.ends.items():
        lines.append(f"- {foreign.markdown(name)}: {foreign.code(good)} to {foreign.code(bad)}")
    if decision.also and decision.ends:
        lines.append(f"- not searched, moved too: {foreign.markdown('; '.join(decision.also))}")
    return "\n".join(lines) + "\n"


def of_run(
    told: Any, results: Sequence[Result], limits: Limits, products: Sequence[str]
) -> Decision:
    """The decision on a run that is over.

    Args:
        told: its ``verdict.json``.
        results: the case's, oldest first, that of the run among them.
    """
    if not isinstance(told, dict) or "cases" in told:
        return Decision("its directory holds no verdict of one case")
    at = next((k for k, one in enumerate(results) if one.run == told.get("run")), None)
    if at is None:
        return Decision("the run is not in the history")
    issue = told.get("known_issue")
    link = str(issue.get("link", "")) if isinstance(issue, dict) else ""
    return decide(results[at], results[:at], link, limits, products)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="its run")
    parser.add_argument(
        "--minutes", type=door.at_least(0), default=0.0, help="device minutes; 0: off"
    )
    parser.add_argument(
        "--days", type=door.at_least(0), default=3.0, help="how old a good run may be"
    )
    parser.add_argument("--store", default="", help="default: $MULTINODE_HISTORY")


def work(arguments: argparse.Namespace) -> int:
    """Decide, and print outputs of a job of GitHub's."""
    limits = Limits(arguments.minutes, arguments.days)
    if not 0 <= limits.minutes < 1e7 or not 0 < limits.days < 1e4:
        raise UsageError("--minutes, --days: expected numbers that are no less than 0")
    run_dir = RunDir(arguments.run)
    results = store_of(arguments).results(case_key(arguments.case), LOOK_BACK)
    decision = of_run(read_json(run_dir.verdict), results, limits, tuple(KNOWN))
    write_text(run_dir.path / TEXT, text(decision))
    print(foreign.line(decision.why), file=sys.stderr)
    if decision.ends:
        sources = " ".join(f"{name}={KNOWN[name].repository}" for name in decision.ends)
        print(f"words={' '.join(words(decision, limits))}\nsources={sources}")
    return 0


main = door.Verb("hunt", __doc__, _options, work)

if __name__ == "__main__":
    sys.exit(main())
