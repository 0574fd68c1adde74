"""node: everything one node does in a run, whoever started it.

Enters: a plan or a case, a node index. Leaves: a run directory with this
node's record, logs and events; on the leader the verdict too. Touches:
through the steps it chains: processes, ports, the node's directory.

    preflight -> install -> KV pool (leader) -> servers -> proxy (leader) -> wait (leader) ->
    checks, benchmarks and proof (leader), hold (workers) -> stop -> collect -> record

The same program runs on one machine, on plain hosts and in a pod; only who
starts it differs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

from steps import collect, install, preflight, proxy, serve, wait
from steps.core import door, foreign
from steps.core.errors import CaseError, Exit, MultinodeError
from steps.core.node import ending
from steps.core.node.noderun import (
    ROOM,
    SELDOM,
    NodeRun,
    RunEnded,
    StepFailed,
    marker,
    stage,
    withheld,
)
from steps.core.node.rendezvous.inbox import Inbox
from steps.core.node.rendezvous.meeting import Meeting, meet
from steps.core.node.sampler import Sampler, sampling
from steps.core.node.start import GUESSABLE, Start, add_start_arguments, start_of
from steps.core.node.wishes import wishes_of
from steps.core.plan.plan import LEADER, Plan, to_json
from steps.core.record import cleaning, evidence
from steps.core.record.events import EventLog
from steps.core.record.records import Artifact, Cause, to_dict
from steps.core.record.rundir import write_json, write_text
from steps.core.record.verdict import CLASSES
from steps.core.redaction import here
from steps.core.system import priority
from steps.core.system.guard import Guard

if TYPE_CHECKING:
    from steps.core.node.rendezvous.leader import Leader

HANDOVER_SECONDS = 20.0
#: What a failure before the run is for the others.
_EARLY = {Exit.USAGE: "config", Exit.DEADLINE: "hang"}


class Program:
    """One node's program, from start to record."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.redactor = here()
        self.redactor.learn([start.token])
        run_id = start.plan.run if start.plan else ""
        node_dir = start.run_dir.node(start.index).make()
        self.events = EventLog(node_dir.events, run_id, start.index, self.redactor, start.listeners)
        node_dir.reserve()
        self.inbox = Inbox()
        self.meeting = Meeting(start, self.events, self.inbox)

    def main(self) -> int:
        """Run; the exit code is the verdict's, as far as this node knows it."""
        start = self.start
        self.inbox.handle_signals()
        if start.bound:
            self.inbox.watch_starter()
        if start.guessable and start.index == LEADER:
            self.events.emit("warning", text=GUESSABLE)
        try:
            with contextlib.closing(Guard(marker(start.run_dir, start.index))) as guard:
                nice = priority.normal()
                priority.raise_own()
                run = self.make_run(self.meeting.plan(), guard, nice)
                self._carry_out(run)
                return self.finish(run)
        except RunEnded:
            reason = f"node {start.index} was interrupted before all nodes had met"
            self.meeting.give_up(Cause("interrupt", "interrupted", reason))
            self.events.emit("warning", text=f"{reason}; nothing was started")
            return int(Exit.INTERRUPTED)
        except MultinodeError as error:
            verdict = _EARLY.get(error.exit_code, "infra")
            self.meeting.give_up(Cause("config", verdict, error.message, hint=error.hint))
            self.events.emit("warning", text=str(error))
            if not isinstance(error, CaseError):
                said = foreign.block(self.redactor.text(f"error: {error}"))
                print(said, file=sys.stderr, flush=True)
                return int(error.exit_code)
            raise
        except Exception as error:
            failed = door.failure(error)
            self.meeting.give_up(Cause("internal", "infra", failed.message))
            raise failed from None
        finally:
            self.meeting.close()
            start.run_dir.node(start.index).release()
            self.events.close()
            if start.case:  # the plan is this program's own, which needed its secrets until now
                with contextlib.suppress(OSError):
                    cleaning.clean(start.run_dir.plan, self.redactor)

    def make_run(self, plan: Plan, guard: Guard | None = None, nice: int | None = None) -> NodeRun:
        """This node's run of a plan; what was heard before reaches it too."""
        self.events.run = plan.run
        run_dir = self.start.run_dir
        if not run_dir.plan.exists():
            write_text(run_dir.plan, to_json(plan))
        self.redactor.study(plan)
        run = NodeRun(
            plan,
            self.start.index,
            run_dir,
            self.events,
            self.redactor,
            leader=self.meeting.leader,
            link=self.meeting.link,
            guard=guard,
            nice=nice,
        )
        self.inbox.attach(run)
        for note in plan.notes if run.is_leader else ():
            self.events.emit("note", text=note)
        if run.is_leader and (names := withheld(plan)):
            text = f"left out of the engines' environment: {', '.join(names)}"
            self.events.emit("note", text=f"{text}; a case names what it needs under 'inherit'")
        return run

    def _carry_out(self, run: NodeRun) -> None:
        """Every phase; whatever goes wrong becomes a cause."""
        try:
            if self.meeting.began is None:
                with run.phase("join"):
                    meet(run)
            else:  # all are here already: that is how the plan was made
                began, mono = self.meeting.began
                run.note_phase("join", began, time.monotonic() - mono)
            if run.leader:
                lead(run, run.leader)
            else:
                follow(run, self.inbox.told)
        except StepFailed as failure:
            run.add_cause(failure.cause)
        except RunEnded:
            pass
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            # Whatever cannot be written, the servers must be stopped.
            with contextlib.suppress(OSError):
                write_text(run.dir.path / "harness-error.log", self.redactor.text(text))
            trouble = run.disk_trouble()
            run.add_cause(
                run.cause_of("disk", "infra", trouble, hint=ROOM)
                if trouble
                else run.cause_of(
                    "internal",
                    "infra",
                    f"the harness itself failed: {type(error).__name__}: {error}",
                    log=f"{run.me.name}/harness-error.log",
                    hint="Please report it with that file.",
                )
            )

    def finish(self, run: NodeRun) -> int:
        """Decide or hear the first cause, stop, collect, record, hand over."""
        if run.leader:
            ending.decide(run, run.leader)
        else:
            ending.hear(run, self.inbox.told)
        ending.stop(run)
        run.dir.release()
        content = run.redactor.value(to_dict(run.record(_collect(run))))
        cause = run.cause
        code = int(CLASSES[cause.verdict]) if cause else int(Exit.PASS)
        try:
            write_json(run.dir.record, content)
        except OSError as error:
            self.events.emit("warning", text=f"{run.dir.record}: {error.strerror or error}")
            code = code or int(Exit.INFRA)
        if run.link:
            run.link.done(content, HANDOVER_SECONDS)
        elif run.leader:
            run.leader.wait(run.leader.all_done, _others_budget(run))
            code = _conclude(run)
        return code


def lead(run: NodeRun, leader: Leader) -> None:
    """The leader's phases."""
    stage(run, 0)
    with run.phase("preflight"):
        preflight.run(run)
        _barrier(run, leader, "preflight", range(1, len(run.plan.nodes)))
    installing = [n.index for n in run.plan.nodes if run.plan.installs(n)]
    if installing:
        with run.phase("install"):
            if run.me.index in installing:
                install.run(run)
            _barrier(run, leader, "install", installing)
    if run.plan.nodes[LEADER].processes[0].kind == "pool":
        with run.phase("pool"):
            serve.pool(run)
    run.checks += install.left_out(run.plan, run.me)
    leader.tell(phase="load", go=True)
    with sampling(run, seldom=True) as sampler:
        _measure(run, leader, sampler)
    from steps import prove

    with run.phase("proof"):
        prove.run(run)


def _measure(run: NodeRun, leader: Leader, sampler: Sampler) -> None:
    """The leader's phases from the servers' start to the last benchmark."""
    with run.phase("load"):
        serve.servers(run)
        # Now, while there is nothing to do: a fifth of what this program's start would take.
        from steps import bench, checks, prove, report  # noqa: F401

        _read_ahead()
        late = proxy.late(run.plan)
        if late:
            wait.ready(run, proxy=False)
        proxy.run(run)
        wait.ready(run, proxy=True if late else None)
    leader.tell(phase="probe", serving=True)
    sampler.quicken()
    with run.phase("probe"):
        wait.completion(run)
    if run.plan.content.before:
        leader.tell(phase="checks")
        with run.phase("checks"):
            checks.before(run)
    leader.tell(phase="bench")
    with run.phase("bench"):
        bench.run(run)


def follow(run: NodeRun, told: threading.Event) -> None:
    """A worker's phases; it holds until it is told of the end."""
    with run.phase("preflight"):
        preflight.run(run)
    if run.plan.installs(run.me):
        with run.phase("install"):
            install.run(run)
    run.until(lambda: run.state.go, lambda: "the leader's word to start", every=SELDOM)

    def over() -> bool:
        if run.state.serving:
            sampler.quicken()
        return told.is_set()

    with sampling(run, seldom=True) as sampler:
        with run.phase("load"):
            serve.servers(run)
            _read_ahead()
        with run.phase("hold"):
            run.until(over, lambda: "", every=1.0)


def _read_ahead() -> None:
    """Read while there is time what explains a death."""
    threading.Thread(target=evidence.signatures, name="signatures", daemon=True).start()


def _barrier(run: NodeRun, leader: Leader, phase: str, nodes: Iterable[int]) -> None:
    """Wait until every worker of ``nodes`` says it has passed ``phase``."""
    wanted = set(nodes)

    def behind() -> list[int]:
        members = leader.members.values()
        return [m.node for m in members if m.node in wanted and phase not in m.passed]

    run.until(
        lambda: not behind(),
        lambda: f"{phase} on node {', '.join(map(str, behind()))}",
        every=SELDOM,
        blame=lambda: (run.plan.nodes[behind()[0]], "node"),
    )


def _collect(run: NodeRun) -> tuple[Artifact, ...]:
    run.events.phase = "collect"
    began, started = time.monotonic(), time.time()
    try:
        return collect.run(run)
    except OSError as error:
        run.events.emit("warning", text=f"collecting failed: {error}")
        return ()
    finally:
        run.note_phase("collect", started, time.monotonic() - began)


def _others_budget(run: NodeRun) -> float:
    """How long the leader waits for the workers' records, in seconds."""
    budgets = run.plan.budgets
    whole = budgets["stop"].seconds + budgets["collect"].seconds
    return min(whole, 5.0) if run.interrupts > 1 else whole


def _conclude(run: NodeRun) -> int:
    """The leader's verdict from the records it has; for a run that nobody else looks at."""
    from steps import report

    verdict = report.run(run.run_dir).verdict
    text = verdict.verdict if verdict.cause is None else f"{verdict.verdict}: {verdict.cause}"
    run.events.phase = "verdict"
    run.events.emit("verdict", text=text, verdict=verdict.verdict)
    return verdict.exit_code


def work(arguments: argparse.Namespace) -> int:
    """Run this node's share; the exit code is the verdict's."""
    start = start_of(wishes_of(arguments, case_may_rehearse=True))
    door.keep_in(start.run_dir.node(start.index).path)
    return Program(start).main()


main = door.Verb("node", __doc__, add_start_arguments, work)


if __name__ == "__main__":
    raise SystemExit(main())
