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
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps import bench, collect, preflight, prove, proxy, report, serve, wait
from steps.core import VERSION, cli, settings
from steps.core.case import Case
from steps.core.errors import Exit, InfraError, MultinodeError, UsageError
from steps.core.events import Event, EventLog
from steps.core.guard import Guard
from steps.core.noderun import NodeRun, RunEnded, StepFailed
from steps.core.plan import LEADER, Plan, to_json
from steps.core.records import cause_from, to_dict
from steps.core.redaction import Redactor
from steps.core.rendezvous import ROLL_WAIT, Leader, Link, Member
from steps.core.rundir import RunDir, write_json, write_text
from steps.core.verdict import CLASSES

HANDOVER_SECONDS = 20.0
TOLD_WAIT = ROLL_WAIT + 3.0


@dataclass
class Start:
    """How this node was started.

    Attributes:
        plan: the whole plan, when the starter made it; else ``case`` and ``leader`` are given.
        bound: the run ends when standard input closes (its starter is gone).
        hold: stay after the end, for files to be fetched, this many seconds.
    """

    index: int
    token: str
    run_dir: RunDir
    plan: Plan | None = None
    case: Case | None = None
    hosts: tuple[str, ...] = ()
    arguments: argparse.Namespace | None = None
    bound: bool = False
    hold: float = 0.0
    listeners: list[Callable[[Event], None]] = field(default_factory=list)


class Program:
    """One node's program, from start to record."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.redactor = Redactor.of_environment(settings.inherited(), [start.token])
        run_id = start.plan.run if start.plan else ""
        node_dir = start.run_dir.node(start.index).make()
        self.events = EventLog(node_dir.events, run_id, start.index, self.redactor, start.listeners)
        self.run: NodeRun | None = None
        self.leader: Leader | None = None
        self.link: Link | None = None
        self.guard: Guard | None = None
        self._told = threading.Event()
        self._early = threading.Event()
        self._early_interrupts = 0
        self._refused = ""
        self._state: dict[str, Any] = {}

    # The whole

    def main(self) -> int:
        """Run; the exit code is the verdict's, as far as this node knows it."""
        self._handle_signals()
        try:
            self._open_guard()
            plan = self._join()
            run = self._make_run(plan)
            self._carry_out(run)
            return self._finish(run)
        except MultinodeError as error:
            self.events.emit("warning", text=str(error))
            print(f"error: {error}", file=sys.stderr, flush=True)
            return int(error.exit_code)
        except RunEnded:
            return int(Exit.INTERRUPTED)
        finally:
            if self.link:
                self.link.close()
            if self.leader:
                self.leader.close()
            if self.guard:
                self.guard.close()
            self.events.close()

    def _open_guard(self) -> None:
        marker = self.start.plan.run if self.start.plan else self._local_run_id()
        self.guard = Guard(f"{marker}:{self.start.index}")

    def _local_run_id(self) -> str:
        return self.start.run_dir.path.name

    # Joining

    def _join(self) -> Plan:
        """Meet the other nodes; the leader's plan is everybody's."""
        if self.start.plan is not None:
            return self.start.plan
        raise InfraError("joining without a plan is not built yet")

    def _make_run(self, plan: Plan) -> NodeRun:
        self.events.run = plan.run
        run = NodeRun(plan, self.start.index, self.start.run_dir, self.events, self.redactor)
        self.run = run
        run.interrupts = self._early_interrupts
        run.supervisor = cli.supervisor_of(run, self.guard)
        if self._early.is_set():
            self._interrupt("interrupted before the start")
        for note in plan.notes if run.is_leader else ():
            self.events.emit("note", text=note)
        return run

    def _carry_out(self, run: NodeRun) -> None:
        """Every phase; whatever goes wrong becomes a cause."""
        if self.start.bound:
            threading.Thread(target=self._watch_starter, name="starter", daemon=True).start()
        try:
            with run.phase("join"):
                self._meet(run)
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
            write_text(run.dir.path / "harness-error.log", self.redactor.text(text))
            run.add_cause(
                run.cause_of(
                    "internal",
                    "infra",
                    f"the harness itself failed: {type(error).__name__}: {error}",
                    log=f"{run.me.name}/harness-error.log",
                    hint="Please report it with that file.",
                )
            )

    def _meet(self, run: NodeRun) -> None:
        """Open the rendezvous and wait until everybody is there."""
        plan = run.plan
        control = plan.nodes[LEADER].address, plan.cluster.control_port
        hello = {"plan": plan.fingerprint(), "harness": VERSION}
        if run.is_leader:
            self.leader = Leader(
                *control,
                self.start.token,
                len(plan.nodes),
                refuse=lambda node, theirs: _differs(hello, theirs),
                on_cause=lambda cause: self._heard(run),
                on_join=self._on_join,
                on_record=self._on_record,
            )
            try:
                self.leader.start()
            except OSError as error:
                raise StepFailed(
                    run.cause_of(
                        "preflight",
                        "infra",
                        f"the control port {control[1]} on {control[0]} cannot be opened: "
                        f"{error.strerror or error}",
                        hint="Is another run going on? MULTINODE_CONTROL_PORT chooses another.",
                    )
                ) from None
            run.leader = self.leader
            leader = self.leader
            expected = set(range(1, len(plan.nodes)))

            def missing() -> list[int]:
                return sorted(expected - set(leader.joined()))

            run.until(
                lambda: not missing(),
                lambda: "node " + ", ".join(f"{i} ({plan.nodes[i].address})" for i in missing()),
                blame=lambda: (plan.nodes[missing()[0]], "node"),
            )
            return
        self.link = Link(
            *control,
            self.start.token,
            run.me.index,
            run.me.address,
            hello,
            look=run.look,
            on_state=lambda state: self._on_state(run, state),
            on_lost=lambda why: self._on_lost(run, why),
            on_refused=lambda why: self._on_refused(run, why),
        )
        run.link = self.link
        self.link.start()
        run.until(
            self.link.joined.is_set,
            lambda: f"the leader at {control[0]}:{control[1]}",
            blame=lambda: (plan.nodes[LEADER], "node"),
        )

    def _on_join(self, member: Member) -> None:
        self.events.emit("joined", member=member.node, address=member.address)

    def _on_record(self, node: int, record: Any) -> None:
        """A worker's record, kept beside our own where its own directory is elsewhere."""
        place = self.start.run_dir.node(node).make()
        if record and not place.record.exists():
            with contextlib.suppress(OSError, TypeError):
                write_json(place.record, record)

    def _heard(self, run: NodeRun) -> None:
        """A worker reported a cause or was lost: the run is over, the main thread decides."""
        run.ended.set()

    def _on_state(self, run: NodeRun, state: dict[str, Any]) -> None:
        run.state = state
        if state.get("ended") is not None:
            run.cause = cause_from(state["ended"].get("cause"))
            self._told.set()
            run.ended.set()

    def _on_lost(self, run: NodeRun, why: str) -> None:
        leader = run.plan.nodes[LEADER]
        run.add_cause(
            run.cause_of(
                "lost",
                "infra",
                f"the leader is lost: {why}",
                node=leader,
                hint="Look at the leader's node and logs.",
            )
        )
        self._told.set()

    def _on_refused(self, run: NodeRun, why: str) -> None:
        run.add_cause(run.cause_of("config", "config", f"the leader refused this node: {why}"))
        self._told.set()

    # Leading and following

    def _lead(self, run: NodeRun) -> None:
        leader = self.leader
        assert leader is not None
        with run.phase("preflight"):
            preflight.run(run)
            self._barrier(run, leader, "preflight-done")
        if run.me.packages and not run.plan.rehearsed:
            with run.phase("install"):
                install(run)
                self._barrier(run, leader, "install-done")
        if run.plan.nodes[LEADER].processes[0].kind == "pool":
            with run.phase("pool"):
                serve.pool(run)
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

    def _barrier(self, run: NodeRun, leader: Leader, phase: str) -> None:
        """Wait until every worker says it has passed ``phase``."""

        def behind() -> list[int]:
            return [m.node for m in leader.members.values() if m.phase != phase]

        run.until(
            lambda: not behind(),
            lambda: f"{phase.removesuffix('-done')} on node {', '.join(map(str, behind()))}",
            every=0.02,
            blame=lambda: (run.plan.nodes[behind()[0]], "node"),
        )

    def _follow(self, run: NodeRun) -> None:
        link = self.link
        assert link is not None
        with run.phase("preflight"):
            preflight.run(run)
        if run.me.packages and not run.plan.rehearsed:
            run.events.phase = "preflight-done"
            link.report()
            with run.phase("install"):
                install(run)
            run.events.phase = "install-done"
        else:
            run.events.phase = "preflight-done"
        link.report()
        run.until(lambda: bool(run.state.get("go")), lambda: "the leader's word to start")
        with run.phase("load"):
            serve.servers(run)
        with run.phase("hold"):
            run.until(self._told.is_set, lambda: "the end of the run", every=0.5)

    # The end

    def _finish(self, run: NodeRun) -> int:
        """Decide or hear the first cause, stop, collect, record, hand over."""
        if run.is_leader:
            if self.leader:
                run.decide()
            else:
                causes = run.own_causes()
                run.cause = cause_from(causes[0]) if causes else None
                run.ended.set()
        elif run.own_causes() or not self._told.is_set():
            self._told.wait(TOLD_WAIT)
            if run.cause is None and not run.state.get("ended"):
                causes = run.own_causes()
                run.cause = cause_from(causes[0]) if causes else None
        cause = run.cause
        if cause and not run.is_leader:
            self.events.emit("cause", text=str(cause), verdict=cause.verdict)
        self._stop(run)
        artifacts = self._collect(run)
        record = run.record(artifacts)
        content = run.redactor.value(to_dict(record))
        write_json(run.dir.record, content)
        code = int(CLASSES[cause.verdict]) if cause else int(Exit.PASS)
        if self.link:
            self.link.done(content, HANDOVER_SECONDS)
        elif self.leader:
            self.leader.wait(self.leader.all_done, self._others_budget(run))
            code = self._conclude(run)
        return code

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
        strays = supervisor.kill_strays()
        if strays:
            run.left += [f"pid {pid}" for pid in strays]
            self.events.emit(
                "warning", text=f"{len(strays)} processes had left their groups and were killed"
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
        write_text(run.run_dir.plan, to_json(run.plan)) if not run.run_dir.plan.exists() else None
        verdict = report.run(run.run_dir)
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
        if word == "stop":
            self._interrupt("interrupted by the runner")
        elif word == "lost" and self.run is not None and self.run.cause is None:
            number, _, how = rest.partition(" ")
            run = self.run
            if number.isdigit() and int(number) < len(run.plan.nodes):
                node = run.plan.nodes[int(number)]
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


def install(run: NodeRun) -> None:
    """Install ``special_dependencies`` into the servers' environment.

    Raises:
        StepFailed: pip fails, class infra.
    """
    import subprocess

    assert run.supervisor is not None
    servers = [process for process in run.me.processes if process.kind == "server"]
    log = run.dir.path / "install.log"
    argv = [run.plan.cluster.python, "-m", "pip", "install", *run.me.packages]
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv,
            env=run.supervisor.environment(servers[0]),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            run.until(lambda: process.poll() is not None, lambda: f"pip install {run.me.packages}")
        finally:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        from steps.core import evidence

        raise StepFailed(
            run.cause_of(
                "install",
                "infra",
                f"pip install {' '.join(run.me.packages)} failed with code {process.returncode}",
                evidence=evidence.of_log(log).lines,
                log=f"{run.me.name}/install.log",
                hint="Check the package names and versions in special_dependencies, and the index.",
            )
        )


def _differs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Why a node may not join, or nothing."""
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            return (
                f"its {key} is {str(theirs.get(key))[:16]}, the leader's is "
                f"{str(ours.get(key))[:16]}"
            )
    return ""


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m steps.node --plan FILE --node-index I``, or with ``--case`` by hand."""
    parser = argparse.ArgumentParser(
        prog="node", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_plan_arguments(parser)
    more = parser.add_argument_group("how it was started")
    more.add_argument("--token-file", help="the run's token; default: MULTINODE_TOKEN")
    more.add_argument("--bound", action="store_true", help="end the run when stdin closes")
    more.add_argument(
        "--output", choices=("text", "events"), default="text", help="lines for people, or JSON"
    )
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: Program(_start(arguments)).main())


def _start(arguments: argparse.Namespace) -> Start:
    """What the command line means.

    Raises:
        UsageError, CaseError: it means nothing.
    """
    show = cli.printer() if arguments.output == "text" else _print_json
    plan, path = cli.plan_of(arguments)
    index = arguments.node_index or 0
    if not 0 <= index < len(plan.nodes):
        raise UsageError(f"--node-index: found {index}, expected 0 to {len(plan.nodes) - 1}")
    run_dir = RunDir(path).make()
    if not run_dir.plan.exists():
        write_text(run_dir.plan, to_json(plan))
    token = settings.read().token or secrets.token_hex(16)
    if arguments.token_file:
        try:
            token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UsageError(f"--token-file {arguments.token_file}: {error.strerror}") from None
    return Start(
        index=index,
        token=token,
        run_dir=run_dir,
        plan=plan,
        bound=arguments.bound,
        listeners=[show],
    )


def _print_json(event: Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(event.to_json(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
