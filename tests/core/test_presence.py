"""A silent program of this machine: does it wait for a core?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from steps.core.system import proc
from tests.core.waiting import eventually

TELL = "from steps.core.system import proc; print(proc.here(), flush=True); "

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


def waits(where: str, seconds: float = 0.05) -> bool:
    watch = proc.Watch(where, proc.here())
    assert watch.waited(1.0) == 0.0  # one look shows nothing
    threading.Event().wait(seconds)
    return watch.waited(3.5) == 2.5


@pytest.fixture
def crowd() -> Iterator[int]:
    """The number of a core that several programs want."""
    core = min(os.sched_getaffinity(0))
    words = ["taskset", "-c", str(core), sys.executable, "-c", SPIN]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.callback(stack.enter_context(subprocess.Popen(words)).kill)
        yield core


SPIN = "exec('while True: pass')"
SLEEP = "import time; time.sleep(600)"
#: One thread is busy; the others, the first too, sleep.
THREAD = f"import threading; threading.Thread(target=lambda: {SPIN}).start(); {SLEEP}"


@pytest.mark.parametrize("program", [SPIN, THREAD], indirect=True)
def test_a_program_that_gets_no_core(
    program: tuple[subprocess.Popen[str], str], crowd: int
) -> None:
    for thread in Path(f"/proc/{program[0].pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {crowd})
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
    eventually(lambda: waits(program[1], 0.001))


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_a_program_that_runs_waits_for_nothing(
    program: tuple[subprocess.Popen[str], str],
) -> None:
    eventually(lambda: not waits(program[1], 0.3))


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_a_stopped_program_does_not_want_to(program: tuple[subprocess.Popen[str], str]) -> None:
    program[0].send_signal(signal.SIGSTOP)
    eventually(lambda: psutil.Process(program[0].pid).status() == psutil.STATUS_STOPPED)
    assert not waits(program[1])


@pytest.mark.parametrize("program", [SLEEP], indirect=True)
def test_a_program_that_waits_for_something_else(
    program: tuple[subprocess.Popen[str], str],
) -> None:
    eventually(lambda: psutil.Process(program[0].pid).status() == psutil.STATUS_SLEEPING)
    assert not waits(program[1])


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_a_dead_program(program: tuple[subprocess.Popen[str], str]) -> None:
    program[0].kill()
    program[0].wait()
    assert not waits(program[1])


@pytest.mark.parametrize("program", [SPIN], indirect=True)
def test_another_program_of_the_same_number_or_elsewhere(
    program: tuple[subprocess.Popen[str], str], crowd: int
) -> None:
    os.sched_setaffinity(program[0].pid, {crowd})
    os.setpriority(os.PRIO_PROCESS, program[0].pid, 19)
    boot, space, number, start = program[1].rsplit(" ", 3)
    for other in (
        f"{boot} {space} {number} {int(start) + 1}",
        f"elsewhere {space} {number} {start}",
        f"{boot} pid:[1] {number} {start}",
        f"{boot} {space} ../../etc {start}",
        "",
        "nonsense",
    ):
        assert not any(waits(other, 0.001) for _ in range(20))
    eventually(lambda: waits(program[1], 0.001))


def test_nothing_is_known_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = proc.here()
    assert here.split()[2] == str(os.getpid())
    monkeypatch.setattr(proc, "PROC", tmp_path)
    assert proc.here() == ""
    assert not waits(here)
