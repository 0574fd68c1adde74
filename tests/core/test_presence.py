"""A silent program of this machine: does it wait for a core?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core import presence
from tests.core.waiting import eventually

TELL = "from steps.core import presence; print(presence.here(), flush=True); "

if not Path("/proc/self/stat").exists():
    pytest.skip("no /proc here", allow_module_level=True)


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that does what the test says, and where it is."""
    words = [sys.executable, "-c", TELL + request.param]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        yield started, started.stdout.readline().strip()
        started.kill()


def waits(where: str) -> bool:
    return presence.waits_for_a_core(where, presence.here())


SPIN = "exec('while True: pass')"
SLEEP = "import time; time.sleep(600)"
#: One thread is busy; the others, the first too, sleep.
THREAD = f"import threading; threading.Thread(target=lambda: {SPIN}).start(); {SLEEP}"


@pytest.mark.parametrize("program", [SPIN, THREAD], indirect=True)
def test_a_program_that_wants_to_run(program: tuple[subprocess.Popen[str], str]) -> None:
    eventually(lambda: waits(program[1]))
    assert all(waits(program[1]) for _ in range(20))


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_a_stopped_program_does_not_want_to(program: tuple[subprocess.Popen[str], str]) -> None:
    program[0].send_signal(signal.SIGSTOP)
    eventually(lambda: not waits(program[1]))


@pytest.mark.parametrize("program", [SLEEP], indirect=True)
def test_a_program_that_waits_for_something_else(
    program: tuple[subprocess.Popen[str], str],
) -> None:
    eventually(lambda: not any(waits(program[1]) for _ in range(5)))


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_a_dead_program(program: tuple[subprocess.Popen[str], str]) -> None:
    program[0].kill()
    program[0].wait()
    assert not waits(program[1])


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_another_program_of_the_same_number_or_elsewhere(
    program: tuple[subprocess.Popen[str], str],
) -> None:
    boot, space, number, start = program[1].rsplit(" ", 3)
    eventually(lambda: waits(program[1]))
    for other in (
        f"{boot} {space} {number} {int(start) + 1}",
        f"elsewhere {space} {number} {start}",
        f"{boot} pid:[1] {number} {start}",
        f"{boot} {space} ../../etc {start}",
        "",
        "nonsense",
    ):
        assert not waits(other)


def test_nothing_is_known_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = presence.here()
    assert here.split()[2] == str(os.getpid())
    monkeypatch.setattr(presence, "PROC", tmp_path)
    assert presence.here() == ""
    assert not waits(here)
