"""Starting a node's processes of one kind.

Enters: a :class:`NodeRun` and a kind. Leaves: running processes and their
events. Touches: starts processes; writes the files the plan gives them.
"""

from __future__ import annotations

from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.record.rundir import write_text


def start(run: NodeRun, kind: str) -> None:
    """Start this node's processes of one kind.

    Raises:
        StepFailed: a program is not there or cannot be executed.
        RunEnded: the run is over.
    """
    for name, content in run.me.files.items():
        write_text(run.dir.path / name, content)
    for process in run.me.processes:
        if process.kind != kind:
            continue
        run.check_end()
        try:
            running = run.supervisor.start(process)
        except OSError as error:
            raise StepFailed(
                run.cause_of(
                    "exit",
                    "infra",
                    f"cannot be started: {error.strerror or error}",
                    process=process.name,
                    hint=f"Is {process.argv[0]!r} installed on this node, and on PATH?",
                )
            ) from None
        run.events.emit(
            "started",
            process=process.name,
            pid=running.pid,
            argv=list(process.argv),
            log=f"{run.me.name}/{process.log}",
        )
