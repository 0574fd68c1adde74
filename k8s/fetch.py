"""Fetching: a node's run directory out of its pod, verified, before anything is deleted.

Enters: a pod whose container runs. Leaves: its files in the run directory.
Touches the API (exec); the run directory. Files travel as one compressed tar
over exec, are checked against the sha256 of the node's record, and a broken
transfer goes on at the byte where it broke.

    python -m k8s.fetch --name NAME [--namespace NS] [--run-dir DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from k8s import manifest
from k8s.api import client
from k8s.api.client import Api, ApiError, Exec
from k8s.pod import OFFSET
from steps import report
from steps.core import door
from steps.core.case.numbers import loads
from steps.core.errors import InfraError, UsageError
from steps.core.record.rundir import RunDir, read_json, sha256_of, write_json

CHUNK = 1 << 18
#: Transfers at once: more would not be faster through one API server.
AT_ONCE = 8
TRIES = 5
#: Seconds for which an API server may be away without costing a try; what it says then.
OUTAGE = 300.0
_AWAY = (0, 429, 502, 503, 504)
IDLE = 60.0


@dataclass
class Fetched:
    """What came out of one pod.

    Attributes:
        problems: files that are missing or could not be verified, and why.
        done: the pod's ``done.json``: how its node program ended; empty when it had not.
    """

    node: int
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)


@dataclass
class Wanted:
    """One file: what the pod says of it, and what is here."""

    name: str
    size: int
    sha256: str
    target: Path
    have: int = 0
    whole: bool = False


class Fetch:
    """The transfer from one pod.

    Args:
        python: the interpreter in the image.
        deadline: by the monotonic clock; asked again and again, since it may come nearer.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        pod: str,
        node: int,
        run_dir: Path,
        python: str,
        deadline: Callable[[], float],
    ) -> None:
        self.api = api
        self.where = (namespace, pod, manifest.CONTAINER)
        self.run_dir = run_dir
        self.python = python
        self.deadline = deadline
        self.result = Fetched(node)

    def run(self) -> Fetched:
        """Fetch as much as can be fetched."""
        wanted: list[Wanted] = []
        why = ""
        tries, away_until, delay = 0, time.monotonic() + OUTAGE, 0.0
        while tries < TRIES:
            if delay:
                time.sleep(max(0.0, min(delay, self.deadline() - time.monotonic())))
            delay = min(max(delay * 2, 0.6), 5.0)
            if time.monotonic() > self.deadline():
                why = why or "no time was left"
                break
            try:
                if not wanted:
                    wanted = self._list()
                self._transfer(wanted)
            except (ApiError, OSError, tarfile.TarError, EOFError, ValueError) as error:
                why = str(error) or type(error).__name__
                away = isinstance(error, ApiError) and error.code in _AWAY
                tries += not (away and time.monotonic() < away_until)
                continue
            tries += 1
            if all(entry.whole for entry in wanted):
                break
            why = "was not verified: its sha256 is not the record's"
        self._conclude(wanted, why)
        return self.result

    def _command(self, *words: str) -> list[str]:
        return [self.python, "-I", "-S", manifest.POD, *words]

    def _list(self) -> list[Wanted]:
        code, text = self.api.run(*self.where, self._command("list"), IDLE)
        if code:
            raise ApiError(0, "", f"listing failed: {text.strip()[-200:]}")
        found = []
        for line in text.splitlines():
            entry = loads(line)
            target = self._target(entry["path"])
            if target is not None:
                found.append(Wanted(entry["path"], entry["size"], entry["sha256"], target))
        return found

    def _target(self, name: str) -> Path | None:
        """Where a file of the pod belongs; None: nowhere here.

        A node's own files, the leader's plan, and the leader's copies of records that we have not.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return None
        own = f"node-{self.result.node}"
        if path.parts[0] == own:
            return self.run_dir / path
        if name == "done.json":
            return self.run_dir / own / "done.json"
        if name == "plan.json":
            absent = not (self.run_dir / name).exists()
            return self.run_dir / name if self.result.node == 0 or absent else None
        if self.result.node == 0 and path.name == "record.json" and len(path.parts) == 2:
            target = self.run_dir / path
            return None if target.exists() else target
        return None

    def _transfer(self, wanted: list[Wanted]) -> None:
        """One stream: from the first file that is not whole to the end."""
        left = [entry for entry in wanted if not entry.whole]
        if not left:
            return
        first = left[0]
        words = ("send", first.name, str(first.have)) if first.have else ("send", first.name)
        by_name = {entry.name: entry for entry in left}
        with self.api.exec(*self.where, self._command(*words), IDLE) as command:
            stream: Any = Stream(command, self.deadline)
            archive: Any = tarfile.open(fileobj=stream, mode="r|gz", bufsize=CHUNK)  # noqa: SIM115
            with archive as tar:
                for member in tar:
                    entry = by_name.get(member.name)
                    source = tar.extractfile(member)
                    if entry is not None and source is not None:
                        self._receive(entry, member, source)
                    # A stream keeps every member it has seen, which nobody asks for again.
                    tar.members = []
            stream.drain()
        if command.code:
            raise ApiError(0, "", f"sending failed: {command.errors.decode(errors='replace')}")

    def _receive(self, entry: Wanted, member: tarfile.TarInfo, source: Any) -> None:
        """Write one member, from the byte at which it begins."""
        begin = int(member.pax_headers.get(OFFSET, 0))
        entry.target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = entry.target.with_name(f".{entry.target.name}.part")
        with temporary.open("r+b" if begin and temporary.exists() else "wb") as out:
            out.seek(begin)
            out.truncate()
            entry.have = begin
            while data := source.read(CHUNK):
                out.write(data)
                entry.have += len(data)
                self.result.bytes += len(data)
        temporary.chmod(0o600)
        if entry.have < entry.size:
            raise ApiError(0, "", f"{entry.name} ends at {entry.have} of {entry.size} bytes")
        if entry.sha256 and sha256_of(temporary) != entry.sha256:
            entry.have = 0
            return
        temporary.replace(entry.target)
        entry.whole = True
        self.result.files += 1

    def _conclude(self, wanted: list[Wanted], why: str) -> None:
        """What is here in part is kept under its own name; better than nothing."""
        if not wanted:
            self.result.problems.append(why or "there are no files")
        for entry in wanted:
            if entry.whole:
                continue
            self.result.problems.append(f"{entry.name}: {why or 'was not sent'}")
            part = entry.target.with_name(f".{entry.target.name}.part")
            with contextlib.suppress(OSError):
                part.replace(entry.target.with_name(f"{entry.target.name}.partial"))
        done = read_json(self.run_dir / f"node-{self.result.node}" / "done.json")
        self.result.done = done if isinstance(done, dict) else {}


class Stream:
    """A command's output as a file that is read once, in pieces, until a deadline."""

    def __init__(self, command: Exec, deadline: Callable[[], float]) -> None:
        self._command = command
        self._deadline = deadline
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end.

        Raises:
            ApiError: the stream broke, or the deadline passed.
        """
        parts = [self._rest]
        have = len(self._rest)
        while have < size:
            if time.monotonic() > self._deadline():
                raise ApiError(0, "", "no time was left")
            data = self._command.read()
            if not data:
                break
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]

    def drain(self) -> None:
        """Read what is behind the archive, and the exit code."""
        self._rest = b""
        while self._command.read():
            pass


def everything(
    api: Api,
    namespace: str,
    pods: dict[int, str],
    run_dir: Path,
    python: str,
    deadline: Callable[[], float],
    ready: Callable[[int], None] = lambda node: None,
) -> list[Fetched]:
    """Fetch from several pods at once.

    Args:
        ready: called first for each node; returns when its files are worth fetching.
    """

    def one(node: int) -> Fetched:
        ready(node)
        return Fetch(api, namespace, pods[node], node, run_dir, python, deadline).run()

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
        return list(pool.map(one, sorted(pods)))


# By hand


def by_hand(name: str, namespace: str, run_dir: Path) -> int:
    """Fetch the files of a run that was applied by hand, and say its verdict.

    Raises:
        InfraError, UsageError: there is no such run, or nothing could be fetched.
    """
    api = client.connect()
    namespace = namespace or api.namespace
    try:
        found = api.items(
            client.path(namespace, "pods"), {"labelSelector": f"{manifest.LWS_NAME_LABEL}={name}"}
        )
    except ApiError as error:
        raise InfraError(f"pods of {name} in {namespace} cannot be listed: {error}") from None
    names = manifest.Names(name, namespace)
    pods = {}
    python = "python3"
    for pod in found:
        index = names.index(pod["metadata"]["name"])
        if index is not None:
            pods[index] = pod["metadata"]["name"]
            python = manifest.python_of(pod)
    if not pods:
        raise UsageError(
            f"--name {name}: there are no pods of it in the namespace {namespace}",
            "`kubectl get lws -A` shows what there is; --namespace chooses another.",
        )
    place = RunDir(run_dir).make()
    deadline = time.monotonic() + 3600.0
    results = everything(api, namespace, pods, run_dir, python, lambda: deadline)
    for result in results:
        text = f"node {result.node}: {result.files} files, {result.bytes:,} bytes"
        how = result.done.get("how", "its program has not ended yet")
        print(f"{text}; {how}", flush=True)
        for problem in result.problems:
            print(f"    {problem}", file=sys.stderr)
    if place.plan.exists():
        verdict = report.run(place).verdict
        print(f"\n{place.summary.read_text(encoding='utf-8')}")
        code = verdict.exit_code
    else:
        write_json(run_dir / "fetched.json", [result.done for result in results])
        code = 3
    print(f"Files of the run: {run_dir}")
    return code


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="the LeaderWorkerSet")
    parser.add_argument("--namespace", default="", help="default: the kubeconfig's")
    parser.add_argument("--run-dir", default="", help="default: runs/NAME")


def work(arguments: argparse.Namespace) -> int:
    """Fetch, and say the verdict."""
    run_dir = Path(arguments.run_dir or Path("runs") / arguments.name)
    return by_hand(arguments.name, arguments.namespace, run_dir)


main = door.Verb("fetch", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
