"""Processes of a node: started in groups of their own, watched, stopped whole.

Enters: processes of the plan. Leaves: logs, ``processes.json``, exits told
at once. Touches: child processes of this program, and only those.

Never a shell. Each process leads a session and a group of its own; signals go
to the group, since engines outlive a server that alone is signalled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steps.core.plan.direct import exempt
from steps.core.plan.plan import TOOL, Process
from steps.core.record.records import ProcessRecord
from steps.core.record.rundir import NodeDir, write_json
from steps.core.redaction import Redactor, here
from steps.core.system import ancestry, oom, priority
from steps.core.system.ancestry import Kin
from steps.core.system.guard import MARKER, Guard, marked
from steps.core.system.proc import stat_of

KILL_WAIT = 5.0
DUMP_SECONDS = 15.0
#: Seconds a killed process may take to be gone.
DYING_WAIT = 0.1
#: Seconds that reading a dead process's log may take on a busy machine.
TELL_WAIT = 3.0
#: How often adopted orphans are looked at, so that those that ended are let go.
REAP_SECONDS = 10.0
#: Where engines put sockets and temporary files (vLLM: envs.py, its default is TMPDIR).
TEMPORARY = ("TMPDIR", "VLLM_RPC_BASE_PATH")


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended.

    Attributes:
        code: exit code, None when a signal ended it.
        signal: name such as ``SIGKILL``, or empty.
        expected: we were stopping it.
        at: seconds since the epoch; ``mono`` by the monotonic clock.
        oom: evidence of an out-of-memory kill, or empty.
        survivors: members of its group that live on without it.
    """

    code: int | None
    signal: str
    expected: bool
    at: float
    mono: float
    oom: str = ""
    survivors: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.signal == "SIGKILL" and not self.expected:
            return f"was killed by signal 9 ({self.oom or 'perhaps out of memory'})"
        if self.signal:
            number = getattr(signal, self.signal, None)
            return f"was ended by signal {int(number) if number else '?'} ({self.signal})"
        tail = ", though children of it live on" if self.survivors and not self.expected else ""
        early = " before its time" if self.code == 0 and not self.expected else ""
        return f"exited with code {self.code}{early}{tail}"


@dataclass
class Running:
    """A started process."""

    process: Process
    popen: subprocess.Popen[bytes]
    started: float
    log: Path
    exit: ExitStatus | None = None
    stopping: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    told: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's and session's."""
        return self.popen.pid

    @property
    def held(self) -> bool:
        """Whether its number is still its own: the kernel gives none away before it is reaped."""
        return self.popen.returncode is None

    def release(self) -> None:
        """Reap it; from now on its number may be somebody else's."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(KILL_WAIT)


class Supervisor:
    """Starts, watches and stops the processes of one node.

    Args:
        marker: ``<run id>:<node>``, put into every child's environment.
        nice: of what it starts; absent: what it has itself now.
        direct: addresses that are asked without a proxy, whatever the environment says.
        on_exit: called from a thread of its own at each unexpected or expected exit.
    """

    def __init__(
        self,
        node_dir: NodeDir,
        marker: str,
        inherited: Mapping[str, str],
        on_exit: Callable[[Running], None],
        guard: Guard | None = None,
        redactor: Redactor | None = None,
        workdir: str = "",
        nice: int | None = None,
        direct: Sequence[str] = (),
    ) -> None:
        self._dir = node_dir
        self._marker = marker
        self._inherited = dict(inherited)
        self._on_exit = on_exit
        self._guard = guard
        self._redactor = redactor or here()
        self._workdir = workdir
        self._direct = tuple(direct)
        self._lock = threading.RLock()
        self._running: list[Running] = []
        self._oom_before = oom.kills()
        self._nice = priority.normal() if nice is None else nice
        self._orphans = ancestry.Orphans()
        if guard:
            threading.Thread(target=self._reap, name="reap", daemon=True).start()

    @property
    def running(self) -> list[Running]:
        """Everything that was started, in that order."""
        with self._lock:
            return list(self._running)

    def start(self, process: Process, place: Path | None = None) -> Running:
        """Start a process; its output goes to its log.

        Args:
            place: directory of its log and its working directory, for a tool with its own.

        Raises:
            OSError: the program is not there or cannot be executed.
        """
        log = (place or self._dir.path) / process.log
        env = self.environment(process)
        program = shutil.which(process.argv[0], path=env.get("PATH"))
        if program is None:
            raise FileNotFoundError(
                2, f"No such file or directory: '{process.argv[0]}' is not on PATH"
            )
        work = place or (Path(self._workdir) if self._workdir else self._dir.path / "work")
        if place is None and not self._workdir:
            work.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            popen = subprocess.Popen(
                process.argv,
                executable=program,
                env=env,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        priority.give(popen.pid, self._nice)
        if self._guard:
            self._guard.add(popen.pid)
        running = Running(process, popen, time.time(), log)
        with self._lock:
            self._running.append(running)
            self._write_table()
        threading.Thread(
            target=self._wait, args=(running,), name=f"wait-{process.name}", daemon=True
        ).start()
        return running

    def environment(self, process: Process) -> dict[str, str]:
        """The environment ``process`` is started with."""
        env = {**self._inherited, **process.env, MARKER: self._marker}
        if self._guard and self._guard.scratch.path and TEMPORARY[0] not in process.env:
            place = str(self._guard.scratch.path)
            env.update({name: place for name in TEMPORARY if name not in process.env})
        for name, parts in process.paths.items():
            env[name] = ":".join([*parts, *([env[name]] if env.get(name) else [])])
        for name, file in process.files.items():
            env[name] = str(self._dir.path / file)
        return exempt(env, self._direct)

    def prefer(self, paths: Mapping[str, Sequence[str]]) -> None:
        """Put directories in front of path variables of all that is started from now on."""
        for name, parts in paths.items():
            before = self._inherited.get(name)
            self._inherited[name] = ":".join([*parts, *([before] if before else [])])

    def check(self) -> None:
        """Notice exits now, and wait until what they mean has been told."""
        for running in self.running:
            if not running.told.is_set() and _has_ended(running.pid):
                running.told.wait(TELL_WAIT)

    def signal(self, running: Running, number: int) -> None:
        """Send a signal to the whole group of a process, if the group is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if running.held:
                os.killpg(running.pid, number)

    def stop(self, names: Iterable[str], hurry: Callable[[], float]) -> dict[str, float]:
        """TERM, grace, KILL to each group of ``names``, all at the same time, the last one first.

        Args:
            hurry: factor on the graces, asked again all the time; a second
                Ctrl-C lowers it.

        Returns:
            seconds each process took to end.
        """
        began = time.monotonic()
        chosen = set(names)
        mine = [r for r in reversed(self.running) if r.process.name in chosen and r.held]
        for running in mine:
            running.stopping = True
            if running.exit is None or group_members(running.pid):
                self.signal(running, signal.SIGTERM)
                self.signal(running, signal.SIGCONT)
        took: dict[str, float] = {}
        pending = list(mine)
        while pending:
            passed = time.monotonic() - began
            for running in list(pending):
                name = running.process.name
                alone = running.ended.wait(0.02) and not group_members(running.pid)
                if alone:
                    took[name] = round(passed, 3)
                elif passed > running.process.grace * hurry():
                    self.signal(running, signal.SIGKILL)
                    running.ended.wait(KILL_WAIT)
                    took[name] = round(time.monotonic() - began, 3)
                else:
                    continue
                pending.remove(running)
                self._let_go(running, alone)
        with self._lock:
            self._write_table()
        return took

    def _let_go(self, running: Running, alone: bool) -> None:
        """Reap a stopped process; the guard keeps the number of a group that lives on."""
        if self._guard and running.ended.is_set() and (alone or not group_members(running.pid)):
            self._guard.remove(running.pid)
        running.release()

    def kill_strays(self) -> tuple[list[Kin], list[Kin]]:
        """KILL what descends from our processes or carries the run's marker, until nothing does.

        Returns:
            what there was, and what of it cannot be killed; the guard stays for that.
        """
        held = [running.pid for running in self.running if running.held]
        found, left = self._orphans.end(held, lambda: marked(self._marker), DYING_WAIT)
        if self._guard:
            self._guard.unsure = bool(left)
        return found, left

    def _reap(self) -> None:
        """An engine may make orphans for weeks; those that ended must not fill the table."""
        pause = threading.Event()
        while not pause.wait(REAP_SECONDS):
            self._orphans.reap([running.pid for running in self.running])

    def dump_stacks(self) -> bool:
        """Write the stacks of what runs beside its logs; False where py-spy is missing."""
        spy = shutil.which("py-spy")
        if spy is None:
            return False
        deadline = time.monotonic() + DUMP_SECONDS
        for running in self.running:
            if running.exit is not None or time.monotonic() > deadline:
                continue
            path = self._dir.path / f"stacks-{running.process.name}.txt"
            with contextlib.suppress(OSError, subprocess.SubprocessError), path.open("w") as out:
                subprocess.run(
                    [spy, "dump", "--subprocesses", "--pid", str(running.pid)],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=5,
                    check=False,
                )
        return True

    def records(self) -> tuple[ProcessRecord, ...]:
        """Every process as the record has it."""
        return tuple(
            ProcessRecord(
                name=running.process.name,
                pid=running.pid,
                pgid=running.pid,
                argv=tuple(self._redactor.value(list(running.process.argv))),
                log=os.path.relpath(running.log, self._dir.path),
                started=round(running.started, 3),
                exit=_exit_json(running.exit),
            )
            for running in self.running
        )

    def _wait(self, running: Running) -> None:
        code = _exit_code(running.popen)
        mono, now = time.monotonic(), time.time()
        name = ""
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"SIG{-code}"
        evidence = ""
        if name == "SIGKILL" and not running.stopping:
            evidence = oom.evidence(running.pid, self._oom_before)
        tool = running.process.kind == TOOL
        survivors = () if running.stopping or tool else self._survivors(running)
        expected = running.stopping or (tool and code == 0)
        running.exit = ExitStatus(
            None if code < 0 else code, name, expected, now, mono, evidence, survivors
        )
        with self._lock:
            self._write_table()
        running.ended.set()
        try:
            self._on_exit(running)
        finally:
            running.told.set()

    def _survivors(self, running: Running) -> tuple[int, ...]:
        """Members of its group that live on; not those that it killed as its last act."""
        found = group_members(running.pid)
        if found:
            running.told.wait(DYING_WAIT)
            found = group_members(running.pid)
        return tuple(found)

    def _write_table(self) -> None:
        with contextlib.suppress(OSError):
            write_json(self._dir.processes, [asdict(record) for record in self.records()])


def _exit_code(popen: subprocess.Popen[bytes]) -> int:
    """Wait for a child's end without reaping it, as ``Popen.returncode`` has it.

    Unreaped, its number is nobody else's, and its group can be signalled safely.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return popen.wait()
    ended = os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _has_ended(pid: int) -> bool:
    """Whether a child has ended, reaped or not."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def group_members(pgid: int) -> list[int]:
    """Processes of a group that are no zombies (Linux; elsewhere none)."""
    found = []
    with contextlib.suppress(OSError):
        os.killpg(pgid, 0)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = stat_of(entry)
            except (OSError, ValueError, IndexError):
                continue
            if stat.group == pgid and stat.lives:
                found.append(int(entry.name))
    return found


def _exit_json(status: ExitStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    data: dict[str, Any] = {
        "code": status.code,
        "signal": status.signal,
        "expected": status.expected,
        "at": round(status.at, 4),
        "how": str(status),
    }
    return data
