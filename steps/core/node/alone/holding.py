"""Which step of which node is going on in a run directory, and the keeper of a detached one.

Enters: a run directory, a node and a step. Leaves: a file ``steps/<node>-<step>.json`` that says
which process does the step, since when and how it ended. Touches: that file, which the process
locks as long as it lives; forks a keeper; signals the processes that hold.

The kernel gives the lock back however its holder dies, so a step that died is found by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from steps.core import door
from steps.core.case.numbers import Refused, dumps, is_time, loads
from steps.core.case.values import decode
from steps.core.errors import InfraError, UsageError
from steps.core.record import composed, records
from steps.core.record.records import Record
from steps.core.record.rundir import NodeDir, RunDir, read_bounded, read_json, write_json
from steps.core.record.verdict import first_cause

PLACE = "steps"
#: Steps that hold processes of the fleet.
HOLDING = ("serve", "proxy", "pool")
_NAME = re.compile(r"(\d+)-([a-z]+)\.json")
READY = b"up"
_PAUSE = threading.Event()


@dataclass(frozen=True)
class Hold:
    """One go at a step, by the process that does it.

    Attributes:
        until: when it ends by itself.
        processes: names of the processes that it holds.
        ended: when it ended, or 0; ``why`` says how, ``cause`` what went wrong.
        alive: whether that process lives.
    """

    node: int
    step: str
    pid: int = 0
    host: str = ""
    since: float = 0.0
    until: float = 0.0
    processes: tuple[str, ...] = ()
    ended: float = 0.0
    why: str = ""
    cause: Mapping[str, Any] | None = None
    alive: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{self.step} of node {self.node} (pid {self.pid} on {self.host}, since {since})"

    @property
    def up(self) -> bool:
        """Whether it is going on."""
        return self.alive and not self.ended

    @property
    def died(self) -> bool:
        """Whether its process ended without a word."""
        return not (self.alive or self.ended) and self.host == socket.gethostname()


class Taken:
    """A step that this process does now; nobody else does it in this directory meanwhile.

    Args:
        wanted: names of the processes that it must start itself.

    Raises:
        UsageError: another process does it, or one that it cannot be done beside.
    """

    def __init__(
        self, run_dir: RunDir, node: int, step: str, until: float, wanted: Collection[str] = ()
    ) -> None:
        place = run_dir.path / PLACE
        place.mkdir(mode=0o700, exist_ok=True)
        self._path = place / f"{node}-{step}.json"
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _locked(self._lock):
            os.close(self._lock)
            raise _held(read(self._path))
        beside = HOLDING if step == "preflight" else ()
        for other in look(run_dir, node):
            same = other.step != step and not set(wanted).isdisjoint(other.processes)
            if other.up and (same or other.step in beside):
                self._leave()
                raise _held(other)
        self.hold = Hold(node, step, os.getpid(), socket.gethostname(), time.time(), until)
        self._write(asdict(self.hold))

    def holds(self, processes: Iterable[str]) -> None:
        """Say which processes it holds."""
        self.hold = replace(self.hold, processes=tuple(processes))
        self._write(asdict(self.hold))

    def end(self, why: str, cause: dict[str, Any] | None = None) -> None:
        """Say how it ended, before what it holds is stopped."""
        self._write({**asdict(self.hold), "ended": time.time(), "why": why, "cause": cause})

    def close(self) -> None:
        """This process no longer does it."""
        self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def _write(self, content: dict[str, Any]) -> None:
        content.pop("alive", None)
        with contextlib.suppress(OSError):
            text = dumps(content).encode()
            os.pwrite(self._lock, text, 0)
            os.ftruncate(self._lock, len(text))


def _locked(handle: int) -> bool:
    """Lock it; somebody who only looks has it for a moment."""
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        _PAUSE.wait(0.02)
    return False


def _held(by: Hold) -> UsageError:
    return UsageError(
        f"{by} is going on in this run directory",
        "Wait for it, or end it: invoke stop. invoke status shows all that runs.",
    )


def read(path: Path) -> Hold:
    """What a file says; its process may have written half of it."""
    found = _NAME.fullmatch(path.name)
    node, step = (int(found[1]), found[2]) if found else (0, path.stem)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return Hold(node, step)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        alive = False
    except BlockingIOError:
        alive = True
    finally:
        os.close(handle)
    try:
        known = decode(Hold, loads(read_bounded(path).decode()), spare=True)
        if not all(map(is_time, (known.since, known.until, known.ended))):
            raise Refused("found a time that no calendar knows")
        records.cause_from(known.cause)
    except (OSError, ValueError):
        known = Hold(node, step)
    return replace(known, node=node, step=step, alive=alive)


def look(run_dir: RunDir, node: int | None = None) -> list[Hold]:
    """Every step that was begun in a run directory, each as its last go is."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((run_dir.path / PLACE).iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and node in (None, int(match[1])):
                found.append(read(path))
    return found


# The record


def append(place: NodeDir, part: Record, clean: Callable[[Any], Any]) -> None:
    """Add what a step did to the node's record.

    Raises:
        UsageError: the record is of another run.
    """
    with _alone(place.path / ".record.lock"):
        before = records.record_from(read_json(place.record))
        check(place, part.plan)
        whole = composed.merged(before, part, first_cause)
        write_json(place.record, clean(records.to_dict(whole)))


def check(place: NodeDir, plan: str) -> None:
    """Raises UsageError when the directory's record is of another run, or of a whole one."""
    before = records.record_from(read_json(place.record))
    if before is None:
        return
    hint = "Begin anew: invoke plan --case CASE."
    if not before.steps:
        raise UsageError(f"{place.record} is the record of a run that is over", hint)
    if before.plan != plan:
        found = f"{place.record} was written with plan {before.plan[:12]}, this is {plan[:12]}"
        raise UsageError(found, hint)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def settle(run_dir: RunDir) -> list[Hold]:
    """Write down of each step that died without a word that it did; returns these."""
    found = []
    for hold in look(run_dir):
        if not (hold.died and hold.step in HOLDING and hold.pid):
            continue
        place = run_dir.node(hold.node)
        record = records.record_from(read_json(place.record))
        if record is None or not record.steps:
            continue
        now = time.time()
        cause = lost(hold, now)
        goes = [step for step in record.steps if step.name == hold.step]
        began = goes[-1].started if goes else hold.since
        step = records.StepRecord(hold.step, began, now - began, "lost", cause)
        part = records.Record(
            **{name: getattr(record, name) for name in _SELF}, started=began, ended=now,
            outcome=cause.verdict, plan=record.plan, steps=(step,),
        )  # fmt: skip
        append(place, part, lambda content: content)
        with contextlib.suppress(UsageError):
            gone = Taken(run_dir, hold.node, hold.step, now)
            gone.hold = hold
            gone.end("died without a word", records.to_dict(cause))
            gone.close()
        found.append(hold)
    return found


_SELF = ("run", "node", "role", "side", "address", "host")


def lost(hold: Hold, now: float) -> records.Cause:
    """The cause that a step is which holds no more."""
    why = hold.why or "its process died without a word, and its guard ended what it held"
    return records.Cause(
        "lost",
        "infra",
        f"{hold} ended: {why}",
        node=hold.node,
        process="node",
        phase="hold",
        at=hold.ended or now,
        hint=f"Look at the logs in node-{hold.node}; invoke report gives the verdict, invoke plan "
        "begins anew.",
    )


# Keepers


def detach(name: str, log: Path, work: Callable[[Callable[[], None]], int]) -> tuple[int, int]:
    """Let a keeper of its own do ``work``, in a session of its own; nobody waits for it.

    Args:
        work: is given what to call when its processes run.

    Returns:
        its process id, and the pipe that :func:`await_up` reads.
    """
    heard, told = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, heard
    code = 3
    try:
        os.close(heard)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, target in ((0, null), (1, out), (2, out)):
            os.dup2(target, number)

        def up() -> None:
            with contextlib.suppress(OSError):
                os.write(told, READY)
                os.close(told)

        code = door.guarded(lambda: work(up))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def await_up(pid: int, heard: int) -> int:
    """Wait until a keeper's processes run, or it ends; 0, or the exit code it ended with."""
    try:
        if os.read(heard, len(READY)):
            return 0
    finally:
        os.close(heard)
    return wait_for(pid)


def wait_for(pid: int) -> int:
    """The exit code of a child."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 3


# Stopping


def stop(run_dir: RunDir, node: int | None, patience: Callable[[Hold], float]) -> list[Hold]:
    """End what holds, the proxy first, and wait until it has; returns what there was.

    Raises:
        InfraError: it is on another host, of another user, or does not end.
    """
    there = [hold for hold in look(run_dir, node) if hold.alive and hold.step in HOLDING]
    for steps in (("proxy",), ("serve",), ("pool",)):
        chosen = [hold for hold in there if hold.step in steps]
        for hold in chosen:
            _tell(hold, signal.SIGTERM)
        for hold in chosen:
            _await(run_dir, hold, patience(hold))
    return there


def _tell(hold: Hold, number: int) -> None:
    if hold.host != socket.gethostname():
        raise InfraError(f"{hold} is on another host", f"On {hold.host}: invoke stop.")
    try:
        os.kill(hold.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise InfraError(f"{hold} belongs to another user", "Ask them to end it.") from None


def _await(run_dir: RunDir, hold: Hold, seconds: float) -> None:
    path = run_dir.path / PLACE / f"{hold.node}-{hold.step}.json"
    for number, limit in ((signal.SIGTERM, seconds), (signal.SIGTERM, 5), (signal.SIGKILL, 10)):
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if not read(path).alive:
                return
            _PAUSE.wait(0.02)
        _tell(hold, number)
    raise InfraError(f"{hold} does not end", "Look at the process; its guard ends what it held.")
