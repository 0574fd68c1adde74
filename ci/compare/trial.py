"""One start of a fleet with one variant of the case, as a run of its own.

Enters: a case, what the variant changes in it, options of ``ci.run``. Leaves: what the start
showed. Touches: starts ``ci.run``, which leaves a run directory.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.compare.pair import Started
from ci.tools import casefile
from steps.core import foreign, settings
from steps.core.case.parts import variants
from steps.core.errors import Exit, MultinodeError, UsageError
from steps.core.record import outcome
from steps.core.record.rundir import RunDir, read_json

#: Verdicts that say something of the product; a missed limit was measured all the same.
MEASURED = ("pass", "performance")
FAILED = ("startup", "hang", "crash", "functional", "accuracy")
#: Starts that the infrastructure may fail before it is called unfit.
UNFIT = 3
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)*")


@dataclass
class Purse:
    """Device minutes: a limit, and what each start has spent."""

    limit: float | None = None
    spent: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        """What all starts spent."""
        return sum(self.spent)

    @property
    def affords(self) -> bool:
        """Whether one more start, as dear as the dearest, stays within the limit."""
        return self.limit is None or self.total + max(self.spent, default=0.0) <= self.limit

    def pay(self, directory: Path, seconds: float) -> None:
        """For a run, as its own report counts it; for one that left no records by the clock."""
        try:
            run = outcome.read(RunDir(directory))
        except MultinodeError:
            self.spent.append(seconds / 60)
            return
        devices = sum(node.devices for node in run.plan.nodes) or 1
        self.spent.append(run.spent.total or devices * seconds / 60)


def write(
    case: Path,
    settings: Sequence[str],
    repeats: int,
    target: Path,
    only: str = "",
    benchmark: str = "",
) -> None:
    """A case file of its own for what settings make of a case.

    Args:
        only: the case that is meant, where the file holds several.
        benchmark: the one that is measured; empty: all of them.

    Raises:
        UsageError: a setting does not fit the case.
        CaseError: what it makes is no case.
    """
    whole, own = casefile.opened(case, only)
    content = variants.changed(own, settings)
    content.pop("variants", None)
    every = content.get("benchmarks") or {}
    if benchmark:
        if benchmark not in every:
            raise UsageError(f"the case has no benchmark {benchmark!r}", f"It has: {[*every]}.")
        content["benchmarks"] = every = {benchmark: every[benchmark]}
    for entry in every.values():
        if isinstance(entry, dict) and repeats > 1:
            entry["repeat"] = repeats
    own.clear()
    own.update(content)
    casefile.written(target, whole, only)


def stop(_number: int) -> None:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable(act: Callable[[int], None] = stop) -> Iterator[None]:
    """Let SIGTERM and SIGHUP do this, so that neither leaves a fleet or an installation behind."""
    before = {
        number: signal.signal(number, lambda got, _: act(got))
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(
    case: Path,
    number: int,
    words: Sequence[str],
    directory: Path,
    env: Mapping[str, str] | None = None,
) -> Started | None:
    """Run the case to its verdict; None: the infrastructure failed, which tells nothing.

    Args:
        number: the variant, 0 is A and 1 is B; or the index of a commit.
        env: what ``ci.run`` has in its environment besides this process's.

    Raises:
        UsageError: the command or the case is wrong.
        KeyboardInterrupt: somebody asked to stop; the fleet is gone.
    """
    log = directory.with_suffix(".log")
    # A changed case is none of the case's nights.
    env = {**settings.inherited(), "MULTINODE_HISTORY": "", **(env or {})}
    argv = [sys.executable, "-m", "ci.run", str(case), *words, "--run-dir", str(directory)]
    asked: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int) -> None:
        asked.append(number)
        for child in children:
            child.terminate()

    with log.open("wb") as output, stoppable(pass_on):
        children.append(subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=env))
        if asked:  # before there was a child to pass it on to
            children[0].terminate()
        code = _wait(children[0], asked)
    # A child that is still being loaded dies of the signal, with a code of its own.
    if asked or code == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    if code == Exit.USAGE:
        tail = log.read_text(encoding="utf-8", errors="replace").strip()[-600:]
        raise UsageError(f"{directory.name} was refused: {tail}", f"The whole output: {log}.")
    return seen(number, directory)


def reason(directory: Path) -> str:
    """Why a run says nothing of the product, in a line."""
    verdict = read_json(RunDir(directory).verdict)
    cause = verdict.get("cause") if isinstance(verdict, dict) else None
    return foreign.line((cause or {}).get("reason", "it left no verdict"))[:300]


def rehearsed(directory: Path) -> bool:
    """Whether stand-ins played the engines of a run."""
    verdict = read_json(RunDir(directory).verdict)
    return isinstance(verdict, dict) and verdict.get("rehearsed") is True


def uninstalled(one: Started) -> bool:
    """Whether the product could not even be installed, which another start would not change."""
    return one.failure.split(" ")[1:2] == ["install"]


def _wait(child: subprocess.Popen[bytes], asked: list[int]) -> int:
    """The exit code; Ctrl-C reaches the child by itself, which stops its fleet first."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            asked.append(signal.SIGINT)


def seen(number: int, directory: Path) -> Started | None:
    """What a run directory shows of its variant."""
    verdict = read_json(RunDir(directory).verdict)
    if not isinstance(verdict, dict):
        return None
    if verdict["verdict"] in MEASURED:
        return Started(number, dict(_values(verdict["benchmarks"])), run=directory.name)
    if verdict["verdict"] in FAILED:
        return Started(number, failure=signature(verdict), run=directory.name)
    return None


def _values(benchmarks: Sequence[Mapping[str, Any]]) -> Mapping[str, tuple[float, ...]]:
    """``benchmark metric`` -> a value for each repetition."""
    found: dict[str, tuple[float, ...]] = {}
    for entry in benchmarks:
        runs = entry.get("runs") or [entry.get("metrics") or {}]
        for metric in runs[0]:
            values = [run[metric] for run in runs if metric in run]
            found[f"{entry['name']} {metric}"] = tuple(values)
    return found


def signature(verdict: Mapping[str, Any]) -> str:
    """The class of a failure, and its words without what differs from run to run."""
    cause = verdict.get("cause") or {}
    words = _NUMBER.sub("#", str(cause.get("reason", "")))
    process = _NUMBER.sub("#", str(cause.get("process", "")))
    return f"{verdict['verdict']} {cause.get('phase', '')} {process}: {words}"[:300]
