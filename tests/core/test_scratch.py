"""A directory for temporary files: short, private, and gone with the last who holds it."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from steps.core.node.supervisor import Supervisor
from steps.core.plan.plan import Process
from steps.core.record.rundir import NodeDir
from steps.core.system import scratch
from tests.core.cases import ROOT
from tests.core.waiting import eventually


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch, "_places", lambda: [tmp_path])
    return tmp_path


def test_it_is_private_and_goes_with_all_that_is_in_it(base: Path) -> None:
    made = scratch.make()
    assert made.path is not None
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    (made.path / "vllm_dist_1" / "deep").mkdir(parents=True)
    made.remove()
    assert list(base.iterdir()) == []


def test_a_socket_of_an_engine_fits() -> None:
    made = scratch.make()
    try:
        assert made.path is not None
        assert len(str(made.path)) <= scratch.LONGEST
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(made.path / ("x" * 60)))
    finally:
        made.remove()
        os.close(made.lock)


def test_what_is_held_stays_and_what_nobody_holds_goes(base: Path) -> None:
    held, dead = scratch.make(), scratch.make()
    assert held.path
    assert dead.path
    (dead.path / "socket").touch()
    os.close(dead.lock)
    strange = base / f"{scratch.PREFIX}strange"
    strange.mkdir()
    target = base / "target"
    target.mkdir()
    (target / scratch.LOCK).touch()
    (base / f"{scratch.PREFIX}link").symlink_to(target)
    scratch.prune(base)
    assert held.path.exists()
    assert not dead.path.exists()
    assert strange.exists()
    assert (target / scratch.LOCK).exists()


def test_a_child_holds_it_by_inheritance(base: Path) -> None:
    made = scratch.make()
    assert made.path
    child = subprocess.Popen(["sleep", "60"], pass_fds=(made.lock,))
    os.close(made.lock)
    scratch.prune(base)
    assert made.path.exists()
    child.kill()
    child.wait()
    scratch.prune(base)
    assert not made.path.exists()


def test_without_locks_it_works_and_nobody_prunes_it(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    made = scratch.make()
    scratch.prune(base)
    assert made.path
    assert made.path.exists()


def test_where_programs_may_not_run_is_the_last_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def noexec(path: Path) -> object:
        flag = scratch._NOEXEC if str(path) == "/tmp" else 0
        return SimpleNamespace(f_flag=flag) if str(path) in ("/tmp", "/var/tmp") else real(path)

    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp")
    monkeypatch.setattr(os, "statvfs", noexec)
    assert list(map(str, scratch._places())) == ["/var/tmp", "/tmp"]


def test_a_long_directory_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(deep))
    assert deep not in scratch._places()


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({}, {"TMPDIR": "/s", "VLLM_RPC_BASE_PATH": "/s"}),
        ({"TMPDIR": "/mine"}, {"TMPDIR": "/mine", "VLLM_RPC_BASE_PATH": "/image"}),
        ({"VLLM_RPC_BASE_PATH": "/mine"}, {"TMPDIR": "/s", "VLLM_RPC_BASE_PATH": "/mine"}),
    ],
)
def test_a_cases_own_directory_counts(
    tmp_path: Path, own: dict[str, str], wanted: dict[str, str]
) -> None:
    guard = SimpleNamespace(scratch=scratch.Scratch(Path("/s")))
    image = {"TMPDIR": "/image", "VLLM_RPC_BASE_PATH": "/image"}
    box = Supervisor(NodeDir(tmp_path), "m", image, print, guard)  # type: ignore[arg-type]
    found = box.environment(Process("server", "server", ("true",), env=own))
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")
def test_shared_memory_that_nobody_uses_is_named_and_stays() -> None:
    made = scratch.Scratch(None, -1, scratch._names(scratch.SHARED_MEMORY))
    unused = scratch.SHARED_MEMORY / f"psm_{os.getpid()}a"
    used = scratch.SHARED_MEMORY / f"psm_{os.getpid()}b"
    other = scratch.SHARED_MEMORY / f"of-somebody-{os.getpid()}"
    try:
        for path in (unused, used, other):
            path.write_bytes(bytes(4096))
        with used.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            assert f"{unused.name} (4096 bytes)" in made.left_in_memory()
            assert not [n for n in made.left_in_memory() if used.name in n or other.name in n]
        assert unused.exists()
    finally:
        for path in (unused, used, other):
            path.unlink(missing_ok=True)


def test_a_guard_that_was_killed_too_leaves_it_to_the_next_run(base: Path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from steps.core.system import scratch\n"
        f"scratch._places = lambda: [Path({str(base)!r})]\n"
        "from steps.core.system.guard import Guard\n"
        "guard = Guard('m:0')\n"
        "print(guard.scratch.path, flush=True)\n"
        "os.kill(guard.pid, 9)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    path = Path(done.stdout.strip())
    assert path.exists()

    def gone() -> bool:
        scratch.prune(base)
        return not path.exists()

    eventually(gone)
