"""The end of a node's run: the first cause, and everything of the node stopped.

Enters: a run that is over, whatever the reason. Leaves: its cause; no process of ours. Touches:
the rendezvous, the node's processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from steps.core.node.noderun import NodeRun
from steps.core.node.rendezvous.messages import End, Told
from steps.core.node.rendezvous.pace import ROLL_WAIT
from steps.core.plan.plan import LEADER
from steps.core.record.records import Cause
from steps.core.record.verdict import BLAME_SECONDS, first_cause

if TYPE_CHECKING:
    from steps.core.node.rendezvous.leader import Leader

TOLD_WAIT = ROLL_WAIT + 3.0
#: How many of many a line names.
NAMED = 10


def decide(run: NodeRun, leader: Leader) -> Cause | None:
    """Leader: call the roll, find the first cause, tell everybody. None is a clean end."""
    found = _dated(run, leader.roll_call() if len(run.plan.nodes) > 1 else ())

    def culprit_known() -> bool:
        # Asked under the rendezvous' lock, so it must not wait for anything.
        told = [*run.told_causes(), *leader.reported()]
        return not all(entry.cause.consequence for entry in told)

    if found and all(cause.consequence for cause in found):
        leader.wait(culprit_known, BLAME_SECONDS)
        found = _dated(run, leader.reported())
    first = first_cause(found)
    run.all_causes = tuple(sorted(found, key=lambda c: c.at))
    run.cause = first
    run.ended.set()
    if first is not None:
        run.events.emit("cause", text=str(first), verdict=first.verdict)
    leader.tell(phase="stop", ended=End(first))
    return first


def _dated(run: NodeRun, reported: Iterable[Told]) -> list[Cause]:
    """These causes and our own, by the leader's clock."""
    own = run.own_causes()
    now, wall = time.monotonic(), time.time()
    return [
        replace(
            told.cause,
            at=round(wall - (now - told.mono), 4),
            seconds=round(told.mono - run.began, 3),
        )
        for told in (*own, *reported)
    ]


def hear(run: NodeRun, told: threading.Event) -> None:
    """Worker: the first cause as the leader tells it; without a leader our own first one counts."""
    if run.joined:  # else nobody is there to tell us anything
        told.wait(TOLD_WAIT)
    if run.cause is None and run.state.ended is None:
        own = run.own_causes()
        run.cause = (
            own[0].cause
            if own
            else run.cause_of(
                "lost",
                "no-verdict",
                "the leader never said how the run ended",
                node=run.plan.nodes[LEADER],
                process="node",
                hint="Look at the leader's node and logs.",
            )
        )
    if run.cause:
        run.events.emit("cause", text=str(run.cause), verdict=run.cause.verdict)


def stop(run: NodeRun) -> None:
    """Stop everything of this node, the proxy first, the KV pool when all others have ended."""
    run.events.phase = "stop"
    began, started = time.monotonic(), time.time()
    supervisor = run.supervisor
    if run.cause and run.cause.verdict == "hang" and not supervisor.dump_stacks():
        run.events.emit("note", text="py-spy is not installed: no stacks of hanging processes")
    for kinds in (("proxy", "server"), ("pool",)):
        names = [r.process.name for r in supervisor.running if r.process.kind in kinds]
        for name, seconds in supervisor.stop(names, run.hurry).items():
            run.events.emit("stopped", process=name, seconds=seconds)
    strays, alive = supervisor.kill_strays()
    if strays:
        run.left += map(str, strays)
        told = "; still there: " + ", ".join(map(str, alive)) if alive else ""
        run.events.emit(
            "warning",
            text=f"{len(strays)} processes had left their groups and were killed: "
            + ", ".join(map(str, strays[:NAMED]))
            + (", ..." if len(strays) > NAMED else "")
            + told,
        )
    left = run.guard.scratch.left_in_memory() if run.guard else []
    if left:
        run.events.emit(
            "warning",
            text=f"left in /dev/shm during this run, used by nobody: {', '.join(left[:NAMED])}"
            "; if it is yours, remove it",
        )
    run.note_phase("stop", started, time.monotonic() - began)
