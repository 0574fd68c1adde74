"""History: what each run of a case said, in a store that a team shares with no server.

Enters: results, and where the store is: a directory, or a branch of a git
repository as ``git:URL#BRANCH``. Leaves: one file a result; results of a case
in the order of their times. Touches: the store.

    STORE/v1/<case key>/<YYYY-MM>/<time>-<run id>.json

A result is written under another name and renamed, so it is there whole or not
at all; its name is that of its run, so a second writer of the same result
changes nothing; its content carries a checksum. What is there besides, torn,
foreign, no file or no result, is named once and left out.

    python -m ci.nightly.history RUN_DIR [--store DIR]      keep a run's result afterwards
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from steps.core import door, foreign, settings
from steps.core.case import values
from steps.core.case.numbers import dumps, loads
from steps.core.errors import InfraError, UsageError
from steps.core.plan import clusters
from steps.core.plan.plan import Plan
from steps.core.record import outcome
from steps.core.record.records import Record, fleet_versions
from steps.core.record.rundir import RunDir, read_bounded
from steps.core.record.verdict import Verdict
from steps.core.system.git import git

SCHEMA = 1
TRIES = 8
#: Bytes of an entry; one of a hundred benchmarks has a tenth of it.
ENTRY_BYTES = 1 << 20
#: After so many entries that are none, a store is not searched further.
MOST_ODD = 500
#: The last second that has a date of four digits.
LAST_SECOND = 253402300799
#: Entries that are none, of which the name is said.
SHOWN = 10
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What history keeps of a run.

    Attributes:
        case: key of the case; see :func:`case_key`.
        time: start, seconds since the epoch.
        benchmarks: name -> metrics; those that were believed only.
        statuses: name -> pass, fail, skipped or error.
        drivers: name -> what measured it; numbers of two drivers do not compare.
        commit: of this repository, the harness's, where there is one.
        versions: of the product; its commit is ``NAME-commit``, see :attr:`product`.
        asked: the products that the run was told to test, as they were asked for.
    """

    run: str
    case: str
    time: float
    verdict: str
    cause: str = ""
    case_sha256: str = ""
    cluster: str = ""
    engine: str = ""
    harness: str = ""
    commit: str = ""
    rehearsed: bool = False
    seconds: float = 0.0
    npu_minutes: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    statuses: Mapping[str, str] = field(default_factory=dict)
    drivers: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def product(self) -> str:
        """What was tested, by name and commit; empty where no node told one."""
        named = [name for name in self.asked if f"{name}-commit" in self.versions]
        usual = [name for name in ("vllm-ascend", "vllm") if f"{name}-commit" in self.versions]
        told = ((name, self.versions[f"{name}-commit"]) for name in named or usual[:1])
        return ", ".join(f"{name} {short(commit)}" for name, commit in told)

    def compares(self, other: Result) -> bool:
        """Whether both are of one kind: the cluster, what was to be tested, rehearsed or not."""
        mine, theirs = ((r.cluster, r.asked, r.rehearsed) for r in (self, other))
        return mine == theirs


def short(commit: str) -> str:
    """A commit as people write it, with what stands behind it."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{0,52}(-dirty)?$", r"\1\2", commit)


def case_key(case_file: str, only: str = "") -> str:
    """Name of a case in the store: its path under ``configs``, without what paths may not have.

    Args:
        only: its name among several of the file.
    """
    path = Path(case_file)
    configs = clusters.ROOT / "configs"
    for base in (configs, Path("configs")):
        if path.is_relative_to(base):
            path = path.relative_to(base)
            break
    else:
        path = Path(path.name)
    text = path.with_suffix("").as_posix().replace("/", "--") + (f"--{only}" if only else "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "case"


def result_of(
    plan: Plan,
    verdict: Verdict,
    records: Mapping[int, Record | None],
    npu_minutes: float,
    commit: str = "",
) -> Result:
    """What history keeps of a run, a pure function."""
    return Result(
        run=plan.run,
        case=case_key(plan.case_file, plan.only),
        time=verdict.started,
        verdict=verdict.verdict,
        cause=str(verdict.cause)[:500] if verdict.cause else "",
        case_sha256=plan.case_sha256,
        cluster=plan.cluster.name,
        engine=plan.engine,
        harness=plan.harness,
        commit=commit,
        rehearsed=plan.rehearsed,
        seconds=round(verdict.seconds, 1),
        npu_minutes=round(npu_minutes, 2),
        versions=fleet_versions(records),
        benchmarks={
            b.name: dict(b.metrics)
            for b in verdict.benchmarks
            if b.metrics and (b.status == "pass" or b.fault in ("performance", "accuracy"))
        },
        statuses={b.name: b.status for b in verdict.benchmarks},
        drivers={b.name: b.driver for b in verdict.benchmarks},
        asked={p.distribution: p.word for p in plan.cluster.products if p.moves},
    )


def encode(result: Result) -> str:
    """One JSON document with its checksum."""
    body = dumps(asdict(result), sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return dumps({"sha256": digest, "result": body}) + "\n"


def decode(text: str) -> Result:
    """The result of a file.

    Raises:
        ValueError: it is torn, foreign or of another schema; says what is wrong.
    """
    try:
        data = loads(text)
        body = data["result"]
        if hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest() != data["sha256"]:
            raise ValueError("its checksum is wrong")
        fields = loads(body)
        schema = fields.pop("schema")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise ValueError("no result of a run, or a torn one") from None
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ValueError(f"found another schema, expected {SCHEMA}")
    found = values.decode(Result, fields, spare=True)
    if not 0 <= found.time <= LAST_SECOND:
        raise ValueError("time: no second of this era")
    return found


class DirectoryStore:
    """A directory, such as one on a shared disk."""

    def __init__(self, path: Path) -> None:
        self.path = path / f"v{SCHEMA}"

    def append(self, result: Result) -> None:
        """Keep a result; keeping it twice changes nothing.

        Raises:
            InfraError: the store cannot be written.
        """
        moment = time.gmtime(result.time)
        folder = self.path / result.case / time.strftime("%Y-%m", moment)
        name = f"{time.strftime('%Y%m%dT%H%M%S', moment)}-{_plain(result.run)}.json"
        try:
            _shared(folder)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as out:
                    out.write(encode(result))
                    out.flush()
                    os.fsync(out.fileno())
                Path(temporary).chmod(0o644)
                Path(temporary).replace(folder / name)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            raise InfraError(
                f"history {self.path}: {getattr(error, 'strerror', None) or error}",
                "The run's own files are complete; keep the result later with "
                "`python -m ci.nightly.history RUN_DIR`.",
            ) from None

    def results(self, case: str, last: int | None = None, say: Say = door.warn) -> list[Result]:
        """The newest ``last`` results of a case, or all, oldest first, each run once.

        Args:
            say: hears once which entries are left out, and why.
        """
        found: dict[str, Result] = {}
        odd: list[str] = []
        for path in self._newest_first(case):
            if (last is not None and len(found) >= last) or len(odd) >= MOST_ODD:
                break
            try:
                text = read_bounded(path, ENTRY_BYTES).decode("utf-8", "surrogateescape")
                result = decode(text)
                if result.case != case:
                    raise ValueError("a result of another case")
                found.setdefault(result.run, result)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                name = repr(str(path.relative_to(self.path.parent)))[1:-1]  # any bytes name a file
                odd.append(f"{name}: {why}")
        if odd:
            more = f"; and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
            count = "1 entry is" if len(odd) == 1 else f"{len(odd)} entries are"
            say(f"history: {count} left out: {'; '.join(odd[:SHOWN])}{more}")
        return sorted(found.values(), key=lambda result: result.time)

    def cases(self) -> list[str]:
        """Every case with a result."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.path.iterdir() if path.is_dir())
        return []

    def _newest_first(self, case: str) -> Iterator[Path]:
        for month in _newest(self.path / _plain(case)):
            for path in _newest(month):
                if path == month or (path.suffix == ".json" and not path.name.startswith(".")):
                    yield path


class GitStore:
    """A branch of a git repository: one commit a result, pushed, retried when others were faster.

    Attributes:
        url: what git can clone and push to; credentials are git's own.
    """

    def __init__(self, url: str, branch: str) -> None:
        self.url, self.branch = url, branch

    def append(self, result: Result) -> None:
        """Keep a result; as for :class:`DirectoryStore`."""
        for attempt in range(TRIES):
            with tempfile.TemporaryDirectory(prefix="multinode-history-") as scratch:
                clone = Path(scratch)
                self._checkout(clone)
                DirectoryStore(clone).append(result)
                _git(clone, "add", "--all")
                if not _git(clone, "status", "--porcelain").strip():
                    return
                message = f"{result.case}: {result.verdict} ({result.run})"
                _git(clone, "commit", "--quiet", "-m", message)
                try:
                    _git(clone, "push", "--quiet", "origin", f"HEAD:refs/heads/{self.branch}")
                    return
                except InfraError:
                    if attempt == TRIES - 1:
                        raise
            time.sleep(random.uniform(0.1, 0.5) * (attempt + 1))

    def results(self, case: str, last: int | None = None, say: Say = door.warn) -> list[Result]:
        """As for :class:`DirectoryStore`."""
        with tempfile.TemporaryDirectory(prefix="multinode-history-") as scratch:
            self._checkout(Path(scratch))
            return DirectoryStore(Path(scratch)).results(case, last, say)

    def cases(self) -> list[str]:
        """As for :class:`DirectoryStore`."""
        with tempfile.TemporaryDirectory(prefix="multinode-history-") as scratch:
            self._checkout(Path(scratch))
            return DirectoryStore(Path(scratch)).cases()

    def _checkout(self, clone: Path) -> None:
        """The branch's newest commit, or an empty tree when there is no such branch yet."""
        _git(clone, "init", "--quiet", "-b", self.branch)
        _git(clone, "remote", "add", "--", "origin", self.url)
        if _git(clone, "ls-remote", "--heads", "origin", self.branch).strip():
            _git(clone, "fetch", "--quiet", "--depth", "1", "origin", self.branch)
            _git(clone, "reset", "--quiet", "--hard", "FETCH_HEAD")


Store = DirectoryStore | GitStore


def open_store(where: str) -> Store:
    """The store of a name: a directory, or ``git:URL#BRANCH`` (branch ``history`` by default)."""
    if where.startswith("git:"):
        url, _, branch = where.removeprefix("git:").partition("#")
        return GitStore(url, branch or "history")
    return DirectoryStore(Path(where).expanduser())


def _shared(folder: Path) -> None:
    """Make a folder that others may read, whatever the umask: a history is everybody's."""
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".") or "none"


def _newest(folder: Path) -> Iterator[Path]:
    """What is in a folder, newest first; itself when nobody may list it, to be named as odd."""
    try:
        yield from sorted(folder.iterdir(), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        yield folder


def commit_here() -> str:
    """The commit of this repository; empty when it is none."""
    try:
        return git(clusters.ROOT, "rev-parse", "--short=12", "HEAD", refused=UsageError).strip()
    except UsageError:
        return ""
    except InfraError as error:
        door.warn(f"the result names no commit of this repository: {error}")
        return ""


def _git(clone: Path, *arguments: str) -> str:
    hint = "Check the name of the history, and that git may push to it."
    return git(clone, *arguments, hint=hint)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run that is over")
    parser.add_argument("--store", default="", help="default: $MULTINODE_HISTORY")


def work(arguments: argparse.Namespace) -> int:
    """Keep the result of a run whose history could not be written when it ended."""
    found = settings.read()
    where = arguments.store or found.history
    if found.pull_request:
        raise UsageError(
            f"this is a run of a pull request ({found.pull_request}); baselines are made of what "
            "is in the history",
            "Keep results of merged changes only.",
        )
    if not where:
        raise UsageError("nothing says where the history is", "Give --store DIR.")
    over = outcome.read(RunDir(arguments.run_dir))
    result = result_of(over.plan, over.verdict, over.records, over.spent.total, commit_here())
    open_store(where).append(result)
    print(foreign.line(f"{where}: kept {result.run}, {result.case}: {result.verdict}"))
    return 0


main = door.Verb("python -m ci.nightly.history", __doc__, _options, work)

if __name__ == "__main__":
    sys.exit(main())
