"""One node's share of a run: what every step is given to work with.

Enters: a plan, a node index, a run directory. Leaves: phases, events, causes,
a record. Touches: through its parts only: the supervisor's processes, the
rendezvous, the node's directory.

Everything that waits waits here, in :meth:`NodeRun.until`, so that the end of
the run, a phase's budget and a stall are noticed in every step alike.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.core import settings
from steps.core.node import causes
from steps.core.node.products import placed
from steps.core.node.rendezvous.messages import Look, State, Told
from steps.core.node.supervisor import Running, Supervisor
from steps.core.plan.plan import LEADER, TOOL, Budget, NodePlan, Plan
from steps.core.record import evidence, records
from steps.core.record.events import EventLog
from steps.core.record.records import BenchResult, Cause, Check, PhaseRecord, Record
from steps.core.record.rundir import NodeDir, RunDir, full, write_text
from steps.core.record.verdict import PRODUCT_FAULTS
from steps.core.redaction import Redactor, here, secret_names
from steps.core.system.envscripts import sourced
from steps.core.system.guard import Guard
from steps.core.system.tail import Growth
from steps.core.vllm import access
from steps.core.vllm.logs import OUR_QUESTIONS

if TYPE_CHECKING:  # a leader's end takes asyncio, which nobody else needs
    from steps.core.node.rendezvous.leader import Leader
    from steps.core.node.rendezvous.link import Link

POLL = 0.05
#: How often a wait looks by itself where whoever brings what it waits for stirs it.
SELDOM = 1.0
SAY_EVERY = 10.0
#: How often a wait looks whether the run directory can still be written.
DISK_EVERY = 1.0
ROOM = "Make room there, or name a directory on another disk with --run-dir."


class RunEnded(Exception):
    """The run is over for this node, for a reason that is already known."""


class Ending(threading.Event):
    """Set when the run is over; who waits for something else meanwhile can be stirred.

    Attributes:
        turn: grows whenever something has changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self._moved = threading.Condition()

    def set(self) -> None:
        """The run is over."""
        super().set()
        self.stir()

    def stir(self) -> None:
        """Let those who wait look at once."""
        with self._moved:
            self.turn += 1
            self._moved.notify_all()

    def rest(self, turn: int, seconds: float) -> bool:
        """Wait until something has changed since ``turn``; whether the run is over."""
        with self._moved:
            self._moved.wait_for(lambda: self.turn != turn or self.is_set(), seconds)
        return self.is_set()


class StepFailed(Exception):
    """A step found why the run cannot go on."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.reason)
        self.cause = cause


def marker(run_dir: RunDir, index: int, step: str = "") -> str:
    """What a node's processes carry in their environment; a step's own are told from others'."""
    return f"{run_dir.path.resolve()}:{index}{f':{step}' if step else ''}"


def withheld(plan: Plan) -> list[str]:
    """The secrets of this machine that local engines do not get: nobody asked for them."""
    if plan.cluster.backend != "local":
        return []
    return [n for n in secret_names(settings.inherited()) if n not in plan.cluster.inherit]


class NodeRun:
    """The state of one node's run, shared by its steps and its threads.

    Args:
        leader, link: this node's end of the rendezvous; a step run alone has none.
        guard: kills what is started here when this program is killed.
        nice: of what is started here; absent: what this program has itself now.
        step: the step that runs alone.
    """

    #: What this node's engines do at present, added up; nothing until somebody samples them.
    load: Callable[[], dict[str, float]] = dict

    def __init__(
        self,
        plan: Plan,
        index: int,
        run_dir: RunDir,
        events: EventLog,
        redactor: Redactor | None = None,
        *,
        leader: Leader | None = None,
        link: Link | None = None,
        guard: Guard | None = None,
        nice: int | None = None,
        step: str = "",
    ) -> None:
        left_out = set(withheld(plan))
        inherited = {n: v for n, v in settings.inherited().items() if n not in left_out}
        # The profile's environment scripts are sourced before anything is started.
        inherited = sourced(plan.cluster.scripts, inherited)
        plan = plan.opened(inherited.get(access.KEY_VARIABLE, ""))
        self.plan = plan
        self.me: NodePlan = plan.nodes[index]
        self.run_dir = run_dir
        self.dir: NodeDir = run_dir.node(index, step).make()
        self.events = events
        self.redactor = redactor or here()
        self.started = time.time()
        self.began = time.monotonic()
        self.ended = Ending()
        self.leader = leader
        self.link = link
        self.guard = guard
        self.state = State(seq=-1)
        self.cause: Cause | None = None
        self.phases: list[PhaseRecord] = []
        self.passed: frozenset[str] = frozenset()
        self.checks: list[Check] = []
        self.benchmarks: list[BenchResult] = []
        self.versions: dict[str, str] = {}
        self.left: list[str] = []
        self.interrupts = 0
        self.all_causes: tuple[Cause, ...] = ()
        self._causes: list[Told] = []
        self._lock = threading.RLock()
        self._growth: dict[str, Growth] = {}
        self._progress = self._looked = self.began
        self._mark: Any = None
        self._phase_began = self.began
        self._budget: Budget | None = None
        self.supervisor = Supervisor(
            self.dir,
            marker(run_dir, index, step),
            inherited,
            self.on_exit,
            guard,
            self.redactor,
            plan.cluster.workdir,
            nice,
            plan.hosts(),
        )
        self.supervisor.prefer(placed.paths(run_dir, index))

    @property
    def is_leader(self) -> bool:
        """Whether this node leads the run."""
        return self.me.index == LEADER

    @property
    def joined(self) -> bool:
        """Whether the leader ever answered this worker."""
        return self.link is not None and self.link.joined.is_set()

    @property
    def phase_name(self) -> str:
        """The phase this node is in."""
        return self.events.phase

    @property
    def run_phase(self) -> str:
        """The phase of the run: a worker that holds is where the leader is."""
        if self.phase_name == "hold":
            return self.state.phase if self.state.seq >= 0 else "hold"
        return self.phase_name

    # Phases and waiting

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase with its events, its record and its budget."""
        self.check_end()
        before = (self._budget, self._phase_began)
        self.events.phase = name
        began, started = time.monotonic(), time.time()
        self._budget, self._phase_began = self.plan.budgets.get(name), began
        self.progress()
        self.events.emit("phase", state="begin")
        outcome = "failed"
        try:
            yield
            outcome = "done"
            self.passed |= {name}
            if self.link and self.joined:
                self.link.report()
        except RunEnded:
            outcome = "done" if name == "hold" else "cut"
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            self.phases.append(PhaseRecord(name, round(started, 3), seconds, outcome))
            self.events.emit("phase-end", seconds=seconds, outcome=outcome)
            self._budget, self._phase_began = before

    def note_phase(self, name: str, started: float, seconds: float) -> None:
        """Record a phase that runs after the run's end, and so has no budget of its own."""
        seconds = round(seconds, 3)
        self.phases.append(PhaseRecord(name, round(started, 3), seconds))
        self.events.emit("phase-end", seconds=seconds, outcome="done")

    def check_end(self) -> None:
        """Raise :class:`RunEnded` when the run is over."""
        if self.ended.is_set():
            raise RunEnded

    def begin_budget(self, name: str) -> None:
        """Give the budget of ``name`` anew; each benchmark has one of its own."""
        self.check_end()
        self._budget, self._phase_began = self.plan.budgets.get(name), time.monotonic()
        self.progress()

    def progress(self) -> None:
        """Something moved; the stall clock starts anew."""
        self._progress = time.monotonic()

    def until(
        self,
        done: Callable[[], bool],
        what: Callable[[], str],
        every: float = POLL,
        blame: Callable[[], tuple[NodePlan, str]] | None = None,
        logs: bool = True,
        tell: Callable[[], None] | None = None,
    ) -> None:
        """Wait until ``done``; say ``what`` is missing now and then.

        Args:
            every: seconds between two looks, unless something stirs the run.
            tell: called all the while; it says itself how things go, in place of ``what``.
            blame: the node and process to name when the phase's budget ends.
            logs: whether a growing log is progress; not where servers log our own probes.

        Raises:
            RunEnded: the run is over.
            StepFailed: the phase's budget or its stall limit is used up.
        """
        said = time.monotonic()
        while True:
            turn = self.ended.turn
            if done():
                break
            if self.ended.rest(turn, every):
                raise RunEnded
            now = time.monotonic()
            self._hold_disk(now)
            if logs:
                self._watch_progress()
            if tell:
                tell()
            elif now - said >= SAY_EVERY:
                said = now
                missing = what()
                if missing:
                    self.events.emit(
                        "waiting", missing=missing, seconds=round(now - self._phase_began)
                    )
            self._hold_budget(now, what, blame)
        self.check_end()

    def sleep(self, seconds: float) -> None:
        """Let time pass, unless the run ends."""
        if self.ended.wait(seconds):
            raise RunEnded

    def disk_trouble(self) -> str:
        """Why nothing can be written into the run directory; empty when it can."""
        if full(self.dir.path):
            return f"the disk of {self.dir.path} is full"
        error = self.events.trouble
        return f"{self.dir.events} cannot be written: {error.strerror}" if error else ""

    def _hold_disk(self, now: float) -> None:
        if now - self._looked < DISK_EVERY:
            return
        self._looked = now
        trouble = self.disk_trouble()
        if trouble:
            raise StepFailed(self.cause_of("disk", "infra", trouble, hint=ROOM))

    def _hold_budget(
        self,
        now: float,
        what: Callable[[], str],
        blame: Callable[[], tuple[NodePlan, str]] | None,
    ) -> None:
        budget = self._budget
        if budget is None:
            return
        spent, still = now - self._phase_began, now - self._progress
        if spent <= budget.seconds and still <= budget.stall:
            return
        node, process = blame() if blame else (self.me, "")
        if spent > budget.seconds:
            kind, reason = "deadline", f"the phase's {budget.seconds:g} s passed"
        else:
            kind, reason = "stall", f"no progress for {budget.stall:g} s"
        log = self.dir.path / f"{process}.log" if node is self.me and process else None
        found = evidence.of_log(log) if log else evidence.Evidence()
        raise StepFailed(
            self.cause_of(
                kind,
                "hang",
                f"{reason} while waiting for {what()}",
                node=node,
                process=process,
                evidence=found.lines,
                hint=f"Raise it with timeouts: {{{self.phase_name}: ...}} only if the logs show "
                "that work went on; stacks of hanging processes are in stacks-*.txt.",
            )
        )

    def _watch_progress(self) -> None:
        mark = self.log_sizes()
        if self.leader:
            mark["*"] = sum(sum(m.progress.values()) for m in self.leader.members.values())
        if mark != self._mark:
            self._mark = mark
            self.progress()

    def log_sizes(self) -> dict[str, int]:
        """Bytes of work in each process's log; not a tool's, which may chatter while it hangs."""
        sizes = {}
        for running in self.supervisor.running:
            name = running.process.name
            if running.process.kind == TOOL:
                continue
            growth = self._growth.setdefault(name, Growth(running.log, OUR_QUESTIONS))
            with contextlib.suppress(OSError):
                sizes[name] = growth.size()
        return sizes

    # Causes

    def cause_of(
        self,
        kind: str,
        verdict: str,
        reason: str,
        *,
        node: NodePlan | None = None,
        process: str = "",
        **more: Any,
    ) -> Cause:
        """A cause that happens now, on this node unless another is named."""
        where = node or self.me
        return Cause(
            kind=kind,
            verdict=verdict,
            reason=reason,
            node=where.index,
            role=where.role if where.side == "plain" else f"{where.role}, {where.side}",
            process=process,
            phase=more.pop("phase", self.run_phase),
            seconds=round(time.monotonic() - self.began, 3),
            at=time.time(),
            **more,
        )

    def add_cause(self, cause: Cause, mono: float | None = None) -> None:
        """Note a cause; the run ends. On a full disk the product's fault is the disk's."""
        trouble = self.disk_trouble() if cause.verdict in PRODUCT_FAULTS else ""
        if trouble:
            reason = f"{trouble}; {cause.process or cause.kind}: {cause.reason}"
            cause = replace(cause, kind="disk", verdict="infra", reason=reason, hint=ROOM)
        with self._lock:
            if self.ended.is_set() and self.cause is not None:
                return
            self._causes.append(Told(cause, time.monotonic() if mono is None else mono))
        self.ended.set()
        if self.link:
            threading.Thread(target=self.link.report, name="report", daemon=True).start()

    def on_exit(self, running: Running) -> None:
        """A process ended: unless we stopped it or it is a tool, whose end its step judges."""
        status = running.exit
        if status is None:
            return
        self.events.emit(
            "exited",
            process=running.process.name,
            how=str(status),
            pid=running.pid,
            expected=status.expected,
        )
        self.ended.stir()
        if status.expected or self.cause is not None or running.process.kind == TOOL:
            return
        state = self.leader.state if self.leader else self.state
        found = causes.of_exit(running, status, state.serving, f"{self.me.name}/")
        cause = self.cause_of(
            "exit",
            found.verdict,
            found.reason,
            process=running.process.name,
            exit_code=status.code,
            signal=status.signal,
            evidence=tuple(self.redactor.value(list(found.lines))),
            log=f"{self.me.name}/{running.process.log}",
            signature=found.signature,
            hint=found.hint,
            consequence=found.consequence,
        )
        cause = replace(cause, at=status.at, seconds=round(status.mono - self.began, 3))
        self.add_cause(cause, status.mono)

    def own_causes(self) -> tuple[Told, ...]:
        """What this node knows, for the leader."""
        self.supervisor.check()
        return self.told_causes()

    def told_causes(self) -> tuple[Told, ...]:
        """The same without another look at the processes; it waits for nothing."""
        with self._lock:
            return tuple(self._causes)

    def look(self) -> Look:
        """What a beat says."""
        passed = tuple(sorted(self.passed))
        return Look(self.phase_name, passed, self.log_sizes(), self.own_causes(), self.load())

    # Record

    def record(self, artifacts: tuple[records.Artifact, ...] = ()) -> Record:
        """This node's account of itself."""
        every = self.all_causes or tuple(told.cause for told in self._causes)
        return Record(
            run=self.plan.run,
            node=self.me.index,
            role=self.me.role,
            side=self.me.side,
            address=self.me.address,
            host=socket.gethostname(),
            started=round(self.started, 3),
            ended=round(time.time(), 3),
            outcome="pass" if self.cause is None else self.cause.verdict,
            phases=tuple(self.phases),
            processes=self.supervisor.records(),
            cause=self.cause,
            causes=every,
            benchmarks=tuple(self.benchmarks),
            checks=tuple(self.checks),
            artifacts=artifacts,
            versions=self.versions,
            left=tuple(self.left),
            plan=self.plan.fingerprint(),
        )

    def hurry(self) -> float:
        """Factor on graces: a second interrupt shortens them, a third ends them."""
        return {0: 1.0, 1: 1.0, 2: 0.2}.get(self.interrupts, 0.0)


def stage(run: NodeRun, benchmark: int) -> None:
    """Tell stand-ins which benchmark is on, from 1; 0 before the first. Faults wait for it."""
    if run.plan.rehearsed:
        write_text(run.run_dir.path / "stage", str(benchmark))


def free_bytes(path: Path) -> int:
    """Free bytes of the file system ``path`` is on."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
