"""The leader decides: who only blames somebody else waits a moment for the other to be heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps.core.node.ending import decide
from steps.core.node.noderun import NodeRun
from steps.core.node.rendezvous.messages import Told
from steps.core.record.events import EventLog
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir
from tests.core.cases import SPLIT, plan_of


class Rendezvous:
    """A leader's ledger to which a worker's cause comes late, or never."""

    def __init__(self, late: Told | None) -> None:
        self.told: list[Told] = []
        self.late = late
        self.waited = 0

    def roll_call(self) -> list[Told]:
        return []

    def reported(self) -> list[Told]:
        return self.told

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        self.waited += 1
        assert not until()
        if self.late:
            self.told.append(self.late)
        return until()

    def tell(self, **changes: Any) -> None:
        self.state = changes


def led(tmp_path: Path, late: Told | None) -> tuple[NodeRun, Rendezvous]:
    run = NodeRun(plan_of(SPLIT), 0, RunDir(tmp_path), EventLog(None, "run-1", 0))
    rendezvous = Rendezvous(late)
    return run, rendezvous


def died(node: int, *, consequence: bool = False) -> Cause:
    return Cause("exit", "crash", "exited with code 1", node=node, consequence=consequence)


def test_a_cause_that_comes_a_moment_late_is_still_the_first(tmp_path: Path) -> None:
    late = Cause("exit", "crash", "was killed", node=1)
    run, rendezvous = led(tmp_path, Told(late, time.monotonic()))
    run.add_cause(died(0, consequence=True))
    first = decide(run, rendezvous)  # type: ignore[arg-type]
    assert first is not None
    assert (first.node, first.reason) == (1, "was killed")
    assert len(run.all_causes) == 2
    assert rendezvous.state["ended"].cause.node == 1


def test_who_blames_another_is_the_cause_when_nobody_else_died(tmp_path: Path) -> None:
    run, rendezvous = led(tmp_path, None)
    run.add_cause(died(0, consequence=True))
    first = decide(run, rendezvous)  # type: ignore[arg-type]
    assert first is not None
    assert (first.node, rendezvous.waited) == (0, 1)


@pytest.mark.parametrize("failed", [True, False])
def test_nobody_waits_without_reason(tmp_path: Path, failed: bool) -> None:
    run, rendezvous = led(tmp_path, None)
    if failed:
        run.add_cause(died(0))
    assert (decide(run, rendezvous) is not None) == failed  # type: ignore[arg-type]
    assert rendezvous.waited == 0
