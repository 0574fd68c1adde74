"""Fetching: a node's run directory out of its pod, verified, before anything is deleted.

Enters: a pod whose container runs. Leaves: its files in the run directory.
Touches the API (exec); the run directory. Files travel as one compressed tar
over exec, are checked against the sha256 of the node's record, and a broken
transfer goes on at the byte where it broke.

    python -m k8s.fetch --name NAME [--namespace NS] [--run-dir DIR]
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k8s import manifest
from k8s.api import client
from k8s.api.client import Api, ApiError
from k8s.pod import END, OFFSET
from steps import report
from steps.core import door, foreign
from steps.core.case.numbers import loads, whole
from steps.core.errors import InfraError, UsageError
from steps.core.record import arrivals
from steps.core.record.arrivals import CHUNK, SLACK, Inflated, Overrun, Part, Refused
from steps.core.record.rundir import RunDir, read_json, sha256_of, write_json

#: Transfers at once: more would not be faster through one API server.
AT_ONCE = 8
TRIES = 5
#: For how many seconds one command waits in a pod; deadlines may come nearer meanwhile.
WAIT = 5.0
#: Seconds for which an API server may be away without costing a try; what it says then.
OUTAGE = 300.0
_AWAY = (0, 429, 502, 503, 504)
IDLE = 60.0
#: How a transfer may end before its time; the last two are a damaged archive's.
BROKEN = (
    *(ApiError, OSError, EOFError, ValueError, Overrun),
    *(tarfile.TarError, zlib.error, RecursionError, OverflowError),
)


class _Runs(Exception):
    """The node's program has not ended yet."""


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


class Wanted(Part):
    """One file: what the pod says of it, and what is here."""

    def __init__(self, name: str, size: int, sha256: str, target: Path) -> None:
        super().__init__(name, size, target)
        self.sha256 = sha256
        self.whole = False


class Fetch:
    """The transfer from one pod.

    Args:
        python: the interpreter in the image.
        deadline: by the monotonic clock; asked again and again, since it may come nearer.
        patience: for how many seconds the end of the node's program is still waited for.
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
        patience: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.api = api
        self.where = (namespace, pod, manifest.CONTAINER)
        self.run_dir = run_dir
        self.python = python
        self.deadline = deadline
        self.patience = patience
        self.wanted: list[Wanted] | None = None
        self.result = Fetched(node)

    def run(self) -> Fetched:
        """Fetch as much as can be fetched."""
        why = ""
        tries, away_until, delay = 0, time.monotonic() + OUTAGE, 0.0
        while tries < TRIES:
            if delay:
                time.sleep(max(0.0, min(delay, self.deadline() - time.monotonic())))
            delay = min(max(delay * 2, 0.6), 5.0)
            if time.monotonic() > self.deadline():
                why = why or "no time was left"
                break
            wait = min(self.patience(), WAIT) if self.wanted is None else 0.0
            try:
                self._transfer(wait)
            except _Runs:
                delay = 0.0
                continue
            except BROKEN as error:
                why = str(error) or type(error).__name__
                code = error.code if isinstance(error, ApiError) else -1
                if code in (403, 404):
                    self.patience = lambda: 0.0
                if wait > 0 and code >= 0:  # a container that died may come back to hold
                    delay = 0.3
                else:
                    tries += not (code in _AWAY and time.monotonic() < away_until)
                continue
            tries += 1
            if all(entry.whole or entry.lost for entry in self.wanted or ()):
                break
            why = "was not verified: its sha256 is not the record's"
        self._conclude(self.wanted or [], why)
        return self.result

    def _command(self, *words: str) -> list[str]:
        return [self.python, "-I", "-S", manifest.POD, *words]

    def _listed(self, command: client.Exec) -> bytes:
        """Read the list in front of the archive; what of the archive came with it."""
        text, end = bytearray(), END.encode()
        while end not in text:
            if time.monotonic() > self.deadline():
                raise Overrun("no time was left")
            data = command.read()
            if not data and not text and command.code == 1:
                raise _Runs
            if not data or len(text) > client.OUTPUT_LIMIT:
                said = bytes(text or command.errors).decode("utf-8", "replace")
                raise ApiError(0, "", f"listing failed: {said.strip()[-200:]}")
            text += data
        found, _, rest = text.partition(end)
        if self.wanted is None:
            self.wanted = self._read_list(found.decode("utf-8", "replace"))
        return bytes(rest)

    def _read_list(self, text: str) -> list[Wanted]:
        self.result.problems.clear()
        found: dict[Path, Wanted] = {}
        for line in text.splitlines():
            name = line
            try:
                told = loads(line)
                name, size, digest = told["path"], told["size"], told["sha256"]
                if not (isinstance(name, str) and isinstance(digest, str) and whole(size) == size):
                    raise Refused("an entry of the listing that means nothing")
                if told.get("odd"):
                    raise Refused(str(told["odd"]))
                target = self._target(name)
                if target in found:
                    raise Refused(f"has the place of {found[target].name}")
                if target is not None:
                    found[target] = Wanted(name, size, digest, target)
            except Refused as error:
                self.result.problems.append(arrivals.told(str(name), str(error)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                said = "an entry of the listing that means nothing"
                self.result.problems.append(arrivals.told(line, said))
        return list(found.values())

    def _target(self, name: str) -> Path | None:
        """Where a file of the pod belongs; None: nowhere here."""
        if name == "done.json":
            return self.run_dir / f"node-{self.result.node}" / name
        return arrivals.place(RunDir(self.run_dir), self.result.node, name)

    def _left(self) -> list[Wanted]:
        return [entry for entry in self.wanted or () if not (entry.whole or entry.lost)]

    def _transfer(self, wait: float) -> None:
        """One stream: the list of files and all of them, or from the first that is not whole on.

        Raises:
            _Runs: the node's program has not ended after ``wait`` seconds.
        """
        left = self._left()
        if self.wanted and not left:
            return
        words = ["wait", f"{wait:.1f}"] if wait > 0 else ["send"]
        # A name may be none for a command line: then all comes from the start.
        if left and left[0].name.isprintable():
            words += [left[0].name, *([str(left[0].have)] if left[0].have else [])]
        with self.api.exec(*self.where, self._command(*words), IDLE) as command:
            rest = self._listed(command) if len(words) == 1 or wait > 0 else b""
            self._unpack(command, rest)
        if command.code:
            raise ApiError(0, "", f"sending failed: {command.errors.decode(errors='replace')}")

    def _unpack(self, command: client.Exec, rest: bytes) -> None:
        """Files out of an archive whose first bytes are ``rest``."""
        by_name = {entry.name: entry for entry in self._left()}
        listed = sum(entry.size + 4096 for entry in self.wanted or ())
        begun = [rest]

        def read() -> bytes:
            return begun.pop() or command.read() if begun else command.read()

        stream: Any = Inflated(read, 2 * listed + SLACK, self.deadline)
        archive: Any = tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK)  # noqa: SIM115
        with archive as tar:
            for member in tar:
                entry = by_name.pop(member.name, None)
                source = tar.extractfile(member) if member.isreg() else None
                if entry is not None and source is not None:
                    self._receive(entry, member, source)
                # A stream keeps every member it has seen, which nobody asks for again.
                tar.members = []
        while command.read():  # what is behind the archive, and the exit code
            if time.monotonic() > self.deadline():
                raise Overrun("no time was left")

    def _receive(self, entry: Wanted, member: tarfile.TarInfo, source: Any) -> None:
        """Write one member, from the byte at which it begins."""
        begin = int(member.pax_headers.get(OFFSET, 0))
        if begin not in (0, entry.have):
            raise ApiError(0, "", f"{entry.name} goes on at {begin}, not at {entry.have}")
        self.result.bytes += entry.take(source.read, begin)
        if entry.lost or entry.path is None:
            return
        if entry.have < entry.size:
            raise ApiError(0, "", f"{entry.name} ends at {entry.have} of {entry.size} bytes")
        if entry.sha256 and sha256_of(entry.path) != entry.sha256:
            entry.have = 0
        elif entry.keep():
            entry.whole = True
            self.result.files += 1

    def _conclude(self, wanted: list[Wanted], why: str) -> None:
        """What is here in part is kept under its own name; better than nothing."""
        if not wanted and (why or not self.result.problems):
            self.result.problems.append(why or "there are no files")
        for entry in wanted:
            if not entry.whole:
                problem = entry.lost or why or "was not sent"
                self.result.problems.append(arrivals.told(entry.name, problem))
                entry.set_aside()
        done = read_json(self.run_dir / f"node-{self.result.node}" / "done.json")
        self.result.done = done if isinstance(done, dict) else {}


def everything(
    api: Api,
    namespace: str,
    pods: dict[int, str],
    run_dir: Path,
    python: str,
    deadline: Callable[[], float],
) -> list[Fetched]:
    """Fetch from several pods at once."""

    def one(node: int) -> Fetched:
        made = Fetch(api, namespace, pods[node], node, run_dir, python, deadline)
        try:
            return made.run()
        except Exception as error:  # of what is deleted next, nothing may go unsaid
            made.result.problems.append(f"its files: {door.failure(error).message}")
            return made.result

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
        print(foreign.line(f"{text}; {how}"), flush=True)
        for problem in result.problems:
            print(f"    {foreign.line(problem)}", file=sys.stderr)
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
