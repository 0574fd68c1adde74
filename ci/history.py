"""History: what each run of a case said, in a store that a team shares with no server.

Enters: results, and where the store is: a directory, or a branch of a git
repository as ``git:URL#BRANCH``. Leaves: one file a result; results of a case
in the order of their times. Touches: the store.

    STORE/v1/<case key>/<YYYY-MM>/<time>-<run id>.json

A result is written under another name and renamed, so it is there whole or not
at all; its name is that of its run, so a second writer of the same result
changes nothing; its content carries a checksum, so a torn file is passed over.

    python -m ci.history RUN_DIR [--store DIR]      keep a run's result afterwards
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from steps.core import door, finished, fleet, settings
from steps.core.errors import InfraError, UsageError
from steps.core.plan import LEADER, Plan
from steps.core.records import Record
from steps.core.rundir import RunDir
from steps.core.verdict import Verdict

SCHEMA = 1
TRIES = 8


@dataclass(frozen=True)
class Result:
    """What history keeps of a run.

    Attributes:
        case: key of the case; see :func:`case_key`.
        time: start, seconds since the epoch.
        benchmarks: name -> metrics; those that were believed only.
        statuses: name -> pass, fail, skipped or error.
        drivers: name -> what measured it; numbers of two drivers do not compare.
        commit: of this repository, where there is one.
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
    schema: int = SCHEMA


def case_key(case_file: str) -> str:
    """Name of a case in the store: its path under ``configs``, without what paths may not have."""
    path = Path(case_file)
    configs = fleet.ROOT / "configs"
    for base in (configs, Path("configs")):
        if path.is_relative_to(base):
            path = path.relative_to(base)
            break
    else:
        path = Path(path.name)
    text = path.with_suffix("").as_posix().replace("/", "--")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "case"


def result_of(
    plan: Plan,
    verdict: Verdict,
    records: Mapping[int, Record | None],
    npu_minutes: float,
    commit: str = "",
) -> Result:
    """What history keeps of a run, a pure function."""
    leader = records.get(LEADER)
    return Result(
        run=plan.run,
        case=case_key(plan.case_file),
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
        versions=dict(leader.versions) if leader else {},
        benchmarks={
            b.name: dict(b.metrics)
            for b in verdict.benchmarks
            if b.metrics and (b.status == "pass" or b.fault in ("performance", "accuracy"))
        },
        statuses={b.name: b.status for b in verdict.benchmarks},
        drivers={b.name: b.driver for b in verdict.benchmarks},
    )


def encode(result: Result) -> str:
    """One JSON document with its checksum."""
    body = json.dumps(asdict(result), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps({"sha256": digest, "result": body}, ensure_ascii=False) + "\n"


def decode(text: str) -> Result | None:
    """The result of a file; None when it is torn, foreign or of a newer schema."""
    try:
        data = json.loads(text)
        body = data["result"]
        if hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest() != data["sha256"]:
            return None
        fields = json.loads(body)
        if fields["schema"] > SCHEMA:
            return None
        known = {key: value for key, value in fields.items() if key in Result.__dataclass_fields__}
        return Result(**known)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


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
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as out:
                out.write(encode(result))
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(folder / name)
        except OSError as error:
            raise InfraError(
                f"history {self.path}: {error.strerror or error}",
                "The run's own files are complete; keep the result later with "
                "`python -m ci.history RUN_DIR`.",
            ) from None

    def results(self, case: str, last: int | None = None) -> list[Result]:
        """The newest ``last`` results of a case, or all, oldest first, each run once."""
        found: dict[str, Result] = {}
        for path in self._newest_first(case):
            if last is not None and len(found) >= last:
                break
            with contextlib.suppress(OSError):
                result = decode(path.read_text(encoding="utf-8", errors="surrogateescape"))
                if result is not None and result.case == case:
                    found.setdefault(result.run, result)
        return sorted(found.values(), key=lambda result: result.time)

    def cases(self) -> list[str]:
        """Every case with a result."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.path.iterdir() if path.is_dir())
        return []

    def _newest_first(self, case: str) -> Iterator[Path]:
        for month in sorted(_names(self.path / _plain(case)), reverse=True):
            folder = self.path / _plain(case) / month
            for name in sorted(_names(folder), reverse=True):
                if name.endswith(".json") and not name.startswith("."):
                    yield folder / name


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
                who = ["-c", "user.name=multinode", "-c", "user.email=multinode@localhost"]
                _git(clone, *who, "commit", "--quiet", "-m", message)
                try:
                    _git(clone, "push", "--quiet", "origin", f"HEAD:refs/heads/{self.branch}")
                    return
                except InfraError:
                    if attempt == TRIES - 1:
                        raise
            time.sleep(random.uniform(0.1, 0.5) * (attempt + 1))

    def results(self, case: str, last: int | None = None) -> list[Result]:
        """As for :class:`DirectoryStore`."""
        with tempfile.TemporaryDirectory(prefix="multinode-history-") as scratch:
            self._checkout(Path(scratch))
            return DirectoryStore(Path(scratch)).results(case, last)

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


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".") or "none"


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []


def commit_here() -> str:
    """The commit of this repository; empty when it is none."""
    with contextlib.suppress(InfraError):
        return _git(fleet.ROOT, "rev-parse", "--short=12", "HEAD").strip()
    return ""


def _git(clone: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(clone), *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**settings.inherited(), "GIT_TERMINAL_PROMPT": "0"},
            timeout=300,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise InfraError(f"history: git {arguments[0]}: {error}") from None
    if done.returncode:
        raise InfraError(
            f"history: git {arguments[0]} failed: {done.stderr.strip()[-300:]}",
            "Check the store's name and that git may push to it.",
        )
    return done.stdout


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run that is over")
    parser.add_argument("--store", default="", help="default: $MULTINODE_HISTORY")


def work(arguments: argparse.Namespace) -> int:
    """Keep the result of a run whose history could not be written when it ended."""
    where = arguments.store or settings.read().history
    if not where:
        raise UsageError("nothing says where the history is", "Give --store DIR.")
    over = finished.read(RunDir(arguments.run_dir))
    result = result_of(over.plan, over.verdict, over.records, over.spent.total, commit_here())
    open_store(where).append(result)
    print(f"{where}: kept {result.run}, {result.case}: {result.verdict}")
    return 0


main = door.Verb("python -m ci.history", __doc__, _options, work)

if __name__ == "__main__":
    sys.exit(main())
