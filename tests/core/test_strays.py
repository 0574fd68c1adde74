"""Nothing that descends from a node program outlives it, however it hides; no stranger is hurt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steps.core.system import ancestry
from tests.core import strays
from tests.core.cases import ROOT
from tests.core.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ancestry is seen in /proc")

OWNER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from steps.core.system.guard import Guard
from steps.core.plan.plan import Process
from steps.core.node.supervisor import Supervisor
from steps.core.record.rundir import NodeDir
guard = Guard("a mark:0")
place = NodeDir(Path(sys.argv[2])).make()
box = Supervisor(place, "a mark:0", dict(os.environ), lambda running: None, guard)
for at, words in enumerate(json.loads(sys.argv[3])):
    box.start(Process(f"p{at}", "server", tuple(words)))
print(guard.scratch.path, flush=True)
word = sys.stdin.readline().strip()
if word == "stop":
    box.stop([running.process.name for running in box.running], lambda: 0.0)
    found, left = box.kill_strays()
    print(json.dumps([len(found), len(left), [str(kin) for kin in found]]), flush=True)
guard.close()
"""


class Owner:
    """A node program of the test's own that starts commands."""

    def __init__(self, path: Path, *commands: list[str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(ROOT), str(path / "node-0"), json.dumps(commands)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.popen.stdout is not None
        self.scratch = Path(self.popen.stdout.readline().strip())

    def say(self, word: str) -> str:
        """One word to it, and all it says till its end."""
        return self.popen.communicate(f"{word}\n", timeout=60)[0]

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.mark.parametrize("kind", strays.KINDS)
def test_a_stray_is_ended_and_named(tmp_path: Path, kind: str) -> None:
    roster = tmp_path / "roster"
    owner = Owner(tmp_path, strays.argv(kind, roster))
    eventually(lambda: strays.alive(roster))
    found, left, names = json.loads(owner.say("stop").splitlines()[-1])
    assert strays.alive(roster) == []
    assert found >= 1
    assert left == 0
    assert all("(pid " in name for name in names)
    assert owner.popen.returncode == 0
    assert not owner.scratch.exists()


def test_strays_of_a_killed_node_program_are_ended_by_its_guard(tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    commands = [strays.argv(kind, roster) for kind in strays.SEEN]
    owner = Owner(tmp_path, [sys.executable, "-c", "import time; time.sleep(120)"], *commands)
    (owner.scratch / "a-socket").touch()
    eventually(lambda: len(strays.listed(roster)) >= 3 * len(commands))
    guard = next(pid for pid in ancestry.children(owner.popen.pid) if _is_guard(pid))
    before = strays.looks(guard)
    eventually(lambda: strays.looks(guard) >= before + 2)
    owner.kill()
    eventually(lambda: not strays.alive(roster), 15)
    eventually(lambda: not owner.scratch.exists())


def _is_guard(pid: int) -> bool:
    return b"steps.core.system.guard" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_node_program_that_ends_without_stopping_leaves_that_to_its_guard(tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    owner = Owner(tmp_path, strays.argv("environment written over", roster))
    eventually(lambda: strays.alive(roster))
    owner.say("leave")
    eventually(lambda: not strays.alive(roster))
    eventually(lambda: not owner.scratch.exists())


def test_a_number_that_was_given_away_gets_no_signal() -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        kin = ancestry.kin_of(other.pid)
        assert kin is not None
        ancestry.send(ancestry.Kin(kin.pid, "1", kin.name))
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.2)
        ancestry.send(kin)
        assert other.wait(5) == -signal.SIGKILL
    finally:
        other.kill()
        other.wait()


@pytest.mark.timing  # another test's orphan may come just then
def test_what_was_there_before_is_nobodys_orphan() -> None:
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert ancestry.Orphans().roots([]) == []
        late = ancestry.Orphans()
        assert late.end([], list, 0.0) == ([], [])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_an_adopted_orphan_that_ended_is_let_go_but_no_child_somebody_waits_for() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import os, subprocess, time\n"
        "from steps.core.system import ancestry\n"
        "assert ancestry.adopt()\n"
        "orphans = ancestry.Orphans()\n"
        "own = subprocess.Popen(['false'])\n"
        "code = 'import os\\nif not os.fork():\\n    os.setsid()'\n"
        "far = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "mine = lambda: ancestry.children(os.getpid())\n"
        "while len(mine()) < 3 or any(map(ancestry.kin_of, mine())): time.sleep(0.01)\n"
        "for _ in range(3): orphans.reap([far.pid])\n"
        "print(len(ancestry.children(os.getpid())), own.wait(), far.wait())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.split() == ["2", "1", "0"], done.stderr


def test_without_proc_children_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert other.pid in ancestry.children(os.getpid())
        real = Path.read_text

        def refuse(self: Path, *given: object, **more: object) -> str:
            if self.name == "children":
                raise FileNotFoundError(self)
            return real(self, *given, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "read_text", refuse)
        assert other.pid in ancestry.children(os.getpid())
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("doubt", ["guard.unsure = True", "guard.add(2**22 + 1)"])
def test_the_guard_is_dismissed_only_when_all_is_gone(doubt: str) -> None:
    script = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from steps.core.system.guard import Guard\n"
        "guard = Guard('a mark:1')\n"
        f"{doubt}\n"
        "guard.close()\n"
        "print(guard.scratch.path.exists() or os.waitpid(guard.pid, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.strip() in ("True", "0"), done.stderr
