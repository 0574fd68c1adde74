"""Interrupts: whoever is told to stop, everything stops, is collected and recorded."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steps.core.system.guard import marked
from tests.faults.rehearse import ROOT, Outcome, command, environment, left_of, undrawn

NODES = (0, 1)


class Going:
    """A rehearsal that goes on while the test does something to it."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.path = tmp_path / "run"
        self.log = tmp_path / "output.txt"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                command("quickstart.yaml", self.path, *options),
                cwd=ROOT,
                env=undrawn(environment(tmp_path), tmp_path),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, text: str, seconds: float = 40) -> None:
        """Wait until the console shows ``text``."""
        _wait(lambda: text in self.log.read_text(), seconds, f"{text!r} in {self.log}")

    def serving(self) -> None:
        """Wait until both servers are started."""
        logs = [self.path / f"node-{index}" / "server.log" for index in NODES]
        _wait(lambda: all(log.exists() for log in logs), 40, "both servers")

    def end(self, seconds: float = 40) -> Outcome:
        """Wait for the end."""
        code = self.popen.wait(seconds)
        return Outcome(code, self.log.read_text(), self.path)

    def kill(self) -> None:
        """Leave nothing behind, whatever the test found."""
        with contextlib.suppress(OSError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for index in NODES:
            for pid in marked(f"{self.path.resolve()}:{index}"):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Going]]:
    """Starts rehearsals that end with the test."""
    going: list[Going] = []

    def begin(*options: str) -> Going:
        going.append(Going(tmp_path, *options))
        return going[-1]

    yield begin
    for entry in going:
        entry.kill()


def _wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_runner_is_told_to_stop(
    start: Callable[..., Going], tmp_path: Path, number: signal.Signals
) -> None:
    going = start("--load-seconds", "20")
    going.serving()
    going.popen.send_signal(number)
    outcome = going.end()
    assert (outcome.code, outcome.verdict["verdict"]) == (130, "interrupted"), outcome.output
    assert outcome.verdict["cause"]["reason"] == f"interrupted by {number.name}"
    for index in NODES:
        assert (outcome.path / f"node-{index}" / "record.json").exists()
        assert (outcome.path / f"node-{index}" / "server.log").exists()
    assert left_of(outcome, tmp_path) == []


def test_a_node_program_is_told_to_stop(start: Callable[..., Going], tmp_path: Path) -> None:
    going = start("--load-seconds", "20")
    going.until("load ...")
    for pid in _programs(going, 1):
        # A child between fork and exec has the program's command line, and is gone at once.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    outcome = going.end()
    assert (outcome.code, outcome.verdict["verdict"]) == (130, "interrupted"), outcome.output
    assert outcome.verdict["cause"]["node"] == 1
    assert left_of(outcome, tmp_path) == []


@pytest.mark.timing
def test_a_second_interrupt_shortens_the_graces(
    start: Callable[..., Going], tmp_path: Path
) -> None:
    going = start("--fault", "ignore-term@*")
    going.until("bench ...")
    began = time.monotonic()
    for _ in range(3):
        going.popen.send_signal(signal.SIGINT)
        time.sleep(1.0)
    outcome = going.end()
    assert outcome.code == 130, outcome.output
    assert time.monotonic() - began < 15
    assert left_of(outcome, tmp_path) == []


def test_a_killed_runner_leaves_nodes_that_stop_themselves(
    start: Callable[..., Going], tmp_path: Path
) -> None:
    going = start("--load-seconds", "20")
    going.until("load ...")
    going.popen.kill()
    going.popen.wait()
    records = [going.path / f"node-{index}" / "record.json" for index in NODES]
    _wait(lambda: all(record.exists() for record in records), 20, "both records")
    outcome = Outcome(-9, "", going.path)
    _wait((going.path / "verdict.json").exists, 20, "the leader's verdict")
    assert outcome.verdict["verdict"] == "interrupted"
    (going.path / ".token").unlink()
    _wait(lambda: left_of(outcome, tmp_path) == [], 10, "everything to be gone")


def _programs(going: Going, index: int) -> list[int]:
    """The pid of a node program, by its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"steps.node" in words and str(going.path.resolve()).encode() in words:
                at = words.index(b"--node-index")
                if words[at + 1] == str(index).encode():
                    found.append(int(entry.name))
    return found
