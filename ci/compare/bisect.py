"""bisect: which commit of the product made a case slower, or broke it.

Enters: a case, a product's repository, a good and a bad commit. Leaves: a directory with a run
for each start, ``bisect.json``, ``bisect.log`` in the form of ``git bisect log``, ``comment.md``
for a pull request. Touches: what ``ci.run`` touches; a clone of the repository.

    nox -s bisect -- CASE --repository ../vllm-ascend --good v0.30.0 --bad main --on local
    nox -s bisect -- CASE --repository R --good A --bad B --install 'pip install -e .'

Exit codes: 0 a culprit; 5 suspects; 6 not reproduced; 7 the environment, since good fails
today as well; 4 the budget is over. Called again with the same ends it goes on where it was.
The case and the harness stay as they are; only the clone moves.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ci.compare import commits, trial
from ci.compare.commits import Commit
from ci.compare.pair import Started
from ci.compare.search import Answer, Kind, Search, Seen, Start
from ci.compare.trial import Variant
from steps.core import door, foreign, settings
from steps.core.case.gates import METRICS
from steps.core.case.values import decode
from steps.core.errors import InfraError, UsageError
from steps.core.node import wishes
from steps.core.record.rundir import read_json, write_json, write_text

CODES = {
    Kind.CULPRIT: 0,
    Kind.BUDGET: 4,
    Kind.SUSPECTS: 5,
    Kind.NOT_REPRODUCED: 6,
    Kind.ENVIRONMENT: 7,
}
SCHEMA = 1


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--repository", required=True, type=Path, help="the product's git checkout")
    parser.add_argument("--good", required=True, metavar="REF")
    parser.add_argument("--bad", required=True, metavar="REF")
    parser.add_argument("--metric", default="", help="default: output_throughput of the first")
    parser.add_argument("--install", default="", metavar="COMMAND", help="run in each checkout")
    parser.add_argument("--bin", default="bin", help="a folder of the checkout, first on PATH")
    parser.add_argument("--install-minutes", type=float, default=60.0, help="its limit")
    parser.add_argument("--repeats", type=int, default=2, help="measurements on each warm fleet")
    parser.add_argument("--starts", type=int, default=60, help="the budget")
    parser.add_argument("--dir", type=Path, help="default: runs/bisect-<case and both ends>")


def run(arguments: argparse.Namespace) -> int:
    """Search, and say what was found."""
    case = wishes.find_case(arguments.case)
    if arguments.metric and arguments.metric.split()[-1] not in METRICS:
        raise UsageError(f"--metric: {arguments.metric!r} is unknown", f"One of {list(METRICS)}.")
    found = commits.between(arguments.repository, arguments.good, arguments.bad)
    key = f"{case.resolve()} {found[0].sha} {found[-1].sha}"
    name = hashlib.sha256(key.encode()).hexdigest()[:10]
    home = arguments.dir or Path("runs") / f"bisect-{case.stem}-{name}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    door.keep_in(home)
    with _alone(home):
        walk = Walk(home, found, arguments)
        walk.resume(key)
        trial.write(case, Variant("case"), arguments.repeats, home / "case.yaml")
        return walk.conclude(walk.to_the_end())


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the directory for this process.

    Raises:
        UsageError: another search goes on in it.
    """
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another search goes on in {home}", "Wait, or stop it.") from None
        yield


class Walk:
    """One search over commits: starts, what they showed, and the answer."""

    def __init__(self, home: Path, found: Sequence[Commit], arguments: argparse.Namespace) -> None:
        self._home, self._commits, self._asked = home, found, arguments
        self._clone = commits.Clone(home / "product", arguments.repository)
        self._seen: list[Started] = []
        self._out: set[int] = set()
        self._wanted = arguments.metric or "output_throughput"
        self._key = ""
        self._built = ""

    def resume(self, key: str) -> None:
        """Take up what an earlier search with the same ends has kept."""
        self._key = key
        kept = read_json(self._home / "bisect.json")
        if kept is None:
            return
        if not isinstance(kept, dict) or kept.get("key") != key or kept.get("schema") != SCHEMA:
            raise UsageError(f"{self._home} holds another search", "Name another --dir.")
        self._out = set(kept["out"])
        self._seen = [decode(Started, one) for one in kept["starts"]]
        self._say(f"goes on after {len(self._seen)} starts")

    def to_the_end(self) -> Answer:
        """Start commits until the search has an answer."""
        self._say(f"{len(self._commits) - 1} candidates; runs in {self._home}")
        unfit = 0
        while isinstance(step := self.search().step(self._converted()), Start):
            commit = self._commits[step.commit]
            self._say(f"{commit.short} {step.why}: {commit.subject}")
            if not self._build(step.commit):
                if step.commit in (0, len(self._commits) - 1):
                    raise InfraError(f"{commit.short}, an end of the search, cannot be installed")
                self._out.add(step.commit)
                self._keep(None)
                continue
            one = self._start(step.commit)
            unfit = 0 if one else unfit + 1
            if unfit >= trial.UNFIT:
                raise InfraError(
                    f"{unfit} starts in a row failed for reasons that are not the product's",
                    f"Logs are in {self._home}. The same command goes on from here.",
                )
            if one:
                self._seen.append(one)
                self._keep(None)
        return step

    def _start(self, index: int) -> Started | None:
        count = sum(1 for _ in self._home.glob("*.log"))
        directory = self._home / f"{count + 1:02d}-{self._commits[index].short}"
        path = os.pathsep.join(
            [str(self._clone.path / self._asked.bin), settings.inherited()["PATH"]]
        )
        env = {**settings.inherited(), "PATH": path}
        one = trial.start(self._home / "case.yaml", index, self._asked.more, directory, env)
        told = "the infrastructure failed it; it does not count"
        if one is not None:
            value = self._value(one)
            told = one.failure or (
                f"{self._metric()} {value:.6g}" if value is not None else "no value"
            )
        self._say(f"  {directory.name}: {told}")
        return one

    def _build(self, index: int) -> bool:
        """Check the commit out and install it; whether that went well."""
        commit = self._commits[index]
        self._clone.checkout(commit.sha)
        native = self._clone.native(commit.sha)
        if not self._asked.install or native == self._built:
            return True
        # What a failed build leaves must not be taken for the earlier one.
        self._built = ""
        self._clone.clean()
        log = self._home / f"install-{commit.short}.txt"
        words = shlex.split(self._asked.install)
        if self._clone.install(words, log, self._asked.install_minutes * 60):
            self._built = native
            return True
        self._say(f"  {commit.short} cannot be installed ({log}); it is left out")
        return False

    def _metric(self) -> str:
        """``benchmark metric`` that is followed."""
        return next(filter(None, map(self._followed, self._seen)), self._wanted)

    def _followed(self, one: Started) -> str:
        """The same as a start has measured it; empty when it has not."""
        names = (n for n in one.values if self._wanted in (n, n.split()[-1]))
        return next(names, "")

    def _value(self, one: Started) -> float | None:
        name = self._followed(one)
        values = one.values.get(name)
        if not values:
            return None
        return fmean(values) * (1 if METRICS[name.split()[-1]][1] else -1)

    def _failure(self) -> str:
        """The failure that is searched: what bad does at least half of the time, else none."""
        bad = [one.failure for one in self._seen if one.variant == len(self._commits) - 1]
        kinds = [failure for failure in bad if failure]
        if 2 * len(kinds) < len(bad) or not kinds:
            return ""
        return max(sorted(set(kinds)), key=kinds.count)

    def search(self) -> Search:
        """The search as it stands."""
        last = len(self._commits) - 1
        weights = {k: one.weight for k, one in enumerate(self._commits) if one.weight != 1}
        plain = Search(last, True, frozenset(self._out), weights, starts=self._asked.starts)
        if not self._failure():
            return plain
        return replace(plain, by_value=False, ends=(3, 16))

    def _converted(self) -> list[Seen]:
        failure = self._failure()
        if failure:
            return [
                Seen(
                    one.variant,
                    None,
                    None if one.failure not in ("", failure) else bool(one.failure),
                )
                for one in self._seen
            ]
        values = ((one, self._value(one)) for one in self._seen)
        return [Seen(one.variant, value, None if value is None else False) for one, value in values]

    def _keep(self, answer: Answer | None) -> None:
        """Write all that is known; a search that dies is taken up from it."""
        told: Mapping[str, Any] | None = None
        if answer:
            told = {
                "kind": answer.kind.value,
                "why": answer.why,
                "share": answer.share,
                "suspects": [
                    {**asdict(self._commits[k]), "odds": round(p, 4)}
                    for k, p in answer.suspects.items()
                ],
            }
        content = {
            "schema": SCHEMA,
            "key": self._key,
            "searched": self._failure() or self._metric(),
            "answer": told,
            "commits": [asdict(one) for one in self._commits],
            "out": sorted(self._out),
            "starts": [asdict(one) for one in self._seen],
            "updated": time.time(),
        }
        write_json(self._home / "bisect.json", content)

    def conclude(self, answer: Answer) -> int:
        """Write and print the answer; the exit code."""
        self._keep(answer)
        write_text(self._home / "bisect.log", self._git_log(answer))
        text = self._comment(answer)
        write_text(self._home / "comment.md", text)
        print(text, flush=True)
        return CODES[answer.kind]

    def _git_log(self, answer: Answer) -> str:
        """What ``git bisect replay`` reads."""
        good, bad = self._commits[0], self._commits[-1]
        lines = [f"git bisect start '{bad.sha}' '{good.sha}'"]
        first = next(iter(answer.suspects), None)
        for k in sorted({one.variant for one in self._seen} - {0, len(self._commits) - 1}):
            word = "skip" if first is None else "good" if k < first else "bad"
            lines.append(f"git bisect {word} {self._commits[k].sha}")
        lines += [f"git bisect skip {self._commits[k].sha}" for k in sorted(self._out)]
        return "\n".join(lines) + "\n"

    def _comment(self, answer: Answer) -> str:
        """The answer for people."""
        good, bad = self._commits[0], self._commits[-1]
        lines = [
            f"bisect of {self._asked.case}, {good.short} (good) to {bad.short} (bad): "
            f"**{answer.kind.value}**, {answer.why}",
            "",
            f"{len(self._seen)} starts; searched: {self._failure() or self._metric()}",
        ]
        if answer.suspects:
            lines += ["", "| commit | odds | subject |", "|---|---|---|"]
        for k, probability in list(answer.suspects.items())[:20]:
            one = self._commits[k]
            lines.append(
                f"| {one.short} | {100 * probability:.1f} % | {foreign.markdown(one.subject)} |"
            )
        if answer.kind is Kind.CULPRIT and answer.share < 0.75 and not self._failure():
            lines += ["", f"It explains {100 * answer.share:.0f} % of the loss; there is another."]
        return "\n".join(lines) + "\n"

    def _say(self, text: str) -> None:
        print(text, flush=True)


main = door.Verb("bisect", __doc__, _options, run, more=True)

if __name__ == "__main__":
    sys.exit(main())
