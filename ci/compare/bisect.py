"""bisect: which commit of the product made a case slower, or broke it.

Enters: a case, a product's repository, a good and a bad commit. Leaves: a directory with a run
for each start, ``bisect.json``, ``bisect.log`` in the form of ``git bisect log``, ``comment.md``
for a pull request. Touches: what ``ci.run`` touches; a clone of the repository.

    nox -s bisect -- CASE --repository ../vllm-ascend --good v0.30.0 --bad main --on local
    nox -s bisect -- CASE --repository R --good A --bad B --install 'pip install -e .'
    nox -s bisect -- CASE --repository vllm=../vllm --repository vllm-ascend=../vllm-ascend \\
        --good vllm=A --bad vllm=B --good vllm-ascend=C --bad vllm-ascend=D --on k8s

Exit codes: 0 a culprit; 5 suspects; 6 not reproduced; 7 the environment, since good fails
today as well; 4 the budget is over. Called again with the same ends it goes on where it was.
The case and the harness stay as they are; only the products move. What follows is passed on to
``ci.run``; {NAME} in it is a product's commit, {NAME.dir} its checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ci.compare import axis, commits, nights, pages, trial
from ci.compare.axis import Axis
from ci.compare.pair import Started
from ci.compare.search import Answer, Kind, Search, Seen, Start, unclear
from ci.nightly.history import Result, case_key, open_store
from ci.report import closing
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
SCHEMA = 2
#: Results of the history that are looked at.
NIGHTS = 200


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    for name, metavar, text in (
        ("repository", "[NAME=]DIR", "a product's git checkout"),
        ("good", "[NAME=]REF", "default: the last good run in the history"),
        ("bad", "[NAME=]REF", "default: HEAD; image=REFERENCE for an image, as with --good"),
        ("install", "[NAME=]COMMAND", "run in a checkout when native files have changed"),
        ("set", "PATH=VALUE", "changes the case, as in compare; may hold {NAME}"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=text)
    parser.add_argument("--metric", default="", help="default: output_throughput of the first")
    parser.add_argument("--bin", help="a folder of each checkout, first on PATH; default: bin")
    for name, least, kind, default, text in (
        ("install-minutes", 0.01, float, 60.0, "its limit"),
        ("repeats", 1, int, 2, "measurements on each warm fleet"),
        ("starts", 1, int, 60, "how many at most"),
    ):
        number = door.at_least(least, kind)
        parser.add_argument(f"--{name}", type=number, default=default, help=text)
    parser.add_argument(
        "--budget", type=door.at_least(0.01), help="in device minutes; default: no limit"
    )
    parser.add_argument("--history", default="", help="nights; default: $MULTINODE_HISTORY")
    parser.add_argument("--dir", type=Path, help="default: runs/bisect-<case and both ends>")


@trial.stoppable()
def run(arguments: argparse.Namespace) -> int:
    """Search, and say what was found."""
    case = wishes.find_case(arguments.case)
    if arguments.metric and arguments.metric.rpartition(" ")[2] not in METRICS:
        raise UsageError(f"--metric: {arguments.metric!r} is unknown", f"One of {list(METRICS)}.")
    where = arguments.history or settings.read().history
    past: list[Result] = []
    if where:
        past = open_store(where).results(case_key(str(case), arguments.only), NIGHTS)
        past = nights.comparable(past, "--rehearse" in arguments.more)
    line = _axis(arguments, past)
    every = line.commits
    ends = {
        name: (line.state(0)[name].sha, end.sha) for name, end in line.state(len(every)).items()
    }
    key = f"{case.resolve()} {arguments.only} {ends}"
    name = hashlib.sha256(key.encode()).hexdigest()[:10]
    home = arguments.dir or Path("runs") / f"bisect-{case.stem}-{name}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    door.keep_in(home)
    with _alone(home):
        walk = Walk(home, case, line, arguments, past)
        walk.resume(key)
        return walk.conclude(walk.to_the_end())


def _axis(arguments: argparse.Namespace, past: Sequence[Result]) -> Axis:
    """What moves, from a good end that the history may know."""
    repositories = axis.named("--repository", arguments.repository, axis.UNNAMED)
    single = next(iter(repositories), "") if len(repositories) == 1 else ""
    good = axis.named("--good", arguments.good, single)
    bad = axis.named("--bad", arguments.bad, single)
    paths = {name: Path(directory) for name, directory in repositories.items()}
    for name, path in paths.items():
        sha = nights.last_good(past, axis.called(name, path)) if name not in good else ""
        if sha:
            print(f"good: {name} {sha}, as in the last good run of the history", flush=True)
            good[name] = sha
    return axis.between(paths, good, bad)


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

    def __init__(
        self,
        home: Path,
        case: Path,
        line: Axis,
        arguments: argparse.Namespace,
        past: Sequence[Result] = (),
    ) -> None:
        self._home, self._case, self._axis, self._asked = home, case, line, arguments
        self._commits, self._past = line.commits, past
        names = [one for one in line.moved if one.repository]
        single = names[0].name if len(names) == 1 else ""
        installs = axis.named("--install", arguments.install, single)
        self._install = {name: commits.words(text) for name, text in installs.items()}
        self._clones = {
            one.name: commits.Clone(home / _folder(one.name), one.repository)
            for one in names
            if one.repository
        }
        self._built: dict[str, str] = {}
        self._purse = trial.Purse(arguments.budget)
        self._seen: list[Started] = []
        self._out: set[int] = set()
        self._wanted = arguments.metric or "output_throughput"
        self._key = ""
        self._write(0)  # what is wrong with the case is said before anything starts

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
        self._purse.spent = list(kept["device_minutes"])
        self._say(f"goes on after {len(self._seen)} starts")

    def to_the_end(self) -> Answer:
        """Start commits until the search has an answer."""
        limit = self._purse.limit
        minutes = f", {limit:g} device minutes" if limit is not None else ""
        self._say(
            f"{len(self._commits) - 1} candidates, at most {self._asked.starts} starts{minutes}; "
            f"runs in {self._home}"
        )
        unfit = 0
        while isinstance(step := self.step(), Start):
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
            if one and trial.uninstalled(one) and 0 < step.commit < len(self._commits) - 1:
                self._out.add(step.commit)
            self._seen += [one] if one else []
            self._keep(None)
            if unfit >= trial.UNFIT:
                raise InfraError(
                    f"{unfit} starts in a row failed for reasons that are not the product's",
                    f"Logs are in {self._home}. The same command goes on from here.",
                )
        return step

    def step(self) -> Start | Answer:
        """What comes next, within both budgets."""
        search = self.search()
        if not self._purse.affords:
            search = replace(search, starts=len(self._seen))
        return search.step(self._converted())

    def _start(self, index: int) -> Started | None:
        count = sum(1 for _ in self._home.glob("[0-9]*.log"))
        directory = self._home / f"{count + 1:02d}-{self._commits[index].short}"
        if axis.mentioned(self._asked.set):
            self._write(index)
        folder = self._asked.bin or "bin"
        bins = [str(c.path / folder) for name, c in self._clones.items() if self._here(name)]
        env = {"PATH": os.pathsep.join([*bins, settings.inherited()["PATH"]])}
        began = time.monotonic()
        one = trial.start(self._home / "case.yaml", index, self._words(index), directory, env)
        self._purse.pay(directory, time.monotonic() - began)
        told = f"does not count, infrastructure: {trial.reason(directory)}"
        if one is not None:
            value = self._value(one)
            told = one.failure or (
                f"{self._metric()} {value:.6g}" if value is not None else "no value"
            )
        self._say(f"  {directory.name}: {told}")
        return one

    def _here(self, name: str) -> bool:
        """Whether a product is run from its checkout; otherwise the nodes install it."""
        return name == axis.UNNAMED or bool(self._asked.bin or self._install)

    def _write(self, index: int) -> None:
        """The case as it is for a place of the axis."""
        settings = self._filled(self._asked.set, index)
        name = self._asked.metric.rpartition(" ")[0]
        target = self._home / "case.yaml"
        trial.write(self._case, settings, self._asked.repeats, target, self._asked.only, name)

    def _filled(self, words: Iterable[str], index: int) -> list[str]:
        """The words at a place of the axis."""
        checkouts = {name: clone.path for name, clone in self._clones.items()}
        state = self._axis.state(index)
        return [axis.filled(word, state, checkouts) for word in words]

    def _words(self, index: int) -> list[str]:
        """Options of ``ci.run``: products and images that the user has placed nowhere are added."""
        placed = axis.mentioned((*self._asked.more, *self._asked.set))
        words = ["--only", self._asked.only] if self._asked.only else []
        for one in self._axis.moved:
            if one.name in placed:
                continue
            if one.repository is None:
                words += ["--image", f"{{{one.name}}}"]
            elif not self._here(one.name):
                words += ["--product", f"{one.name}={{{one.name}.dir}}@{{{one.name}}}"]
        return self._filled((*words, *self._asked.more), index)

    def _build(self, index: int) -> bool:
        """Check the commits of a place out and install them; whether that went well."""
        for name, clone in self._clones.items():
            commit = self._axis.state(index)[name]
            clone.checkout(commit.sha)
            native = clone.native(commit.sha)
            if name not in self._install or native == self._built.get(name):
                continue
            # What a failed build leaves must not be taken for the earlier one.
            self._built.pop(name, None)
            clone.clean()
            log = self._home / f"install-{commit.short}.txt"
            if not clone.install(self._install[name], log, self._asked.install_minutes * 60):
                self._say(f"  {commit.short} cannot be installed ({log}); it is left out")
                return False
            self._built[name] = native
        return True

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
        found = Search(
            last,
            not self._failure(),
            frozenset(self._out),
            self._weights(last),
            self._axis.edges,
            starts=self._asked.starts,
        )
        return found if found.by_value else replace(found, ends=(3, 16))

    def _weights(self, last: int) -> dict[int, float]:
        """How likely each commit is beforehand: by what it touches, and by earlier nights."""
        shown = nights.seen(self._past, self._commits, self._metric(), self._failure())
        told = nights.weights(shown, last, not self._failure())
        every = {k: one.weight * told.get(k, 1.0) for k, one in enumerate(self._commits)}
        return {k: weight for k, weight in every.items() if weight != 1}

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

    def _keep(self, answer: Answer | None) -> dict[str, Any]:
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
            "by": "failure" if self._failure() else "value",
            "searched": self._failure() or self._metric(),
            "answer": told,
            "commits": [asdict(one) for one in self._commits],
            "out": sorted(self._out),
            "unclear": sorted(unclear(self._converted())),
            "starts": [asdict(one) for one in self._seen],
            "device_minutes": self._purse.spent,
            "updated": time.time(),
        }
        write_json(self._home / "bisect.json", content)
        return content

    def conclude(self, answer: Answer) -> int:
        """Write and print the answer; the exit code."""
        content = self._keep(answer)
        closing.attempt("the page", lambda: pages.searched(self._home, content), self._say)
        if len(self._axis.moved) == len(self._clones) == 1:
            write_text(self._home / "bisect.log", self._git_log(answer))
        text = self._comment(answer)
        write_text(self._home / "comment.md", text)
        print(text, flush=True)
        return CODES[answer.kind]

    def _git_log(self, answer: Answer) -> str:
        """What ``git bisect replay`` reads."""
        good, bad = self._commits[0], self._commits[-1]
        lines = [f"git bisect start '{bad.sha}' '{good.sha}'"]
        tried = {one.variant for one in self._seen} - self._skipped()
        first = next(iter(answer.suspects), None)
        for k in sorted(tried - {0, len(self._commits) - 1}):
            word = "skip" if first is None else "good" if k < first else "bad"
            lines.append(f"git bisect {word} {self._commits[k].sha}")
        lines += [f"git bisect skip {self._commits[k].sha}" for k in sorted(self._skipped())]
        return "\n".join(lines) + "\n"

    def _comment(self, answer: Answer) -> str:
        """The answer for people."""
        good, bad = self._commits[0], self._commits[-1]
        searched = foreign.code(self._failure() or self._metric())
        lines = [
            f"bisect of {foreign.code(self._asked.case)}, {good.short} (good) to "
            f"{bad.short} (bad): **{answer.kind.value}**, {answer.why}",
            "",
            f"{len(self._seen)} starts; searched: {searched}",
        ]
        if answer.suspects:
            lines += ["", "| commit | odds | subject |", "|---|---|---|"]
        for k, probability in list(answer.suspects.items())[:20]:
            one = self._commits[k]
            name = f"{one.product} {one.short}" if len(self._axis.moved) > 1 else one.short
            lines.append(
                f"| {name} | {100 * probability:.1f} % | {foreign.markdown(one.subject)} |"
            )
        if answer.kind is Kind.CULPRIT and answer.share < 0.75 and not self._failure():
            lines += ["", f"It explains {100 * answer.share:.0f} % of the loss; there is another."]
        return "\n".join(lines) + "\n"

    def _skipped(self) -> frozenset[int]:
        """The commits that cannot be built or judged."""
        return frozenset(self._out) | unclear(self._converted())

    def _say(self, text: str) -> None:
        print(foreign.block(text), flush=True)


def _folder(name: str) -> str:
    return "product" if name == axis.UNNAMED else f"product-{name}"


main = door.Verb("bisect", __doc__, _options, run, more=True)

if __name__ == "__main__":
    sys.exit(main())
