"""A run waits for what it is told of, and is not a moment late."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from steps import wait
from steps.core.node.http import Answer
from steps.core.node.noderun import NodeRun, RunEnded
from steps.core.node.rendezvous.inbox import Inbox
from steps.core.node.rendezvous.messages import State
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir
from tests.core.cases import ROOT, SPLIT, plan_of

#: No test waits so long, unless nobody stirs it.
LONG = 20.0


@pytest.fixture
def run(tmp_path: Path) -> NodeRun:
    return NodeRun(plan_of(SPLIT), 1, RunDir(tmp_path), EventLog(None, "run-1", 1))


def until(run: NodeRun, done: list[bool]) -> float:
    began = time.monotonic()
    run.until(lambda: bool(done), lambda: "it", every=LONG)
    return time.monotonic() - began


def test_who_brings_it_stirs_the_run(run: NodeRun) -> None:
    done: list[bool] = []

    def bring() -> None:
        done.append(True)
        run.ended.stir()

    threading.Timer(0.05, bring).start()
    assert until(run, done) < LONG / 2


def test_what_came_between_the_look_and_the_wait_is_seen(run: NodeRun) -> None:
    looks: list[bool] = []

    def done() -> bool:
        looks.append(True)
        if len(looks) == 1:
            run.ended.stir()  # now it is there, and this look did not see it
            return False
        return True

    began = time.monotonic()
    run.until(done, lambda: "it", every=LONG)
    assert time.monotonic() - began < LONG / 2


def test_the_end_cuts_every_wait(run: NodeRun) -> None:
    threading.Timer(0.05, run.ended.set).start()
    with pytest.raises(RunEnded):
        until(run, [])


def test_the_leader_s_word_is_heard_at_once(run: NodeRun) -> None:
    inbox = Inbox()
    inbox.attach(run)
    threading.Timer(0.05, lambda: inbox.on_state(State(seq=3, go=True))).start()
    began = time.monotonic()
    run.until(lambda: run.state.go, lambda: "the word", every=LONG)
    assert time.monotonic() - began < LONG / 2


def test_the_longer_a_server_loads_the_less_often_it_is_asked(run: NodeRun, monkeypatch) -> None:
    waited: list[float] = []
    ended = SimpleNamespace(is_set=lambda: len(waited) == 3, wait=waited.append)
    clock = iter((1.0, 10.0, 1000.0))
    monkeypatch.setattr(run, "ended", ended)
    monkeypatch.setattr(wait, "look", lambda _: Answer(False, "refused"))
    monkeypatch.setattr(wait.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(run, "progress", lambda: None)
    node, process = next(iter(run.plan.probes()))
    wait._probe(run, wait._Watch(node, process), 0.0)
    assert waited == [wait.PROBE_LEAST, pytest.approx(0.5), wait.PROBE_MOST]


def test_a_node_program_loads_at_its_start_what_it_needs_at_its_start() -> None:
    """What reads cases, leads or asks over HTTP is loaded where that is done."""
    ask = "import sys, steps.node; print(*sys.modules)"
    argv = [sys.executable, "-c", ask]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    late = {"asyncio", "cerberus", "matplotlib", "psutil", "requests", "steps.bench", "yaml"}
    assert "steps.node" in found.stdout.split(), found.stderr
    assert not late & set(found.stdout.split())
