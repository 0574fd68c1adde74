"""Tools: programs that a step runs to their end, such as a benchmark's client.

Enters: a command, a directory of its own. Leaves: how it ended, and its log
there. Touches: starts one process group, and ends all of it before it returns,
whatever happened: a client killed alone leaves orphans.

A tool is in the node's process table like a server, but its end is not the
fleet's: the step that started it judges.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from steps.bench_drivers import Job, Measurement
from steps.core.node import http
from steps.core.node.noderun import NodeRun
from steps.core.node.supervisor import ExitStatus, Running
from steps.core.plan.plan import TOOL, NodePlan, Process
from steps.core.record import evidence
from steps.core.record.records import Cause
from steps.core.system.guard import marked

MARKER = "MULTINODE_TOOL"
#: How long the endpoint may take over one short answer before it is called broken.
ANSWER_SECONDS, ANSWER_SECONDS_REHEARSED = 60.0, 5.0
#: The same when a budget is used up already, and only the culprit is looked for.
BLAME_SECONDS = 10.0


def run_tool(
    run: NodeRun,
    name: str,
    argv: tuple[str, ...],
    place: Path,
    *,
    env: Mapping[str, str] | None = None,
    what: Callable[[], str],
    blame: Callable[[], tuple[NodePlan, str]] | None = None,
    progress: Callable[[], object] | None = None,
    tell: Callable[[], None] | None = None,
) -> ExitStatus:
    """Run a program to its end.

    Args:
        name: in the process table, and of its log.
        place: its working directory, and where its log is.
        what, blame, tell: as :meth:`NodeRun.until` takes them.
        progress: asked when the log has grown; another value than before is progress.
            Without it any growth is.

    Raises:
        OSError: it cannot be started.
        RunEnded: the run is over.
        StepFailed: the phase's budget or its stall limit is used up.
    """
    marker = str(place.resolve())
    process = Process(name, TOOL, argv, env={**(env or {}), MARKER: marker}, grace=0.0)
    running = run.supervisor.start(process, place)
    run.events.emit(
        "started",
        process=name,
        pid=running.pid,
        argv=list(argv),
        log=os.path.relpath(running.log, run.run_dir.path),
    )
    size = 0
    mark: object = None

    def ended() -> bool:
        nonlocal size, mark
        with contextlib.suppress(OSError):
            grown = running.log.stat().st_size
            if grown != size:
                size, before, mark = grown, mark, progress() if progress else grown
                if mark != before:
                    run.progress()
        return running.ended.is_set()

    try:
        run.until(ended, what, blame=blame, tell=tell)
    finally:
        _end(run, running, marker)
    assert running.exit is not None
    return running.exit


def _end(run: NodeRun, running: Running, marker: str) -> None:
    """KILL its group, and what of it has left the group."""
    run.supervisor.stop([running.process.name], lambda: 0.0)
    for pid in marked(marker, name=MARKER):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def ask(run: NodeRun, job: Job, most: float = ANSWER_SECONDS) -> http.Reply:
    """One short question to the endpoint."""
    limit = min(most, ANSWER_SECONDS_REHEARSED if run.plan.rehearsed else ANSWER_SECONDS)
    return http.ask(job.endpoint.access, job.endpoint.model, "What is 2 + 3?", 16, run.ended, limit)


def blame(run: NodeRun, job: Job, process: str) -> tuple[NodePlan, str]:
    """Who hangs: the endpoint, if it does not answer a single question, else the client."""
    if ask(run, job, BLAME_SECONDS).text.strip():
        return run.me, process
    return run.me, "proxy" if job.endpoint.kind == "proxy" else "server"


def killed(run: NodeRun, status: ExitStatus, log: Path, process: str, client: str) -> Cause:
    """The cause that a signal ended the client."""
    return run.cause_of(
        "exit",
        "infra",
        f"the benchmark client {client} {status}",
        process=process,
        signal=status.signal,
        evidence=evidence.of_log(log).lines,
        log=str(log.relative_to(run.run_dir.path.resolve())),
        hint="No server had ended; look at the leader's memory and at what else runs there.",
    )


def judge(
    run: NodeRun, job: Job, found: Measurement, status: ExitStatus, log: Path, client: str
) -> Measurement:
    """Whose fault it is when a client brings no result: the endpoint's, or its own."""
    if not any(check.status == "fail" for check in found.checks):
        return found
    if any(found.requests.get(kind) for kind in ("failed", "empty", "truncated")):
        return found
    reply = ask(run, job)
    run.check_end()
    said = "; ".join(evidence.of_log(log).lines[-1:]) or evidence.last_line(log)
    ended = f"{client} {status}" + (f", saying: {said}" if said else "")
    if reply.text.strip():
        state, fault = f"the endpoint still answers, so {client} itself failed", "infra"
    else:
        state, fault = f"the endpoint does not answer: {reply.error}", "functional"
    if found.metrics:
        return replace(found, fault=fault)
    return replace(found, error=f"no result: {ended}; {state}", fault=fault)
