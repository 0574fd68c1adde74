"""What runs first in every pod: unpacks the harness, runs the node program, then holds.

Enters: the bundle under /multinode, the environment a LeaderWorkerSet gives
its pods. Leaves: the run directory with ``done.json`` beside it. Touches:
/multinode/work. Standard library only: it travels as it is, into images that
have nothing but Python.

    pod.py              the main process: never ends by itself, since a container that ends is
                        started again; holds until SIGTERM (the pod's deletion)
    pod.py tell WORDS   says WORDS to the node program: ``stop``, or ``lost I HOW``
    pod.py send [P O]   files of the run directory as a compressed tar, from file P and its byte O
                        on; without P their list comes first: a JSON line each, then a zero byte
    pod.py wait S       the same once the node program has ended; 1 when that takes over S seconds

The readiness probe tests ``done.json``: ready means that this member has finished.
"""

from __future__ import annotations

import signal
import sys

EARLY: list[int] = []
if __name__ == "__main__" and not sys.argv[1:]:
    # Before all else: the kernel keeps from process 1 what it has no handler for.
    signal.signal(signal.SIGTERM, lambda number, frame: EARLY.append(number))

import contextlib  # noqa: E402
import gzip  # noqa: E402
import hashlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import subprocess  # noqa: E402
import tarfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(os.environ.get("MULTINODE_ROOT") or "/multinode")
BUNDLE = ROOT / "bundle"
WORK = ROOT / "work"
RUN = WORK / "run"
DONE = WORK / "done.json"
LIVES = WORK / "lives"
CONTROL = WORK / "control"
SITE = WORK / "site"
TOKEN = ROOT / "secret" / "token"
CHUNK = 1 << 18
#: Where a tar member of a file that is sent in part begins.
OFFSET = "MULTINODE.offset"
#: Ends the list of files, which is JSON and has no such sign.
END = "\0"


class Broken(Exception):
    """The pod cannot do its work; the text says why."""


# The main process


class Main:
    """The life of the pod's first process."""

    def __init__(self) -> None:
        self.start: dict[str, Any] = json.loads((BUNDLE / "0" / "start.json").read_text())
        self.index = int(os.environ.get("LWS_WORKER_INDEX") or 0)
        self.terminated = False
        self.ended: dict[int, int] = {}
        # A signal is a byte in this pipe. Handlers take no lock: the main thread may hold it.
        self.signals, wake = os.pipe()
        os.set_blocking(self.signals, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.child: subprocess.Popen[bytes] | None = None

    def main(self) -> int:
        """Work, leave ``done.json``, hold."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, self._terminate)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        os.umask(0o077)
        self.terminated = self.terminated or bool(EARLY)
        WORK.mkdir(parents=True, exist_ok=True)
        lives = self._count_lives()
        if DONE.exists():
            say(f"node {self.index} had finished in an earlier life of this container")
        elif lives > 1:
            say(
                f"node {self.index}: an earlier life of this container ended without a result; "
                "its files are kept, nothing is started again"
            )
            self._done(None, f"its container died and was started again ({lives} lives)")
        else:
            self._work()
        self._farewell()
        return self._hold()

    def _count_lives(self) -> int:
        with LIVES.open("a") as out:
            out.write(f"{time.time():.3f}\n")
        return len(LIVES.read_text().splitlines())

    def _work(self) -> None:
        try:
            unpack(self.start)
            argv = self._command()
        except (Broken, OSError) as error:
            say(f"error: {error}")
            self._done(3, str(error))
            return
        if self.terminated:
            self._done(130, "was told to stop before the node program began")
            return
        RUN.mkdir(mode=0o700, exist_ok=True)
        sys.path.insert(0, str(SITE))
        from steps.core.system import oom

        kills = oom.kills()
        self.child = subprocess.Popen(
            argv, cwd=SITE, stdin=subprocess.PIPE, start_new_session=True, close_fds=True
        )
        threading.Thread(target=self._listen, daemon=True).start()
        if self.terminated:
            self._forward()
        while self.child.pid not in self.ended:
            self._await_signal(1.0)
        status = self.ended[self.child.pid]
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        memory = oom.evidence(self.child.pid, kills) if -code == signal.SIGKILL else ""
        name = signal.Signals(-code).name if code < 0 else ""
        self._done(code if code >= 0 else 128 - code, f"the node program {how}", name, memory)

    def _command(self) -> list[str]:
        """The node program's command line, for the names this group really has."""
        size = int(os.environ.get("LWS_GROUP_SIZE") or 0)
        nodes = self.start["cluster"]["nodes"]
        if size and size != len(nodes):
            raise Broken(f"the LeaderWorkerSet has {size} members, the case has {len(nodes)} nodes")
        cluster = dict(self.start["cluster"])
        leader = os.environ.get("LWS_LEADER_ADDRESS", "")
        if leader:
            pod, _, rest = leader.partition(".")
            names = [leader, *(f"{pod}-{i}.{rest}" for i in range(1, len(nodes)))]
            cluster["nodes"] = [
                {**node, "address": name} for node, name in zip(nodes, names, strict=True)
            ]
        known = {name: os.environ[name] for name in self.start["known"] if os.environ.get(name)}
        cluster["known"] = {**known, **cluster["known"]}
        path = WORK / "cluster.json"
        path.write_text(json.dumps(cluster, allow_nan=False))
        return [
            sys.executable,
            "-m",
            "steps.node",
            "--case",
            str(BUNDLE / "0" / "case.yaml"),
            "--cluster",
            str(path),
            "--node-index",
            str(self.index),
            "--run-dir",
            str(RUN),
            "--run-id",
            self.start["run"],
            "--token-file",
            str(TOKEN),
            "--bound",
            *self.start["arguments"],
        ]

    def _listen(self) -> None:
        """Pass words that come over the control pipe on to the node program."""
        child = self.child
        assert child is not None
        assert child.stdin is not None
        with contextlib.suppress(FileExistsError):
            os.mkfifo(CONTROL, 0o600)
        # Open for both ways, so that it never ends when a teller closes it.
        pipe = os.open(CONTROL, os.O_RDWR)
        while words := os.read(pipe, 4096):
            with contextlib.suppress(OSError):
                child.stdin.write(words)
                child.stdin.flush()

    def _done(self, code: int | None, how: str, name: str = "", memory: str = "") -> None:
        verdict = {}
        with contextlib.suppress(OSError, ValueError):
            verdict = json.loads((RUN / "verdict.json").read_text())
        content = {
            "node": self.index,
            "exit_code": code,
            "how": how,
            "signal": name,
            "memory": memory,
            "verdict": verdict.get("verdict", ""),
            "at": round(time.time(), 3),
        }
        temporary = DONE.with_suffix(".new")
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n")
        temporary.replace(DONE)

    def _farewell(self) -> None:
        """The last lines of the log; the very last is the tag, where one is wanted."""
        done = json.loads(DONE.read_text())
        text = self.start["output"] == "text"
        if text and self.index == 0:
            with contextlib.suppress(OSError):
                print(f"\n{(RUN / 'summary.md').read_text(encoding='utf-8')}", flush=True)
        say(f"MULTINODE-DONE node {self.index}: {done['how']}")
        if self.terminated:
            return
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.start["until"]))
        say(f"holding, so that {RUN} can be fetched; `janitor` may remove this pod after {until}")
        tag = os.environ.get("FAIL_TAG", "")
        passed = done["verdict"] == "pass" and done["exit_code"] == 0
        if tag and self.index == 0 and not passed:
            print(tag, flush=True)

    def _hold(self) -> int:
        while not self.terminated:
            self._await_signal(3600.0)
        return 0

    # Signals

    def _terminate(self, number: int, frame: object) -> None:
        self.terminated = True
        self._forward()

    def _forward(self) -> None:
        """SIGTERM for the node program, which stops its servers and leaves its record."""
        if self.child is not None and self.child.pid not in self.ended:
            with contextlib.suppress(OSError):
                os.kill(self.child.pid, signal.SIGTERM)

    def _await_signal(self, seconds: float) -> None:
        """Wait for a signal; as the first process of the pod we inherit and bury every orphan."""
        if select.select([self.signals], [], [], seconds)[0]:
            os.read(self.signals, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                self.ended[pid] = status


def say(text: str) -> None:
    """One line of the pod's log, whatever is in it."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    print(f"multinode: {shown}".replace("##[", "## ["), flush=True)


def unpack(start: dict[str, Any]) -> None:
    """The bundle's parts, checked and laid out under ``SITE``.

    Raises:
        Broken: a part is missing or damaged.
    """
    whole = io.BytesIO()
    for part in start["parts"]:
        path = BUNDLE / part["path"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Broken(f"a part of the harness is missing: {path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise Broken(f"a part of the harness is damaged: {path}")
        whole.write(data)
    whole.seek(0)
    fresh = SITE.with_suffix(".new")
    with tarfile.open(fileobj=whole, mode="r:gz") as tar:
        for member in tar:
            target = fresh / member.name
            source = tar.extractfile(member)
            if source is None or ".." in member.name.split("/"):
                raise Broken(f"the bundle has an entry that is no file: {member.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read())
            target.chmod(member.mode)
    fresh.replace(SITE)


# What the runner asks for


def tell(words: str) -> int:
    """Say something to the node program; 1 when it does not run (any more)."""
    if DONE.exists():
        return 1
    try:
        pipe = os.open(CONTROL, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 1
    os.write(pipe, words.encode() + b"\n")
    os.close(pipe)
    return 0


def wait(seconds: float) -> int:
    """0 as soon as the node program has ended, 1 when the time is over."""
    deadline = time.monotonic() + seconds
    while not DONE.exists():
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.02)
    return 0


def files() -> Iterator[tuple[str, Path, int]]:
    """Name, path and size of every file, in an order that stays the same."""
    found = [(DONE, "done.json")] if DONE.exists() else []
    if RUN.is_dir():
        names = sorted(p for p in RUN.rglob("*") if not odd(p) and p.is_file())
        # Records first: when time is short, they are worth most.
        names.sort(key=lambda p: (p.name not in ("record.json", "plan.json"), str(p)))
        found += [(path, str(path.relative_to(RUN))) for path in names]
    for path, name in found:
        with contextlib.suppress(OSError):
            yield name, path, path.stat().st_size


def odd(path: Path) -> str:
    """Why what is in the run directory does not travel; empty for files and directories."""
    if path.is_symlink():
        return "is a symbolic link, and is not followed"
    return "" if path.is_file() or path.is_dir() else "is neither a file nor a directory"


def digests() -> dict[str, tuple[int, str]]:
    """Size and sha256 of what the nodes' records list already."""
    known: dict[str, tuple[int, str]] = {}
    for record in RUN.glob("node-*/record.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for entry in json.loads(record.read_text())["artifacts"]:
                name = f"{record.parent.name}/{entry['path']}"
                known[name] = entry["size"], entry["sha256"]
    return known


def listing() -> Iterator[dict[str, Any]]:
    """Every file with size and sha256; a file still being written has no sha256."""
    known = digests() if DONE.exists() else {}
    for name, path, size in files():
        given = known.get(name)
        digest = given[1] if given and given[0] == size else ""
        if not digest and DONE.exists():
            hasher = hashlib.sha256()
            with contextlib.suppress(OSError), path.open("rb") as source:
                while data := source.read(CHUNK):
                    hasher.update(data)
            digest = hasher.hexdigest()
        yield {"path": name, "size": size, "sha256": digest}
    for path in sorted(RUN.rglob("*")):
        if odd(path):
            yield {"path": str(path.relative_to(RUN)), "size": 0, "sha256": "", "odd": odd(path)}


def send(first: str, offset: int) -> int:
    """The files as a tar on standard output, from byte ``offset`` of file ``first`` on.

    Without ``first`` all of them, and their list in front.
    """
    waiting = bool(first)
    if not waiting:
        for entry in listing():
            print(json.dumps(entry, allow_nan=False))
        print(end=END, flush=True)
    with (
        gzip.GzipFile(fileobj=sys.stdout.buffer, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path, size in files():
            if waiting and name != first:
                continue
            begin = offset if waiting else 0
            waiting = False
            with contextlib.suppress(OSError), path.open("rb") as source:
                source.seek(begin)
                member = tarfile.TarInfo(name)
                member.size = max(size - begin, 0)
                if begin:
                    member.pax_headers = {OFFSET: str(begin)}
                tar.addfile(member, Whole(source, member.size))
    return 0


class Whole(io.RawIOBase):
    """Exactly so many bytes of a file: zeros where it is shorter by now, or cannot be read."""

    def __init__(self, source: io.BufferedReader, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes."""
        wanted = self._left if size < 0 else min(size, self._left)
        try:
            data = self._source.read(wanted)
        except OSError:  # what follows it in the archive must stay where it is expected
            data = b""
        data += bytes(wanted - len(data))
        self._left -= wanted
        return data


def main(argv: list[str]) -> int:
    """The command line; see the top of the file."""
    word, rest = (argv[0], argv[1:]) if argv else ("", [])
    if word == "tell":
        return tell(" ".join(rest))
    if word == "wait":
        return wait(float(rest[0])) or send("", 0)
    if word == "send":
        return send(rest[0] if rest else "", int(rest[1]) if rest[1:] else 0)
    return Main().main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
