"""node: everything one node does in a run, whoever started it.

Enters: a plan or a case, a node index. Leaves: a run directory with this
node's record, logs and events; on the leader the verdict too. Touches:
through the steps it chains: processes, ports, the node's directory.

    preflight -> KV pool (leader) -> servers -> proxy (leader) -> wait (leader)
    -> benchmarks and proof (leader), hold (workers) -> stop -> collect -> record

The same program runs on one machine, on plain hosts and in a pod; only who
starts it differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from steps import bench, collect, install, preflight, prove, proxy, report, serve, wait
from steps.core import VERSION, door, settings
from steps.core.errors import (
    CaseError,
    DeadlineError,
    Exit,
    InfraError,
    MultinodeError,
    UsageError,
)
from steps.core.node import alone, identify
from steps.core.node.noderun import ROOM, SAY_EVERY, NodeRun, RunEnded, StepFailed
from steps.core.node.rendezvous import ROLL_WAIT, Leader, Link, Member
from steps.core.node.start import GUESSABLE, Start, add_start_arguments, start_of
from steps.core.plan.plan import LEADER, Plan, from_json, to_json
from steps.core.plan.resolver import resolve
from steps.core.record import evidence
from steps.core.record.events import EventLog
from steps.core.record.records import Cause, Check, cause_from, to_dict
from steps.core.record.rundir import write_json, write_text
from steps.core.record.verdict import CLASSES
from steps.core.redaction import Redactor, secrets_in
from steps.core.system import priority
from steps.core.system.guard import Guard
from steps.core.vllm import installed

HANDOVER_SECONDS = 20.0
#: How long who ends before the run begins waits until the others have heard of it.
TELL_SECONDS = 1.0
#: A last try to reach a leader that is taken to be lost.
LEADERLESS_SECONDS = 0.5
#: A clock that is further off makes times of different nodes hard to compare.
SKEW_SECONDS = 2.0
TOLD_WAIT = ROLL_WAIT + 3.0
#: What a failure before the run is for the others.
_EARLY = {Exit.USAGE: "config", Exit.DEADLINE: "hang"}
#: How many of many a line names.
NAMED = 10


class Program:
    """One node's program, from start to record."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.redactor = Redactor.of_environment(settings.inherited(), [start.token])
        run_id = start.plan.run if start.plan else ""
        node_dir = start.run_dir.node(start.index).make()
        self.events = EventLog(node_dir.events, run_id, start.index, self.redactor, start.listeners)
        node_dir.reserve()
        self.run: NodeRun | None = None
        self.leader: Leader | None = None
        self.link: Link | None = None
        self.guard: Guard | None = None
        self._told = threading.Event()
        self._early = threading.Event()
        self._early_interrupts = 0
        self._early_words: list[str] = []
        self._last: Cause | None = None
        self._refused = ""
        self._leaderless = ""
        self.nice = 0
        self._state: dict[str, Any] = {}
        self._said = time.monotonic()
        self._joined_at: tuple[float, float] | None = None

    # The whole

    def main(self) -> int:
        """Run; the exit code is the verdict's, as far as this node knows it."""
        self._handle_signals()
        if self.start.bound:
            threading.Thread(target=self._watch_starter, name="starter", daemon=True).start()
        if self.start.guessable and self.start.index == LEADER:
            self.events.emit("warning", text=GUESSABLE)
        try:
            self._open_guard()
            self.nice = priority.normal()
            priority.raise_own()
            plan = self._join()
            run = self._make_run(plan)
            self._carry_out(run)
            return self._finish(run)
        except RunEnded:
            reason = f"node {self.start.index} was interrupted before all nodes had met"
            self._give_up(Cause("interrupt", "interrupted", reason))
            self.events.emit("warning", text=f"{reason}; nothing was started")
            return int(Exit.INTERRUPTED)
        except MultinodeError as error:
            verdict = _EARLY.get(error.exit_code, "infra")
            self._give_up(Cause("config", verdict, error.message, hint=error.hint))
            self.events.emit("warning", text=str(error))
            if not isinstance(error, CaseError):
                print(f"error: {error}", file=sys.stderr, flush=True)
                return int(error.exit_code)
            raise
        except Exception as error:
            failed = door.failure(error)
            self._give_up(Cause("internal", "infra", failed.message))
            raise failed from None
        finally:
            if self.link:
                self.link.close()
            if self.leader:
                self.leader.close()
            if self.guard:
                self.guard.close()
            self.start.run_dir.node(self.start.index).release()
            self.events.close()

    def _open_guard(self) -> None:
        self.guard = Guard(alone.marker(self.start.run_dir, self.start.index))

    # Joining

    def _join(self) -> Plan:
        """The plan: the starter's, else the one the leader makes when all nodes are there."""
        start = self.start
        if start.plan is not None:
            return start.plan
        assert start.case is not None
        assert start.cluster is not None
        self.events.phase = "join"
        self._joined_at = (time.time(), time.monotonic())
        deadline = time.monotonic() + start.join_seconds()

        def again(what: str) -> None:
            self._wait_early(deadline, f"the address of {what}")

        leader = identify.look_up(start.cluster.nodes[LEADER].address, again)
        names = [node.address for node in start.cluster.nodes]
        peer = next((name for i, name in enumerate(names) if i != start.index), "")
        own = identify.look_up_own(names[start.index], peer, again)
        identity = identify.identify(start.cluster, start.index, own)
        hello = identify.hello(identity, start.case, start.cluster, start.options)
        if start.index == LEADER:
            return self._assemble(own, hello, deadline)
        return self._ask_for_plan(leader, own, hello, deadline)

    def _give_up(self, cause: Cause) -> None:
        """Tell the others why this node leaves without a record."""
        self._last = replace(
            cause, node=self.start.index, process="node", phase=self.events.phase, at=time.time()
        )
        if self.leader:
            if self.leader.state["ended"] is None:
                self.leader.tell(ended={"cause": to_dict(self._last)})
            self.leader.wait(self.leader.all_done, TELL_SECONDS)
        elif self.link and self.link.joined.is_set():
            self.link.report()

    def _wait_early(self, deadline: float, what: str) -> None:
        """Wait a moment, before there is a run to wait in.

        Raises:
            RunEnded: interrupted.
            DeadlineError: the budget to join is used up.
        """
        if self._early.wait(0.2):
            raise RunEnded
        now = time.monotonic()
        if now > deadline:
            raise DeadlineError(
                f"waiting for {what} took longer than the phase join may",
                "Is it started there, and is the control port open between the nodes? "
                "--timeout join=SECONDS waits longer.",
            )
        if now - self._said > SAY_EVERY:
            self._said = now
            self.events.emit("waiting", missing=what)

    def _assemble(self, own: str, hello: dict[str, Any], deadline: float) -> Plan:
        """Leader: wait for everybody, make the plan of what they told."""
        start = self.start
        assert start.case is not None
        assert start.cluster is not None
        size = len(start.cluster.nodes)
        leader = self._open_leader(own, start.cluster.control_port, size, hello)
        names = [f"{node.index} ({node.address})" for node in start.cluster.nodes]
        while len(leader.joined()) < size - 1:
            here = leader.joined()
            missing = f"node {', '.join(names[i] for i in range(1, size) if i not in here)}"
            if leader.state.get("missing") != missing:
                leader.tell(missing=missing)
            self._wait_early(deadline, missing)
        hellos = {LEADER: hello, **{m.node: m.hello for m in leader.members.values()}}
        facts = {f"node {index}": told.get("facts", {}) for index, told in hellos.items()}
        for text in installed.sentences(facts):
            self.events.emit("warning", text=text)
        cluster = identify.assemble(start.cluster, hellos)
        try:
            plan = resolve(start.case, cluster, start.options)
        except CaseError as error:
            cause = Cause("config", "config", str(error), phase="join", at=time.time())
            leader.tell(ended={"cause": to_dict(cause)})
            raise
        leader.plan = to_json(plan)
        leader.tell(planned=True)
        return plan

    def _ask_for_plan(self, leader: str, own: str, hello: dict[str, Any], deadline: float) -> Plan:
        """Worker: join, and take the leader's plan."""
        assert self.start.cluster is not None
        link = self._open_link((leader, self.start.cluster.control_port), own, hello)
        while not (link.joined.is_set() and self._state.get("planned")):
            if self._refused:
                twice = "already here" in self._refused
                raise UsageError(
                    f"the leader refused this node: {self._refused}",
                    "Was it started twice? Every machine has a --node-index of its own."
                    if twice
                    else "Use the same case, options and version of the harness on every node.",
                )
            ended = self._state.get("ended")
            if ended is not None:
                cause = cause_from(ended.get("cause"))
                error = InfraError(f"the leader ended the run: {cause.reason if cause else ''}")
                error.exit_code = CLASSES[cause.verdict] if cause else Exit.INFRA
                raise error
            if self._leaderless:
                raise InfraError(
                    f"the leader at {leader} is gone: {self._leaderless}",
                    "Look at what it said, then start it and this node again.",
                )
            told = self._state.get("missing")
            others = f", which waits for {told}" if told else " and its plan"
            self._wait_early(deadline, f"the leader at {leader}{others}")
        return from_json(link.plan())

    def _open_leader(self, address: str, port: int, size: int, hello: dict[str, Any]) -> Leader:
        """Listen for the workers.

        Raises:
            InfraError: the control port cannot be opened.
        """
        self.leader = Leader(
            address,
            port,
            self.start.token,
            size,
            refuse=lambda node, theirs: self._refusal(node, hello, theirs),
            fingerprints=identify.comparable(hello),
            on_stranger=self._on_stranger,
            on_cause=lambda cause: self._heard(),
            on_join=self._on_join,
            on_record=self._on_record,
            on_starved=self._on_starved,
        )
        try:
            self.leader.start()
        except OSError as error:
            raise InfraError(
                f"the control port {port} on {address} cannot be opened: {_words(error)}",
                f"Is another run going on, or was node {LEADER} started twice? "
                "MULTINODE_CONTROL_PORT, the same on all nodes, chooses another port.",
            ) from None
        return self.leader

    def _on_stranger(self, address: str, theirs: Mapping[str, Any]) -> None:
        """Somebody without the run's token: most often a node with another case."""
        assert self.leader is not None
        why = identify.differs(self.leader.fingerprints, theirs) or "it has another run token"
        self.events.emit("warning", text=f"a node at {address} was refused: {why}")

    def _refusal(self, node: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
        why = identify.differs(ours, theirs)
        if why:
            self.events.emit("warning", text=f"node {node} was refused: {why}")
        return why

    def _open_link(self, leader: tuple[str, int], own: str, hello: dict[str, Any]) -> Link:
        """Begin to beat."""
        self.link = Link(
            *leader,
            self.start.token,
            self.start.index,
            own,
            hello,
            look=self._look,
            on_state=self._on_state,
            on_lost=self._on_lost,
            on_refused=self._on_refused,
            on_starved=lambda: self._on_starved(LEADER),
        )
        self.link.start()
        return self.link

    def _on_starved(self, node: int) -> None:
        self.events.emit(
            "warning",
            text=f"the program of node {node} lives but gets no core: this machine has more to "
            "do than its cores can carry, so its times are not to be trusted",
        )

    def _look(self) -> dict[str, Any]:
        if self.run is None:
            told = [{**to_dict(self._last), "mono": time.monotonic()}] if self._last else []
            return {"phase": "join", "passed": [], "progress": {}, "causes": told}
        return self.run.look()

    def _make_run(self, plan: Plan) -> NodeRun:
        self.events.run = plan.run
        run = NodeRun(plan, self.start.index, self.start.run_dir, self.events, self.redactor)
        if not self.start.run_dir.plan.exists():
            write_text(self.start.run_dir.plan, to_json(plan))
        for node in plan.nodes:
            for process in node.processes:
                self.redactor.learn(secrets_in(process.env))
        # Read while there is time: a death is explained the sooner.
        threading.Thread(target=evidence.signatures, name="signatures", daemon=True).start()
        run.leader, run.link = self.leader, self.link
        run.supervisor = alone.supervisor_of(run, self.guard, self.nice)
        self.run = run
        # Only now, for what is told from here on reaches the run by itself.
        self._catch_up(run)
        for note in plan.notes if run.is_leader else ():
            self.events.emit("note", text=note)
        return run

    def _catch_up(self, run: NodeRun) -> None:
        """Let the run know what happened before it was there."""
        run.interrupts = max(self._early_interrupts - 1, 0)
        if self._early.is_set():
            self._interrupt("interrupted before the start")
        self._on_state(self._state)
        if self._leaderless:
            self._on_lost(self._leaderless)
        if self._refused:
            self._on_refused(self._refused)
        for word in self._early_words:
            self._obey(word)
        if self.leader and any(m.lost or m.causes for m in self.leader.members.values()):
            run.ended.set()

    def _carry_out(self, run: NodeRun) -> None:
        """Every phase; whatever goes wrong becomes a cause."""
        try:
            if self._joined_at is None:
                with run.phase("join"):
                    self._meet(run)
            else:  # all are here already: that is how the plan was made
                began, mono = self._joined_at
                run.note_phase("join", began, time.monotonic() - mono)
            if run.is_leader:
                self._lead(run)
            else:
                self._follow(run)
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

    def _meet(self, run: NodeRun) -> None:
        """Open the rendezvous, if it is not, and wait until everybody is there."""
        plan = run.plan
        control = plan.nodes[LEADER].address, plan.cluster.control_port
        hello = {"plan": plan.fingerprint(), "harness": VERSION}
        if run.is_leader:
            try:
                leader = self._open_leader(*control, len(plan.nodes), hello)
            except InfraError as error:
                raise StepFailed(
                    run.cause_of("preflight", "infra", error.message, hint=error.hint)
                ) from None
            run.leader = leader
            expected = set(range(1, len(plan.nodes)))

            def missing() -> list[int]:
                return sorted(expected - set(leader.joined()))

            run.until(
                lambda: not missing(),
                lambda: "node " + ", ".join(f"{i} ({plan.nodes[i].address})" for i in missing()),
                blame=lambda: (plan.nodes[missing()[0]], "node"),
            )
            return
        link = run.link = self._open_link(control, run.me.address, hello)
        run.until(
            link.joined.is_set,
            lambda: f"the leader at {control[0]}:{control[1]}",
            blame=lambda: (plan.nodes[LEADER], "node"),
        )

    def _on_join(self, member: Member) -> None:
        self.events.emit("joined", member=member.node, address=member.address)
        if abs(member.skew) > SKEW_SECONDS:
            self.events.emit(
                "warning",
                text=f"the clock of node {member.node} is {abs(member.skew):.1f} s "
                f"{'ahead' if member.skew > 0 else 'behind'}; run chrony or ntpd there",
            )

    def _on_record(self, node: int, record: Any) -> None:
        """A worker's record, kept beside our own where its own directory is elsewhere."""
        place = self.start.run_dir.node(node).make()
        if record and not place.record.exists():
            with contextlib.suppress(OSError, TypeError):
                write_json(place.record, record)

    def _heard(self) -> None:
        """A worker reported a cause or was lost: the run is over, the main thread decides."""
        if self.run is not None:
            self.run.ended.set()

    def _on_state(self, state: dict[str, Any]) -> None:
        self._state = state
        if self.run is None:
            return  # it will catch up
        self.run.state = state
        if state.get("ended") is not None:
            self.run.cause = cause_from(state["ended"].get("cause"))
            self._told.set()
            self.run.ended.set()

    def _on_lost(self, why: str) -> None:
        self._leaderless = why
        run = self.run
        if run is None:
            return
        run.add_cause(
            run.cause_of(
                "lost",
                "infra",
                f"the leader is lost: {why}",
                node=run.plan.nodes[LEADER],
                process="node",
                hint="Look at the leader's node and logs.",
            )
        )
        self._told.set()

    def _on_refused(self, why: str) -> None:
        self._refused = why
        run = self.run
        if run is not None:
            run.add_cause(run.cause_of("config", "config", f"the leader refused this node: {why}"))
            self._told.set()

    # Leading and following

    def _lead(self, run: NodeRun) -> None:
        leader = self.leader
        assert leader is not None
        with run.phase("preflight"):
            preflight.run(run)
            self._barrier(run, leader, "preflight", range(1, len(run.plan.nodes)))
        installing = [] if run.plan.rehearsed else [n.index for n in run.plan.nodes if n.packages]
        if installing:
            with run.phase("install"):
                if run.me.packages:
                    install.run(run)
                self._barrier(run, leader, "install", installing)
        if run.plan.nodes[LEADER].processes[0].kind == "pool":
            with run.phase("pool"):
                serve.pool(run)
        if run.me.packages and run.plan.rehearsed:
            run.checks.append(Check("special_dependencies", "skipped", "rehearsed: not installed"))
        leader.tell(phase="load", go=True)
        with run.phase("load"):
            serve.servers(run)
            proxy.run(run)
            wait.ready(run)
        leader.tell(phase="probe", serving=True)
        with run.phase("probe"):
            wait.completion(run)
        leader.tell(phase="bench")
        with run.phase("bench"):
            bench.run(run)
        with run.phase("proof"):
            prove.run(run)

    def _barrier(self, run: NodeRun, leader: Leader, phase: str, nodes: Iterable[int]) -> None:
        """Wait until every worker of ``nodes`` says it has passed ``phase``."""
        wanted = set(nodes)

        def behind() -> list[int]:
            members = leader.members.values()
            return [m.node for m in members if m.node in wanted and phase not in m.passed]

        run.until(
            lambda: not behind(),
            lambda: f"{phase} on node {', '.join(map(str, behind()))}",
            every=0.02,
            blame=lambda: (run.plan.nodes[behind()[0]], "node"),
        )

    def _follow(self, run: NodeRun) -> None:
        with run.phase("preflight"):
            preflight.run(run)
        if run.me.packages and not run.plan.rehearsed:
            with run.phase("install"):
                install.run(run)
        run.until(lambda: bool(run.state.get("go")), lambda: "the leader's word to start")
        with run.phase("load"):
            serve.servers(run)
        with run.phase("hold"):
            run.until(self._told.is_set, lambda: "", every=0.5)

    # The end

    def _finish(self, run: NodeRun) -> int:
        """Decide or hear the first cause, stop, collect, record, hand over."""
        if run.is_leader:
            if self.leader:
                run.decide()
            else:
                run.decide_alone()
                run.ended.set()
        else:
            if self._joined():  # else nobody is there to tell us anything
                self._told.wait(TOLD_WAIT)
            if run.cause is None and run.state.get("ended") is None:
                run.decide_alone()
            if run.cause is None and run.state.get("ended") is None:
                run.cause = run.cause_of(
                    "lost",
                    "no-verdict",
                    "the leader never said how the run ended",
                    node=run.plan.nodes[LEADER],
                    process="node",
                    hint="Look at the leader's node and logs.",
                )
        cause = run.cause
        if cause and not run.is_leader:
            self.events.emit("cause", text=str(cause), verdict=cause.verdict)
        self._stop(run)
        run.dir.release()
        artifacts = self._collect(run)
        record = run.record(artifacts)
        content = run.redactor.value(to_dict(record))
        code = int(CLASSES[cause.verdict]) if cause else int(Exit.PASS)
        try:
            write_json(run.dir.record, content)
        except OSError as error:
            self.events.emit("warning", text=f"{run.dir.record}: {error.strerror or error}")
            code = code or int(Exit.INFRA)
        if self.link:
            lost = cause is not None and (cause.kind, cause.node) == ("lost", LEADER)
            leaderless = lost or not self._joined()
            self.link.done(content, LEADERLESS_SECONDS if leaderless else HANDOVER_SECONDS)
        elif self.leader:
            self.leader.wait(self.leader.all_done, self._others_budget(run))
            code = self._conclude(run)
        return code

    def _joined(self) -> bool:
        """Whether the leader ever answered this worker."""
        return self.link is not None and self.link.joined.is_set()

    def _stop(self, run: NodeRun) -> None:
        """Stop everything of this node, the proxy first, the KV pool last."""
        self.events.phase = "stop"
        began, started = time.monotonic(), time.time()
        if run.cause and run.cause.verdict == "hang":
            run.dump_stacks()
        supervisor = run.supervisor
        assert supervisor is not None
        for kind in ("proxy", "server", "pool"):
            names = [r.process.name for r in supervisor.running if r.process.kind == kind]
            for name, seconds in supervisor.stop(names, run.hurry).items():
                self.events.emit("stopped", process=name, seconds=seconds)
        strays, alive = supervisor.kill_strays()
        if strays:
            run.left += map(str, strays)
            told = "; still there: " + ", ".join(map(str, alive)) if alive else ""
            self.events.emit(
                "warning",
                text=f"{len(strays)} processes had left their groups and were killed: "
                + ", ".join(map(str, strays[:NAMED]))
                + (", ..." if len(strays) > NAMED else "")
                + told,
            )
        left = self.guard.scratch.left_in_memory() if self.guard else []
        if left:
            self.events.emit(
                "warning",
                text=f"left in /dev/shm during this run, used by nobody: {', '.join(left[:NAMED])}"
                "; if it is yours, remove it",
            )
        run.note_phase("stop", started, time.monotonic() - began)

    def _collect(self, run: NodeRun) -> Any:
        self.events.phase = "collect"
        began, started = time.monotonic(), time.time()
        try:
            return collect.run(run)
        except OSError as error:
            self.events.emit("warning", text=f"collecting failed: {error}")
            return ()
        finally:
            run.note_phase("collect", started, time.monotonic() - began)

    def _others_budget(self, run: NodeRun) -> float:
        """How long the leader waits for the workers' records, in seconds."""
        budgets = run.plan.budgets
        whole = budgets["stop"].seconds + budgets["collect"].seconds
        return min(whole, 5.0) if run.interrupts > 1 else whole

    def _conclude(self, run: NodeRun) -> int:
        """The leader's verdict from the records it has; for a run that nobody else looks at."""
        verdict = report.run(run.run_dir).verdict
        text = verdict.verdict if verdict.cause is None else f"{verdict.verdict}: {verdict.cause}"
        self.events.phase = "verdict"
        self.events.emit("verdict", text=text, verdict=verdict.verdict)
        return verdict.exit_code

    # Interrupts

    def _handle_signals(self) -> None:
        def handle(number: int, _frame: object) -> None:
            name = signal.Signals(number).name
            threading.Thread(
                target=self._interrupt, args=(f"interrupted by {name}",), daemon=True
            ).start()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, handle)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _interrupt(self, reason: str, kind: str = "interrupt") -> None:
        run = self.run
        if run is None:
            self._early_interrupts += 1
            self._early.set()
            return
        if run.ended.is_set():
            # What is waited for now are others; whoever interrupts again waits for nobody.
            self._told.set()
            if self.leader:
                self.leader.hurry()
            if self.link:
                self.link.hurry()
        run.interrupts += 1
        if run.cause is None:
            run.add_cause(
                run.cause_of(
                    kind, "interrupted", reason, hint="What was collected is in the run directory."
                )
            )

    def _watch_starter(self) -> None:
        """Ends the run when standard input closes; obeys the words that come over it."""
        descriptor = sys.stdin.fileno()
        while True:
            try:
                words = os.read(descriptor, 4096)
            except OSError:
                words = b""
            if not words:
                self._interrupt("the runner is gone", "runner")
                return
            for line in words.decode("utf-8", "replace").splitlines():
                self._obey(line)

    def _obey(self, line: str) -> None:
        """A word of the starter: ``stop``, or ``lost I HOW`` for a node program that ended."""
        word, _, rest = line.partition(" ")
        run = self.run
        if word == "stop":
            self._interrupt("interrupted by the runner")
        elif word == "lost" and run is None:
            self._early_words.append(line)
        elif word == "lost" and run is not None and run.cause is None:
            number, _, how = rest.partition(" ")
            if number.isdigit() and int(number) < len(run.plan.nodes):
                node = run.plan.nodes[int(number)]
                if self.leader:
                    self.leader.give_up(node.index)
                run.add_cause(
                    run.cause_of(
                        "lost",
                        "infra",
                        f"node {node.index} is lost: its program {how}",
                        node=node,
                        process="node",
                        hint=f"Look at {node.name}/node.log.",
                    )
                )
                self._told.set()


def _words(error: OSError) -> str:
    """What the system says of an error, without what asyncio wraps around it."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


# The command line


def _options(parser: argparse.ArgumentParser) -> None:
    add_start_arguments(parser)


def work(arguments: argparse.Namespace) -> int:
    """Run this node's share; the exit code is the verdict's."""
    start = start_of(arguments)
    door.keep_in(start.run_dir.node(start.index).path)
    return Program(start).main()


main = door.Verb("node", __doc__, _options, work)


if __name__ == "__main__":
    raise SystemExit(main())
