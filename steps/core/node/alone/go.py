"""One go at a step that runs alone, for one node.

Enters: a plan, a node, a step. Leaves: what it did, added to the node's record. Touches: what the
step touches; it ends what it started itself, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from steps.core import foreign
from steps.core.errors import Exit
from steps.core.node.alone import holding
from steps.core.node.alone.faults import Aim
from steps.core.node.alone.holding import HOLDING, Hold, Taken
from steps.core.node.noderun import NodeRun, RunEnded, StepFailed, marker
from steps.core.plan import faults
from steps.core.plan.faults import Signal
from steps.core.plan.plan import LEADER, TOOL, Plan
from steps.core.record import cleaning, telemetry
from steps.core.record.events import Event, EventLog, console_line
from steps.core.record.records import Artifact, Cause, StepRecord, cause_from, to_dict
from steps.core.record.rundir import RunDir, sha256_of
from steps.core.record.verdict import CLASSES
from steps.core.redaction import here
from steps.core.system.guard import Guard
from steps.core.system.tail import Tail

Part = tuple[str, Callable[["StepRun"], object]]
#: How often a step looks whether what others hold for it is still there.
LOOK_SECONDS = 0.25


def printer(stream: object = None) -> Callable[[Event], None]:
    """A listener that prints events as plain lines."""
    started = time.time()

    def show(event: Event) -> None:
        line = console_line(event, started)
        if line:
            print(line, flush=True)

    return show


@dataclass(frozen=True)
class Step:
    """A step that can be run alone.

    Attributes:
        parts: what it does, each in its phase, for one node of a run.
        kinds: the kinds of processes that it holds; a node without them needs it not.
        starts: it starts processes; what holds does too.
        everywhere: without ``--node-index`` it is done for each node of a plan for one machine.
        needs: the fleet must be held, if this machine can know; ``waits`` may come before it.
    """

    name: str
    doc: str | None
    parts: Callable[[StepRun], Iterable[Part]]
    kinds: tuple[str, ...] = ()
    starts: bool = False
    everywhere: bool = False
    needs: bool = False
    waits: bool = False

    @property
    def holds(self) -> bool:
        """Whether it leaves processes running, and holds them until it is told to end."""
        return bool(self.kinds)

    def names(self, plan: Plan, index: int) -> list[str]:
        """The processes of a node that it must start."""
        return [p.name for p in plan.nodes[index].processes if p.kind in self.kinds]


class StepRun(NodeRun):
    """One node's run as a step alone sees it: logs are all that it knows of other processes."""

    whole = False
    collected: tuple[Artifact, ...] = ()

    def written(self) -> list[str]:
        """Files of this node that other steps still write."""
        up = [h for h in holding.look(self.run_dir, self.me.index) if h.up and h.step in HOLDING]
        names = {name for hold in up for name in hold.processes}
        logs = [process.log for process in self.me.processes if process.name in names]
        tables = [self.run_dir.node(self.me.index, h.step).processes.name for h in up]
        sampled = [telemetry.NAME] if names else []
        return [*sampled, *logs, *tables, *(f"keeper-{hold.step}.log" for hold in up)]

    def kinds_here(self) -> set[str]:
        """The kinds of processes that this node has and no other step holds."""
        held = {
            name for h in holding.look(self.run_dir, self.me.index) if h.up for name in h.processes
        }
        return {p.kind for p in self.me.processes if p.name not in held}

    def log_sizes(self) -> dict[str, int]:
        """Bytes in the log of each process of this node, whoever holds it."""
        return self._sizes(self.me.index)

    def _sizes(self, index: int) -> dict[str, int]:
        sizes = {}
        for process in self.plan.nodes[index].processes:
            if process.kind != TOOL:
                with contextlib.suppress(OSError):
                    path = self.run_dir.path / f"node-{index}" / process.log
                    sizes[process.name] = path.stat().st_size
        return sizes

    def _watch_progress(self) -> None:
        mark = [self._sizes(node.index) for node in self.plan.nodes]
        if mark != self._mark:
            self._mark = mark
            self.progress()


class Go:
    """One go at a step, for one node."""

    def __init__(
        self, step: Step, plan: Plan, run_dir: RunDir, index: int, whole: bool, taken: Taken
    ) -> None:
        self.step, self.taken = step, taken
        self.artifacts: list[Artifact] = []
        self.redactor = here()
        self.redactor.study(plan)
        path = run_dir.node(index).make().events
        self.events = EventLog(path, plan.run, index, self.redactor, [printer()])
        self.guard = Guard(marker(run_dir, index, step.name)) if step.holds or step.starts else None
        self.run = StepRun(
            plan, index, run_dir, self.events, self.redactor, guard=self.guard, step=step.name
        )
        self.run.whole = whole
        self.parent = os.getppid()
        self.interrupted = self.late = self.held = False

    def _show(self, name: str, line: str) -> None:
        print(foreign.line(f"[{name}] {self.redactor.text(line)}"))

    def carry_out(self, verbose: bool, up: Callable[[], None] | None) -> int:
        """Do it, hold what it started, and write down what was done; the exit code."""
        run, step = self.run, self.step
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        tail = Tail(run.dir.path, self._show, "*.log")
        if verbose:
            tail.start()
        self._append("begun")
        aim = self._aim()
        why = ""
        over = threading.Event()
        limit = threading.Timer(self.taken.hold.until - time.time(), self._be_late)
        limit.daemon = True
        try:
            if step.holds:
                limit.start()
            if step.needs:
                self._look_for_fleet()
                threading.Thread(target=self._watch, args=(over,), daemon=True).start()
            if "server" in step.kinds:
                from steps.core.node.sampler import sampling  # here: other steps do without

                with sampling(run):
                    why = self._do(up)
            else:
                why = self._do(up)
        except StepFailed as failure:
            run.add_cause(failure.cause)
        except RunEnded:
            why = ""
        finally:
            over.set()
            limit.cancel()
            aim.close()
            code = self._end(why)
            if verbose:
                tail.close()
            self.events.close()
        return code

    def _do(self, up: Callable[[], None] | None) -> str:
        """Every part, and then hold what was started; why that came to its end."""
        run, step = self.run, self.step
        for phase, body in step.parts(run):
            with run.phase(phase):
                body(run)
        if not step.holds:
            return "it is done"
        self.taken.holds(r.process.name for r in run.supervisor.running)
        self._append("held")
        self.held = True
        if up:
            up()
        with run.phase("hold"):
            return self._hold(detached=up is not None)

    def _interrupt(self, number: int, _frame: object) -> None:
        run = self.run
        run.interrupts += 1
        self.interrupted = True
        name = signal.Signals(number).name
        if not self.step.holds and run.interrupts == 1:
            run.add_cause(run.cause_of("interrupt", "interrupted", f"interrupted by {name}"))
        run.ended.set()

    def _hold(self, detached: bool) -> str:
        """Wait for the end; why it came."""
        run = self.run
        while True:
            if not any(running.exit is None for running in run.supervisor.running):
                return "all that it held has ended"
            if not detached and os.getppid() != self.parent:
                return "its terminal is gone"
            if run.ended.wait(0.2):
                return ""

    def _be_late(self) -> None:
        self.late = True
        self.run.ended.set()

    def _told(self) -> str:
        return "it was told to end" if self.interrupted else "its time limit passed"

    def _end(self, why: str) -> int:
        run, step = self.run, self.step
        cause = self.redactor.value(next((told.cause for told in run.own_causes()), None))
        why = str(cause) if cause else why or self._told()
        self.taken.end(why, to_dict(cause) if cause else None)
        if self.guard:
            self._stop()
        if step.holds:
            self.events.emit("note", text=f"{step.name} ends: {why}")
            self._clean_own()
        outcome = "failed" if cause else "done"
        self._append(outcome, cause)
        if cause:
            cause = self.redactor.value(cause)
            print(foreign.block(f"error: {cause}"), file=sys.stderr)
            for line in cause.evidence:
                print(f"    | {foreign.line(line)}", file=sys.stderr)
            if cause.hint:
                print(foreign.block(f"    {cause.hint}"), file=sys.stderr)
            return int(CLASSES[cause.verdict])
        missed = [result for result in run.benchmarks if result.status not in ("pass", "skipped")]
        if missed:
            return int(CLASSES[missed[0].fault or "functional"])
        if step.holds and not self.held:
            return int(Exit.INTERRUPTED if self.interrupted else Exit.DEADLINE)
        return int(Exit.PASS)

    def _stop(self) -> None:
        """End what this step started, the proxy first, the KV pool last."""
        run = self.run
        supervisor, guard = run.supervisor, self.guard
        assert guard is not None
        began, started = time.monotonic(), time.time()
        for kinds in (("proxy",), ("server", TOOL), ("pool",)):
            names = [r.process.name for r in supervisor.running if r.process.kind in kinds]
            for name, seconds in supervisor.stop(names, run.hurry).items():
                self.events.emit("stopped", process=name, seconds=seconds)
        strays, _ = supervisor.kill_strays()
        run.left += map(str, strays)
        guard.close()
        if self.step.holds:
            self.events.phase = "stop"
            run.note_phase("stop", started, time.monotonic() - began)

    def _clean_own(self) -> None:
        """Take secrets out of the logs that this step's processes have written."""
        for log in {running.log for running in self.run.supervisor.running}:
            with contextlib.suppress(OSError):
                cleaning.clean(log, self.redactor)
                name = str(log.relative_to(self.run.dir.path))
                self.artifacts.append(Artifact(name, log.stat().st_size, sha256_of(log)))

    def _append(self, outcome: str, cause: Cause | None = None) -> None:
        """Add what was done to the node's record."""
        run = self.run
        now = time.time()
        began = round(run.started, 3)
        ended = outcome not in ("begun", "held")
        done = StepRecord(self.step.name, began, round(now - began, 3), outcome, cause)
        part = replace(run.record((*self.artifacts, *run.collected)), steps=(done,))
        if not ended:
            part = replace(part, checks=(), benchmarks=())
        holding.append(run.dir, part, self.redactor.value)

    # The rest of the fleet

    def _held(self) -> Iterator[Hold]:
        return (h for h in holding.look(self.run.run_dir) if h.step in HOLDING and h.pid)

    def _look_for_fleet(self) -> None:
        """Say what is known of the fleet, and refuse to go on where it is known to be down."""
        run = self.run
        held = list(self._held())
        ended = [hold for hold in held if not hold.up]
        if ended and not self.step.waits:
            raise StepFailed(replace(holding.lost(ended[0], time.time()), consequence=True))
        known = {hold.node for hold in held}
        absent = [node for node in run.plan.nodes if node.index not in known]
        if run.plan.cluster.backend != "local":
            far = [node for node in absent if node.index != LEADER]
            if far:
                self.events.emit(
                    "warning",
                    text=f"{', '.join(node.name for node in far)}: known by their health only, "
                    "since no rendezvous tells of them; bring their directories with invoke fetch "
                    "--from DIR before the report",
                )
        elif absent and not self.step.waits:
            node = absent[0]
            reason = f"nothing serves node {node.index} in {run.run_dir.path}"
            hint = "Start it: invoke serve --detach, then invoke wait."
            raise StepFailed(run.cause_of("preflight", "infra", reason, node=node, hint=hint))

    def _watch(self, over: threading.Event) -> None:
        """End the step when what others hold for it ends."""
        run = self.run
        while not (over.is_set() or run.ended.is_set()):
            for hold in self._held():
                if not hold.up and not over.is_set():
                    cause = cause_from(hold.cause) or holding.lost(hold, time.time())
                    run.add_cause(cause)
                    return
            over.wait(LOOK_SECONDS)

    # Faults of a rehearsal that no stand-in carries out itself

    def _aim(self) -> Aim:
        """The leader's steps send the signals, since they are in the phases that say when."""
        run = self.run
        rehearsal = run.plan.cluster.rehearsal if run.is_leader else None
        signals = faults.sort(rehearsal.faults)[1] if rehearsal else ()
        aim = Aim(signals, run.run_dir, self.events, self._keeper, self._first)
        self.events.listeners.append(aim)
        return aim

    def _keeper(self, node: int) -> int:
        return next(
            (h.pid for h in self._held() if h.up and (h.node, h.step) == (node, "serve")), 0
        )

    def _first(self, entry: Signal) -> bool:
        try:
            (self.run.run_dir.path / holding.PLACE / entry.text).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
