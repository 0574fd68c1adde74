"""A step run alone: what the command lines of all steps share.

Enters: a plan and a node, as the command line names them. Leaves: the exit code, and
messages that say what to do. Touches: what the step touches.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from steps.core import door, foreign, settings
from steps.core.errors import Exit
from steps.core.node.noderun import NodeRun, RunEnded, StepFailed, marker
from steps.core.node.wishes import add_plan_arguments, index_in, plan_of, wishes_of
from steps.core.plan.plan import to_json
from steps.core.record.events import Event, EventLog, console_line
from steps.core.record.rundir import RunDir, write_text
from steps.core.record.verdict import CLASSES
from steps.core.redaction import Redactor
from steps.core.system.guard import Guard
from steps.core.system.tail import Tail


def printer(stream: object = None) -> Callable[[Event], None]:
    """A listener that prints events as plain lines."""
    started = time.time()

    def show(event: Event) -> None:
        line = console_line(event, started)
        if line:
            print(line, flush=True)

    return show


#: The phases of steps that have another name than theirs.
PHASE_OF = {"serve": "load", "proxy": "load", "wait": "load", "prove": "proof"}


def step(name: str, doc: str | None, body: Callable[[NodeRun], object], hold: bool) -> door.Verb:
    """The ``main`` of a step run alone.

    Args:
        hold: the step leaves processes running; hold them until Ctrl-C or until
            one of them ends.
    """

    return door.Verb(
        name, doc, add_plan_arguments, partial(_alone, name=name, body=body, hold=hold)
    )


def _alone(
    arguments: argparse.Namespace, name: str, body: Callable[[NodeRun], object], hold: bool
) -> int:
    asked = wishes_of(arguments)
    plan, path = plan_of(asked)
    index = index_in(plan, asked.node_index)
    run_dir = RunDir(path).make()
    door.keep_in(run_dir.path)
    if not run_dir.plan.exists():
        write_text(run_dir.plan, to_json(plan))
    redactor = Redactor.of_environment(settings.inherited())
    events = EventLog(run_dir.node(index).events, plan.run, index, redactor, [printer()])
    guard = Guard(marker(run_dir, index))
    run = NodeRun(plan, index, run_dir, events, redactor, guard=guard)
    stop = threading.Event()

    def interrupt(number: int, _frame: object) -> None:
        run.interrupts += 1
        stop.set()
        run.ended.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)

    def show(name: str, line: str) -> None:
        print(foreign.line(f"[{name}] {redactor.text(line)}"))

    tail = Tail(run.dir.path, show, "*.log")
    if asked.verbose:
        tail.start()
    try:
        with run.phase(PHASE_OF.get(name, name)):
            body(run)
        while hold and run.supervisor.running and not run.ended.wait(0.5):
            pass
    except StepFailed as failure:
        run.add_cause(failure.cause)
    except RunEnded:
        pass
    finally:
        names = [running.process.name for running in run.supervisor.running]
        run.supervisor.stop(reversed(names), run.hurry)
        run.supervisor.kill_strays()
        guard.close()
        if asked.verbose:
            tail.close()
        events.close()
    causes = [told.cause for told in run.own_causes()]
    if causes:
        print(foreign.block(f"error: {causes[0].reason}"), file=sys.stderr)
        for line in causes[0].evidence:
            print(f"    | {foreign.line(line)}", file=sys.stderr)
        if causes[0].hint:
            print(foreign.block(f"    {causes[0].hint}"), file=sys.stderr)
        return int(CLASSES[causes[0].verdict])
    return int(Exit.INTERRUPTED) if stop.is_set() and not hold else int(Exit.PASS)
