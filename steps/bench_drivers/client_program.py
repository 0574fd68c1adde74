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
from pathlib import Path

from steps.core.node.noderun import NodeRun
from steps.core.node.supervisor import ExitStatus, Running
from steps.core.plan.plan import TOOL, NodePlan, Process
from steps.core.system.guard import marked

MARKER = "MULTINODE_TOOL"


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
