"""Processes: started in groups of their own, watched, stopped whole; real ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from steps.core.node.supervisor import ExitStatus, Running, Supervisor, group_members
from steps.core.plan.plan import Process
from steps.core.record.rundir import NodeDir, read_json
from steps.core.redaction import Redactor
from steps.core.system.guard import MARKER, marked
from tests.core.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="groups are seen in /proc")
NO_HURRY = lambda: 1.0  # noqa: E731
FOREVER = "import signal\nprint('up', flush=True)\nwhile True: signal.pause()\n"


class Box:
    """A supervisor in a directory of its own, and the exits it told."""

    def __init__(self, path: Path) -> None:
        self.dir = NodeDir(path / "node-0").make()
        self.exits: list[Running] = []
        self.marker = f"{path}:0"
        self.supervisor = Supervisor(
            self.dir,
            self.marker,
            {"PATH": os.environ["PATH"], "LD_X": "outer", "KEPT": "1"},
            self.exits.append,
            redactor=Redactor(["s3cret-value"]),
        )

    def start(self, code: str, name: str = "server", **more: Any) -> Running:
        argv = (sys.executable, "-u", "-c", code)
        return self.supervisor.start(Process(name, "server", argv, **{"grace": 5.0, **more}))

    def up(self, code: str, name: str = "server", **more: Any) -> Running:
        """Started, and it said so."""
        running = self.start(code, name, **more)
        eventually(lambda: "up" in running.log.read_text())
        return running

    def status(self, running: Running) -> ExitStatus:
        eventually(lambda: running in self.exits)
        assert running.exit is not None
        return running.exit


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.supervisor.stop([r.process.name for r in made.supervisor.running], lambda: 0.0)
    made.supervisor.kill_strays()
    eventually(lambda: not list(marked(made.marker)))


def test_an_exit_code_is_noticed_at_once(box: Box) -> None:
    running = box.start("raise SystemExit(7)")
    status = box.status(running)
    assert (status.code, status.signal, status.expected) == (7, "", False)
    assert str(status) == "exited with code 7"


def test_an_exit_with_0_is_one_before_its_time(box: Box) -> None:
    assert str(box.status(box.start("pass"))) == "exited with code 0 before its time"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "killed by signal 9 (perhaps out of memory)"),
        (signal.SIGSEGV, "signal 11 (SIGSEGV)"),
        (signal.SIGTERM, "signal 15 (SIGTERM)"),
    ],
)
def test_a_signal_is_named(box: Box, number: signal.Signals, words: str) -> None:
    running = box.up(FOREVER)
    os.kill(running.pid, number)
    status = box.status(running)
    assert (status.code, status.signal) == (None, number.name)
    assert words in str(status)


def test_the_number_of_an_ended_process_is_kept_until_its_group_was_stopped(box: Box) -> None:
    running = box.start("raise SystemExit(7)")
    box.status(running)
    assert psutil.Process(running.pid).status() == psutil.STATUS_ZOMBIE
    box.supervisor.stop(["server"], NO_HURRY)
    assert not psutil.pid_exists(running.pid)


def test_a_number_that_may_be_somebody_elses_gets_no_signal(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = box.up(FOREVER)
    box.supervisor.stop(["server"], NO_HURRY)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *told: sent.append(told))
    box.supervisor.signal(running, signal.SIGKILL)
    assert box.supervisor.stop(["server"], NO_HURRY) == {}
    assert sent == []


def test_without_waitid_an_exit_is_noticed_too(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "waitid")
    assert box.status(box.start("raise SystemExit(7)")).code == 7
    box.supervisor.check()


def test_output_of_both_streams_goes_to_its_log(box: Box) -> None:
    running = box.start("import sys; print('to out'); print('to err', file=sys.stderr)")
    box.status(running)
    assert sorted(running.log.read_text().split("\n")) == ["", "to err", "to out"]
    assert running.log == box.dir.path / "server.log"
    assert stat.S_IMODE(running.log.stat().st_mode) == 0o600


def test_the_table_is_current(box: Box) -> None:
    one = box.up(FOREVER, "one")
    two = box.start("import sys; sys.exit(3)  # s3cret-value", "two")
    box.status(two)
    table = {entry["name"]: entry for entry in read_json(box.dir.processes)}
    assert table["one"]["pid"] == table["one"]["pgid"] == one.pid
    assert table["one"]["exit"] is None
    assert table["two"]["exit"]["code"] == 3
    assert table["two"]["exit"]["expected"] is False
    assert "s3cret-value" not in json.dumps(table)
    box.supervisor.stop(["one"], NO_HURRY)
    table = {entry["name"]: entry for entry in read_json(box.dir.processes)}
    assert table["one"]["exit"]["signal"] == "SIGTERM"
    assert table["one"]["exit"]["expected"] is True


def test_each_leads_a_session_with_a_closed_input(box: Box) -> None:
    code = "import os,sys; print(os.getsid(0), os.getpgid(0), os.getpid(), sys.stdin.read() == '')"
    running = box.start(code)
    box.status(running)
    assert running.log.read_text().split() == [*[str(running.pid)] * 3, "True"]


def test_the_environment(box: Box) -> None:
    process = Process(
        "server",
        "server",
        ("true",),
        env={"OWN": "2", "KEPT": "3"},
        paths={"LD_X": ("/a", "/b"), "NEW": ("/c",)},
        files={"CONFIG": "pool.json"},
    )
    env = box.supervisor.environment(process)
    assert (env["OWN"], env["KEPT"]) == ("2", "3")
    assert (env["LD_X"], env["NEW"]) == ("/a:/b:outer", "/c")
    assert env["CONFIG"] == str(box.dir.path / "pool.json")
    assert env[MARKER] == box.marker


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "/no/such/file", "/etc/passwd"])
def test_a_program_that_cannot_run_is_an_oserror(box: Box, program: str) -> None:
    with pytest.raises(OSError, match=r"No such file|Permission|not on PATH"):
        box.supervisor.start(Process("server", "server", (program,)))
    assert box.supervisor.running == []


def test_stop_ends_a_group_with_grandchildren(box: Box) -> None:
    code = (
        "import subprocess, sys, signal\n"
        'child = \'import subprocess, sys; subprocess.run([sys.executable, "-c", '
        '"import time; time.sleep(600)"])\'\n'
        "subprocess.Popen([sys.executable, '-c', child])\n"
        "print('up', flush=True)\nsignal.pause()\n"
    )
    running = box.up(code)
    eventually(lambda: len(group_members(running.pid)) == 3)
    members = group_members(running.pid)
    box.supervisor.stop(["server"], NO_HURRY)
    assert not [pid for pid in members if psutil.pid_exists(pid) and _alive(pid)]
    assert running.exit is not None
    assert running.exit.expected


def _alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_who_ignores_term_is_killed_after_its_grace(box: Box) -> None:
    running = box.up(f"import signal; signal.signal(15, signal.SIG_IGN)\n{FOREVER}", grace=0.4)
    took = box.supervisor.stop(["server"], NO_HURRY)
    assert took["server"] >= 0.4
    assert box.status(running).signal == "SIGKILL"
    assert "perhaps out of memory" not in str(running.exit)


def test_a_hurry_shortens_the_grace_while_it_lasts(box: Box) -> None:
    box.up(f"import signal; signal.signal(15, signal.SIG_IGN)\n{FOREVER}", grace=60.0)
    factor = [1.0]
    threading.Timer(0.3, lambda: factor.__setitem__(0, 0.0)).start()
    began = time.monotonic()
    box.supervisor.stop(["server"], lambda: factor[0])
    assert time.monotonic() - began < 30  # half the grace


def test_several_are_stopped_at_the_same_time(box: Box) -> None:
    """Each ends only when all four have been told to."""
    patient = (
        "import os, pathlib, signal, time\n"
        "def end(*_):\n"
        f"    place = pathlib.Path({str(box.dir.path)!r})\n"
        "    (place / f'told-{os.getpid()}').touch()\n"
        "    while len(list(place.glob('told-*'))) < 4:\n        time.sleep(0.01)\n"
        "    raise SystemExit\n"
        f"signal.signal(15, end)\n{FOREVER}"
    )
    running = [box.up(patient, f"server-{number}", grace=30.0) for number in range(4)]
    took = box.supervisor.stop([f"server-{n}" for n in range(4)], NO_HURRY)
    assert len(took) == 4
    assert [box.status(each).signal for each in running] == [""] * 4


def test_a_stopped_process_is_continued_and_ended(box: Box) -> None:
    running = box.up(FOREVER)
    os.kill(running.pid, signal.SIGSTOP)
    box.supervisor.stop(["server"], NO_HURRY)
    assert box.status(running).signal == "SIGTERM"  # KILL after the grace, had it not gone on
    assert not group_members(running.pid)


def test_who_forks_away_leaves_survivors_that_are_stopped(box: Box) -> None:
    code = "import os, time\nif os.fork():\n    os._exit(0)\ntime.sleep(600)\n"
    running = box.start(code)
    status = box.status(running)
    assert status.code == 0
    assert len(status.survivors) == 1
    assert "children of it live on" in str(status)
    box.supervisor.stop(["server"], NO_HURRY)
    assert not group_members(running.pid)


def test_who_leaves_the_group_is_found_by_its_mark(box: Box) -> None:
    code = (
        "import os, signal\n"
        "if not os.fork():\n    os.setsid()\n    print('up', flush=True)\n    signal.pause()\n"
        "signal.pause()\n"
    )
    box.up(code)
    box.supervisor.stop(["server"], NO_HURRY)
    assert len(list(marked(box.marker))) == 1
    assert len(box.supervisor.kill_strays()[0]) == 1
    eventually(lambda: not list(marked(box.marker)))


def test_a_mark_that_only_begins_alike_is_another_runs(box: Box) -> None:
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, MARKER: box.marker + "1"})
    try:
        assert box.supervisor.kill_strays() == ([], [])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_what_has_ended_is_stopped_without_harm(box: Box) -> None:
    box.status(box.start("pass"))
    assert set(box.supervisor.stop(["server", "unknown"], NO_HURRY)) == {"server"}


def test_a_name_that_confuses_the_process_table(box: Box) -> None:
    code = (
        "import ctypes, signal\nctypes.CDLL(None).prctl(15, b') Z 1 \\xff\\n', 0, 0, 0)\n"
        "print('up', flush=True)\nsignal.pause()\n"
    )
    running = box.up(code)
    assert group_members(running.pid) == [running.pid]


OWNER = """
import os, sys, signal
sys.path.insert(0, {root!r})
from pathlib import Path
from steps.core.system.guard import Guard
from steps.core.plan.plan import Process
from steps.core.node.supervisor import Supervisor
from steps.core.record.rundir import NodeDir
guard = Guard({marker!r})
box = Supervisor(NodeDir(Path({path!r})).make(), {marker!r}, dict(os.environ), print, guard)
deaf = "import signal, os; signal.signal(15, 1); signal.signal(1, 1)\\nos.fork()\\nsignal.pause()"
away = "import os, signal\\nif not os.fork():\\n    os.setsid()\\nsignal.pause()"
box.start(Process("one", "server", (sys.executable, "-c", deaf)))
box.start(Process("two", "server", (sys.executable, "-c", away)))
print("ready", flush=True)
if sys.stdin.readline() == "leave\\n":
    box.stop(["one", "two"], lambda: 0.0)
    box.kill_strays()
    guard.close()
"""


def _owner(path: Path) -> tuple[subprocess.Popen[str], str]:
    marker = f"{path}:7"
    root = str(Path(__file__).resolve().parents[2])
    text = OWNER.format(root=root, marker=marker, path=str(path / "node-7"))
    owner = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    eventually(lambda: len(list(marked(marker))) == 4)
    return owner, marker


def test_nothing_outlives_an_owner_that_was_killed(tmp_path: Path) -> None:
    owner, marker = _owner(tmp_path)
    with owner:
        owner.kill()
        eventually(lambda: not list(marked(marker)), 10)


def test_the_guard_ends_with_an_owner_that_leaves_in_order(tmp_path: Path) -> None:
    owner, marker = _owner(tmp_path)
    guards = psutil.Process(owner.pid).children()
    with owner:
        assert owner.stdin is not None
        owner.stdin.write("leave\n")
        owner.stdin.close()
        assert owner.wait(20) == 0
    eventually(lambda: not [g for g in guards if g.is_running() and _alive(g.pid)])
    assert not list(marked(marker))
