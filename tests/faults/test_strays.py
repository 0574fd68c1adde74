"""Whole runs whose engines leave strays of every kind, and files where temporary ones go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core.record.rundir import read_json
from steps.core.system import ancestry
from tests.core import strays
from tests.core.cases import ROOT
from tests.core.waiting import alive, eventually
from tests.faults.rehearse import command


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path, so that the run's temporary files go below it."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as text:
        yield Path(text)


class Run:
    """A rehearsal with strays."""

    def __init__(self, place: Path, *options: str) -> None:
        self.path = place / "run"
        self.roster, environment = strays.plant(place)
        self.temporary = place / "t"
        self.popen = subprocess.Popen(
            command("quickstart.yaml", self.path, *options),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> str:
        """What it said till its end; nothing of it is left."""
        text = self.popen.communicate(timeout=100)[0]
        assert len(strays.listed(self.roster)) >= 2 * len(strays.KINDS)
        assert strays.alive(self.roster) == [], text
        assert list(self.temporary.iterdir()) == []
        return text

    def warnings(self) -> str:
        lines = (self.path / "events.jsonl").read_text().splitlines()
        events = [event for event in map(json.loads, lines) if event["what"] == "warning"]
        return "\n".join(event["text"] for event in events)


def test_strays_do_not_outlive_a_passed_run_and_are_named(place: Path) -> None:
    run = Run(place, "--load-seconds", "1.5")
    text = run.end()
    assert run.popen.returncode == 0, text
    for index in (0, 1):
        left = read_json(run.path / f"node-{index}" / "record.json")["left"]
        assert any(name.startswith("VLLM::EngineCor (pid ") for name in left), left
    assert "had left their groups and were killed: " in run.warnings()
    assert "mn-" not in (run.path / "plan.json").read_text()


def test_strays_do_not_outlive_a_node_program_that_is_killed_with_its_guard(place: Path) -> None:
    run = Run(place, "--load-seconds", "6")
    table = run.path / "node-1" / "processes.json"
    eventually(lambda: len(strays.listed(run.roster)) > 60)
    eventually(table.exists)
    server = read_json(table)[0]["pid"]
    node = dict(ancestry.every())[server].parent
    guard = [pid for pid in ancestry.children(node) if _names_guard(pid)]
    assert guard
    for pid in (*guard, node):
        os.kill(pid, 9)
    text = run.end()
    assert run.popen.returncode == 3, text
    assert "processes were left and have been killed: " in run.warnings(), text


def test_a_step_run_alone_that_is_killed_leaves_nothing(place: Path) -> None:
    roster, environment = strays.plant(place, strays.SEEN)
    words = ["--case", str(ROOT / "configs" / "quickstart.yaml"), "--rehearse", "--run-dir"]
    step = subprocess.Popen(
        [sys.executable, "-m", "steps.serve", "--node-index", "0", *words, str(place / "run")],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = place / "run" / "node-0" / "processes.json"
    eventually(lambda: server.exists() and len(strays.listed(roster)) > 20)
    own = read_json(server)[0]["pid"]
    guard = next(pid for pid in ancestry.children(step.pid) if pid != own)
    before = strays.looks(guard)
    eventually(lambda: strays.looks(guard) >= before + 2)
    step.kill()
    step.wait()
    eventually(lambda: not ancestry.kin_of(own))
    eventually(lambda: not strays.alive(roster), 15)
    eventually(lambda: not list((place / "t").iterdir()))
    eventually(lambda: not alive(guard))  # else it writes while the place is removed


def _names_guard(pid: int) -> bool:
    """A forked guard has its owner's command line; a server has its own."""
    return b"steps.node" in Path(f"/proc/{pid}/cmdline").read_bytes()
